"""`mixtura predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixtura.platform.cli.arguments import Checkpoint, Root


def predict(
    checkpoint: Checkpoint,
    text: Annotated[list[str] | None, typer.Argument(help="Texts to answer.", show_default=False)] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="A file with one text a line; without it and texts, standard input.")
    ] = None,
    decode_length: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 128,
    beams: Annotated[int, typer.Option(help="Answers looked at side by side; 1 is greedy.", min=1)] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="alpha of ((5 + length) / 6)^alpha, which beam search divides by.", min=0)
    ] = 0.6,
    root: Root = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines: input, output, log_probability.")] = False,
) -> None:
    """Answer texts with a checkpoint, or with any T5: text in, text out. <extra_id_0> in a text is T5's mask.

    Several answer as one: ensemble:A,B averages their logits, average:A,B their weights.

    Example: mixtura predict quickstart@best "returns docstring: Return the size of a file in bytes."
    """
    from mixtura.platform.cli.progress import answering_bar
    from mixtura.platform.errors import RequestError
    from mixtura.platform.orchestration.ensembles import answerer, load
    from mixtura.platform.orchestration.predict import answers
    from mixtura.platform.workspace import workspace

    if input_file is not None and not input_file.is_file():
        raise RequestError(f"texts were to be read from {input_file}, but there is no such file")
    chosen = answerer(workspace(root), checkpoint)
    given = text or (input_file.read_text() if input_file is not None else sys.stdin.read()).splitlines()
    with answering_bar(len(given)) as progress:
        found = answers(*load(chosen), given, decode_length, beams, length_penalty, progress)
    for asked, answer in zip(given, found, strict=True):
        values = {"input": asked, "output": answer.text, "log_probability": answer.log_probability}
        sys.stdout.write((json.dumps(values, ensure_ascii=False) if as_json else answer.text) + "\n")
