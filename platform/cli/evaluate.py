"""`mixtura evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from mixtura.platform.cli.arguments import AsJson, Root


def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A run (all its checkpoints), RUN@STEP, RUN@best, ...; or with --recipe any model: a folder, "
            "models:/NAME@ALIAS, OWNER/NAME of the hub, ensemble:A,B, average:A,B."
        ),
    ],
    recipe: Annotated[
        str | None, typer.Option(help="The recipe whose tasks a model that is of no run is measured on.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A dotted override of that recipe, for example data.root=DIR.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Only these, with commas between: names, or ends of names such as rte.")
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole",
            help="Whole test splits, or validation where no test answers are public; else as in training.",
        ),
    ] = False,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Measure checkpoints or models on tasks, with 95 % intervals. Results of runs go to their table and to MLflow.

    Example: mixtura evaluate quickstart@best --whole --tasks module,returns
    """
    from mixtura.platform.cli.output import print_lines, print_table
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.orchestration import evaluate_by_hand
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.workspace import workspace

    reporter = SilentReporter() if as_json else TerminalReporter()
    wanted = evaluate_by_hand.Wanted(tuple(name.strip() for name in tasks.split(",")) if tasks else (), whole)
    rows = evaluate_by_hand.evaluate(workspace(root), what, recipe, overrides or (), wanted, reporter)
    print_table("Evaluation", rows, as_json=as_json, notes="interval: 95 % bootstrap over examples")
    if not as_json:
        print_lines(*evaluate_by_hand.benchmark_lines(rows))
