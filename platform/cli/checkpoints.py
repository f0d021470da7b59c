"""`mixtura checkpoints`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Root

app = typer.Typer(help="Checkpoints of runs.", no_args_is_help=True)


@app.command("list")
def list_checkpoints(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """List a run's checkpoints in the order of MLflow's page: the best average on validation first.

    Example: mixtura checkpoints list quickstart
    """
    from mixtura.platform.cli.output import print_table
    from mixtura.platform.orchestration.select import checkpoint_table
    from mixtura.platform.workspace import workspace

    found = workspace(root).existing_run(run)
    rows = checkpoint_table(found)
    if not as_json:
        rows = [{name: value for name, value in row.items() if name not in {"step", "path"}} for row in rows]
    notes = f"folders: {found.checkpoints}; averages are over the tasks' validation splits"
    print_table(f"Checkpoints of {run}", rows, as_json=as_json, notes=notes)


@app.command("pick")
def pick(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    task: Annotated[str | None, typer.Option(help="Best for this task; on average if not given.")] = None,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Name a run's best checkpoint, on average or for one task.

    Example: mixtura checkpoints pick quickstart --task python_docs_module
    """
    from mixtura.platform.cli.output import print_json, print_lines
    from mixtura.platform.orchestration.select import checkpoint_path, checkpoint_table
    from mixtura.platform.workspace import workspace

    space = workspace(root)
    path = checkpoint_path(space, f"{run}@best-{task}" if task else f"{run}@best")
    rows: list[dict[str, Any]] = [row for row in checkpoint_table(space.existing_run(run)) if row["path"] == str(path)]
    if as_json:
        print_json(rows[0])
    else:
        print_lines(f"{run}@{rows[0]['step']}", str(path))
