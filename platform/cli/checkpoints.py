"""`mixtura checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Checkpoint, Root

if TYPE_CHECKING:
    from mixtura.platform.orchestration.model_folder import ModelFolder

app = typer.Typer(help="Checkpoints of runs, and models of others.", no_args_is_help=True)


By = Annotated[str, typer.Option(help="'average', or an evaluated task: its name or the end of it, such as rte.")]


@app.command("list")
def list_checkpoints(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    by: By = "average",
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """List a run's checkpoints in the order of MLflow's page: the best average on validation first, or by one task.

    Example: mixtura checkpoints list quickstart --by module
    """
    from mixtura.platform.cli.output import print_table
    from mixtura.platform.orchestration.select import checkpoint_table
    from mixtura.platform.workspace import workspace

    found = workspace(root).existing_run(run)
    rows = checkpoint_table(found, by)
    if not as_json:
        rows = [{name: value for name, value in row.items() if name not in {"step", "path"}} for row in rows]
    notes = f"folders: {found.checkpoints}; averages are over the tasks' validation splits"
    print_table(f"Checkpoints of {run}", rows, as_json=as_json, notes=notes)


@app.command("pick")
def pick(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    by: Annotated[
        str, typer.Option(help="'average', 'pareto' for all that none beats on every task, or an evaluated task.")
    ] = "average",
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Name a run's best checkpoint on average or for one task, or all on the Pareto front.

    Example: mixtura checkpoints pick quickstart --by module
    """
    from mixtura.platform.cli.output import print_json, print_lines
    from mixtura.platform.orchestration.select import (
        best_checkpoint,
        best_for_task,
        checkpoint_table,
        front_checkpoints,
    )
    from mixtura.platform.training.checkpoint import verify
    from mixtura.platform.workspace import workspace

    found = workspace(root).existing_run(run)
    if by == "pareto":
        picked = front_checkpoints(found)
    else:
        picked = [best_checkpoint(found) if by == "average" else best_for_task(found, by)]
    for info in picked:
        verify(info.path)
    if not as_json:
        print_lines(*(line for info in picked for line in (f"{run}@{info.step}", str(info.path))))
        return
    by_step: dict[int, dict[str, Any]] = {row["step"]: row for row in checkpoint_table(found)}
    rows = [by_step[info.step] for info in picked]
    print_json(rows if by == "pareto" else rows[0])


@app.command("promote")
def promote(
    checkpoint: Annotated[str, typer.Argument(help="RUN@STEP, RUN@best, RUN@best-TASK or RUN@last.")],
    alias: Annotated[str, typer.Argument(help="The name to give it, for example best-rte or production.")],
    model: Annotated[
        str | None, typer.Option(help="The registered model that the alias is of; the run's own if not given.")
    ] = None,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Point an alias of MLflow's registry at a checkpoint, which retention then keeps.

    Example: mixtura checkpoints promote quickstart@best production
    """
    from mixtura.platform.cli.output import print_json, print_lines
    from mixtura.platform.orchestration.select import promote_checkpoint
    from mixtura.platform.workspace import workspace

    name = promote_checkpoint(workspace(root), checkpoint, alias, model)
    if as_json:
        print_json({"name": name})
    else:
        print_lines(f"{name} is {checkpoint}", f'mixtura predict {name} "a text"')


@app.command("export")
def export_checkpoint(
    checkpoint: Checkpoint,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to be made.")],
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Copy what transformers needs of a checkpoint into a folder, without optimizer and state.

    Example: mixtura checkpoints export quickstart@best ./quickstart-best
    """
    from mixtura.platform.orchestration.model_folder import export_checkpoint as export
    from mixtura.platform.workspace import workspace

    found = export(workspace(root), checkpoint, directory)
    _print_folder(found, [f'transformers: T5ForConditionalGeneration.from_pretrained("{found.path}")'], as_json=as_json)


@app.command("import")
def import_model(
    source: Annotated[
        str, typer.Argument(help="OWNER/NAME of the hub, a Hugging Face folder, or a checkpoint file of t5x.")
    ],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to be made.")],
    vocabulary: Annotated[
        Path | None, typer.Option(help="The SentencePiece model of a source that has none beside it.")
    ] = None,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Make a folder of ours from a model of others, in fp32 and with its vocabulary.

    Training from it needs no import: `model.from` takes the same sources.

    Example: mixtura checkpoints import google/t5-v1_1-small ./t5-v1_1-small
    """
    from mixtura.platform.orchestration.model_folder import import_model as import_
    from mixtura.platform.workspace import workspace

    found = import_(workspace(root), source, directory, vocabulary)
    commands = [f'mixtura predict {found.path} "a text"', f"mixtura train RECIPE model.from={found.path}"]
    _print_folder(found, commands, as_json=as_json)


def _print_folder(found: ModelFolder, uses: list[str], *, as_json: bool) -> None:
    from dataclasses import asdict

    from mixtura.platform.cli.output import print_json, print_lines

    if as_json:
        values = {"path": str(found.path), "parameters": found.parameters, "was_there": found.was_there}
        print_json({**values, "config": asdict(found.config), "files": found.sizes})
        return
    done = "is there already" if found.was_there else "was written"
    print_lines(
        f"{found.path} {done}: {found.parameters:,} parameters, {sum(found.sizes.values()) / 1e6:,.1f} MB", *uses
    )
