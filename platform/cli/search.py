"""`mixtura search`."""

from __future__ import annotations

from typing import Annotated

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Recipe


def search(
    recipe: Recipe,
    overrides: Overrides = None,
    executor: Annotated[
        str | None, typer.Option(help="`ray`, or `inline`: one trial after the other in this process.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search the mixing proportions of a recipe, and compare the best ones found with plain mixtures.

    The same command again goes on where it stopped. The winner is written as a recipe that `mixtura train` accepts.

    Example: mixtura search quickstart search.trials=12 search.seeds=5
    """
    from mixtura.platform.cli.output import print_json
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.search_run import search_recipe
    from mixtura.platform.orchestration.tasks import load_recipe

    given = [*(overrides or []), *([f"executor.kind={executor}"] if executor else [])]
    tree = load_recipe(recipe, given)
    report = search_recipe(recipe, given, tree, SilentReporter() if as_json else TerminalReporter())
    if as_json:
        print_json(report)
