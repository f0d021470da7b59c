"""`mixtura stream`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Recipe

app = typer.Typer(help="The mixture stream: what any step sees.", no_args_is_help=True)


@app.command("show")
def show(
    recipe: Recipe,
    overrides: Overrides = None,
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
    from mixtura.platform.data.stream import MixtureStream
    from mixtura.platform.orchestration.mixture import stream_spec
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.show import decoded_block, decoded_step, fingerprints
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.workspace import workspace

    tree = load_recipe(recipe, overrides or [])
    prepared = prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
    stream = MixtureStream(stream_spec(tree, prepared))
    if fingerprint is not None:
        hashes = [{"step": at, "fingerprint": text} for at, text in fingerprints(stream, *_range(fingerprint))]
        print_table("Fingerprints of global batches", hashes, as_json=as_json)
        return
    shown: list[dict[str, Any]]
    if block is not None:
        title, shown = f"block {block}", decoded_block(stream, prepared.vocabulary, block)
    else:
        title, shown = f"step {step or 0}", decoded_step(stream, prepared.vocabulary, step or 0)
    if as_json:
        print_json(shown)
        return
    for row in shown[:rows]:
        print_lines("", f"{title}, row {row['row']}: {len(row['segments'])} segments")
        for number, segment in enumerate(row["segments"], start=1):
            lengths = f"{segment['inputs_length']} + {segment['targets_length']} tokens"
            print_lines(f"  [{number}] {segment['task']} ({lengths})")
            print_lines(f"      inputs   {segment['inputs']}", f"      targets  {segment['targets']}")
    print_lines("", f"{min(rows, len(shown))} of {len(shown)} rows; --rows N shows more")


def _range(text: str) -> tuple[int, int]:
    from mixtura.platform.errors import RequestError

    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise RequestError(f"--fingerprint was given {text!r}: write A:B with A below B, for example 0:10")
    return int(first), int(last)
