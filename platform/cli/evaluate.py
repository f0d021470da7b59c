"""`mixtura evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixtura.platform.cli.arguments import AsJson, Root

if TYPE_CHECKING:
    from mixtura.platform.orchestration.submission import Submission


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
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.zip",
            help="Answer the hidden test splits of GLUE or SuperGLUE instead, and write the archive that its site "
            "takes. For one model.",
        ),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="With --submission: glue or super_glue, where there are tasks of both.")
    ] = None,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Measure checkpoints or models on tasks, with 95 % intervals. Results of runs go to their table and to MLflow.

    Example: mixtura evaluate quickstart@best --whole --tasks module,returns
    """
    from mixtura.platform.cli.output import print_lines, print_table
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.errors import RequestError
    from mixtura.platform.orchestration import evaluate_by_hand
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.workspace import workspace

    reporter = SilentReporter() if as_json else TerminalReporter()
    names = tuple(name.strip() for name in tasks.split(",")) if tasks else ()
    if submission is not None:
        if whole:
            raise RequestError("--whole measures, and --submission answers what cannot be measured here: leave one out")
        from mixtura.platform.orchestration.submission import submit

        space = workspace(root)
        made = submit(space, what, recipe, overrides or (), names, benchmark, submission, reporter)
        _print_submission(made, as_json=as_json)
        return
    if benchmark is not None:
        raise RequestError("--benchmark says which archive --submission FILE.zip is; name tasks with --tasks")
    wanted = evaluate_by_hand.Wanted(names, whole)
    rows = evaluate_by_hand.evaluate(workspace(root), what, recipe, overrides or (), wanted, reporter)
    print_table("Evaluation", rows, as_json=as_json, notes="interval: 95 % bootstrap over examples")
    if not as_json:
        print_lines(*evaluate_by_hand.benchmark_lines(rows))


def _print_submission(made: Submission, *, as_json: bool) -> None:
    from dataclasses import asdict

    from mixtura.platform.cli.output import print_json, print_lines, print_table

    if as_json:
        paths = {"path": str(made.path), "predictions": str(made.predictions)}
        print_json({**asdict(made), **paths, "warnings": list(made.warnings())})
        return
    rows = [{"file": one.name, "task": one.task, "rows": one.rows, "faulty": one.faulty} for one in made.files]
    print_table(f"{made.model} on {made.benchmark}", rows, notes=f"answers: {made.predictions}")
    print_lines(*(f"warning: {warning}" for warning in made.warnings()), f"{made.path} was written")
