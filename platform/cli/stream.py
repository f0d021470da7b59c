"""`mixtura stream`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Phase, Recipe

if TYPE_CHECKING:
    from mixtura.platform.data.task import Task
    from mixtura.platform.orchestration.show import Shown

app = typer.Typer(help="The mixture stream: what any step sees.", no_args_is_help=True)


@app.command("show")
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    phase: Phase = None,
    step: Annotated[int | None, typer.Option(help="Show the global batch of this step, from 0.", min=0)] = None,
    block: Annotated[int | None, typer.Option(help="Show this block; immediate, however far.", min=0)] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="A:B", help="Print a hash of each global batch of steps A to B - 1.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Packed rows to show.", min=1)] = 3,
    as_json: AsJson = False,
) -> None:
    """Show a batch or a block decoded, with its segments and tasks, or the hashes of batches.

    Example: mixtura stream show quickstart --step 10 --rows 2
    """
    from mixtura.platform.cli.output import print_json, print_lines, print_table

    shown = _opened(recipe, overrides or [], phase, quiet=as_json)
    if fingerprint is not None:
        hashes = [{"step": at, "fingerprint": text} for at, text in shown.fingerprints(*_range(fingerprint))]
        print_table("Fingerprints of global batches", hashes, as_json=as_json)
        return
    title = f"block {block}" if block is not None else f"step {step or 0}"
    decoded = shown.block(block) if block is not None else shown.step(step or 0)
    if as_json:
        print_json(decoded)
        return
    for row in decoded[:rows]:
        padding = ", ".join(
            f"{name.replace('_padding', '')} {count}" for name, count in row.items() if "_padding" in name
        )
        print_lines("", f"{title}, row {row['row']}: {len(row['segments'])} segments; padding: {padding}")
        for number, segment in enumerate(row["segments"], start=1):
            lengths = f"{segment['inputs_length']} + {segment['targets_length']} tokens"
            print_lines(f"  [{number}] {segment['task']} ({lengths}), {_origin(segment)}")
            print_lines(f"      inputs   {segment['inputs']}", f"      targets  {segment['targets']}")
    print_lines("", f"{min(rows, len(decoded))} of {len(decoded)} rows; --rows N shows more")


def _opened(recipe: str, overrides: list[str], phase: str | None, *, quiet: bool) -> Shown:
    """The stream of a recipe, prepared where it is not yet."""
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.data.stream import MixtureStream
    from mixtura.platform.orchestration.mixture import stream_spec
    from mixtura.platform.orchestration.phases import single
    from mixtura.platform.orchestration.places import copies_of
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.show import Shown
    from mixtura.platform.orchestration.tasks import tasks_of
    from mixtura.platform.workspace import workspace

    reporter = SilentReporter() if quiet else TerminalReporter()
    tree = single(recipe, overrides, phase, reporter)
    space = workspace(tree.run.root)
    prepared = prepare(tree, space, map_inline, reporter)
    stream = MixtureStream(stream_spec(tree, prepared), copies_of(tree))
    names = {name: functools.partial(_shard_name, task) for name, task in tasks_of(tree).items()}
    folder = space.caches / f"stream-{stream.spec.fingerprint}"
    progress = functools.partial(reporter.progress, "walk to the step", detail="rows of a lane")
    return Shown(stream, prepared.vocabulary, folder, names, progress)


def _shard_name(task: Task, shard: int) -> str:
    return task.shards("train")[shard].name


def _origin(segment: dict[str, Any]) -> str:
    first, last = segment["rows"]
    rows = f"row {first}" if first == last else f"rows {first} to {last}"
    return f"{segment['source']}, {rows}, epoch {segment['epoch']}"


def _range(text: str) -> tuple[int, int]:
    from mixtura.platform.errors import RequestError

    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise RequestError(f"--fingerprint was given {text!r}: write A:B with A below B, for example 0:10")
    return int(first), int(last)
