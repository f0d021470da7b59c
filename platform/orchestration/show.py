"""The stream as people read it: rows with their segments decoded, and the hashes of batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixtura.platform.data.lanes import InlineBlocks, LaneCursor, RankStream, batch_fingerprint, packed_rows, state_at
from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.data.vocabulary import Vocabulary


def decoded_block(stream: MixtureStream, vocabulary: Path, block: int) -> list[dict[str, Any]]:
    """All packed rows of a block."""
    return _decoded(stream, vocabulary, stream.build_block(block))


def decoded_step(stream: MixtureStream, vocabulary: Path, step: int) -> list[dict[str, Any]]:
    """All packed rows of a step's global batch, in its order."""
    spec, blocks = stream.spec, InlineBlocks(stream)
    state = state_at(stream, step, blocks)
    tables = [
        table
        for lane, turn, row in state["lanes"]
        for table in LaneCursor(lane, (turn, row), blocks).take(spec.rows_per_lane)
    ]
    return _decoded(stream, vocabulary, pa.concat_tables(tables))


def fingerprints(stream: MixtureStream, first: int, end: int) -> Iterator[tuple[int, str]]:
    """The hash of each global batch of steps `first` to `end - 1`."""
    reader = RankStream(stream, state=state_at(stream, first) if first else None)
    for step in range(first, end):
        yield step, batch_fingerprint([reader.next_batch()])


def _decoded(stream: MixtureStream, vocabulary_path: Path, table: pa.Table) -> list[dict[str, Any]]:
    vocabulary, names = Vocabulary(vocabulary_path), [task.name for task in stream.spec.tasks]
    rows = packed_rows(table)
    segments = zip(rows.inputs.to_lists(), rows.targets.to_lists(), strict=True)
    decoded = []
    for number, tasks in enumerate(rows.tasks.to_lists()):
        decoded.append(
            {"row": number, "segments": [_segment(vocabulary, names[task], *next(segments)) for task in tasks]}
        )
    return decoded


def _segment(vocabulary: Vocabulary, task: str, inputs: list[int], targets: list[int]) -> dict[str, Any]:
    return {
        "task": task,
        "inputs": vocabulary.decode(inputs),
        "targets": vocabulary.decode(targets),
        "inputs_length": len(inputs),
        "targets_length": len(targets),
    }
