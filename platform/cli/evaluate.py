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
    from mixtura.platform.errors import RequestError
    from mixtura.platform.orchestration.evaluate_by_hand import (
        Wanted,
        benchmark_lines,
        evaluate_model,
        evaluate_run,
        is_of_run,
    )
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.workspace import workspace

    space, reporter = workspace(root), SilentReporter() if as_json else TerminalReporter()
    wanted = Wanted(tuple(name.strip() for name in tasks.split(",")) if tasks else (), whole)
    if recipe is None and overrides:
        raise RequestError("--set changes a recipe, and none is given: add --recipe RECIPE")
    rows = []
    for name in what:
        if recipe is not None:
            config = load_recipe(recipe, [f"run.root={root}", *(overrides or [])])
            rows += evaluate_model(space, name, recipe, config, wanted, reporter)
        elif is_of_run(space, name):
            rows += evaluate_run(space, name, wanted, reporter)
        else:
            known = ", ".join(run.name for run in space.runs()) or "none"
            raise RequestError(
                f"{name!r} is no run or checkpoint of one (runs: {known}): to measure any other model, say on which "
                "recipe's tasks with --recipe RECIPE"
            )
    print_table("Evaluation", rows, as_json=as_json, notes="interval: 95 % bootstrap over examples")
    if not as_json:
        print_lines(*benchmark_lines(rows))
