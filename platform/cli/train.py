"""`mixtura train`."""

from __future__ import annotations

from typing import Annotated

import typer

from mixtura.platform.cli.arguments import Overrides, Recipe


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    executor: Annotated[
        str | None, typer.Option(help="`ray`, or `inline`: one process without Ray, with the same batches and losses.")
    ] = None,
) -> None:
    """Train a recipe, or its phases one after the other; the same command again goes on where it stopped.

    Example: mixtura train quickstart training.steps=2000 run.name=longer
    """
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.orchestration.phases import train_phases
    from mixtura.platform.orchestration.tasks import load_runs
    from mixtura.platform.orchestration.train import train_recipe

    given = [*(overrides or []), *([f"executor.kind={executor}"] if executor else [])]
    runs = load_runs(recipe, given)
    if len(runs) == 1:
        train_recipe(recipe, runs[0].config, TerminalReporter())
    else:
        train_phases(recipe, runs, TerminalReporter())
