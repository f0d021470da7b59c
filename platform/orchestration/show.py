"""The stream as people read it: rows with their segments decoded, and the hashes of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixtura.platform.data.lanes import InlineBlocks, LaneCursor, RankStream, batch_fingerprint, packed_rows
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.data.stream import MixtureStream, ragged_columns
from mixtura.platform.data.stream_index import Progress, StreamIndex
from mixtura.platform.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Shown:
    """A stream with what it takes to read it."""

    stream: MixtureStream
    vocabulary: Path
    index_folder: Path
    """Where the index of its steps is kept."""
    shard_names: Mapping[str, Callable[[int], str]]
    """By task, what a shard's source is called."""
    progress: Progress = lambda *_: None
    """Told how far the walk to a step is."""

    def block(self, block: int) -> list[dict[str, Any]]:
        """All packed rows of a block."""
        return self._decoded(self.stream.build_block(block))

    def step(self, step: int) -> list[dict[str, Any]]:
        """All packed rows of a step's global batch, in its order."""
        spec, blocks = self.stream.spec, InlineBlocks(self.stream)
        tables = [
            table
            for lane, turn, row in self._state(step)["lanes"]
            for table in LaneCursor(lane, (turn, row), blocks).take(spec.rows_per_lane)
        ]
        return self._decoded(pa.concat_tables(tables))

    def fingerprints(self, first: int, end: int) -> Iterator[tuple[int, str]]:
        """The hash of each global batch of steps `first` to `end - 1`."""
        reader = RankStream(self.stream, state=self._state(first))
        for step in range(first, end):
            yield step, batch_fingerprint([reader.next_batch()])

    def _state(self, step: int) -> dict[str, Any]:
        return StreamIndex(self.stream, self.index_folder).state(step, self.progress)

    def _decoded(self, table: pa.Table) -> list[dict[str, Any]]:
        columns, vocabulary = ragged_columns(table), Vocabulary(self.vocabulary)
        rows = packed_rows(columns)
        encoder, decoder = self.stream.spec.row_lengths
        segments = iter(
            [
                self._segment(vocabulary, *segment)
                for segment in zip(
                    rows.tasks.values.tolist(),
                    columns["draws"].values.tolist(),
                    rows.inputs.to_lists(),
                    rows.targets.to_lists(),
                    strict=True,
                )
            ]
        )
        filled = zip(_sums(rows.inputs, rows.tasks), _sums(rows.targets, rows.tasks), strict=True)
        decoded = []
        for number, (inputs, targets) in enumerate(filled):
            padding = {"decoder_padding": decoder - inputs - targets}
            if not self.stream.spec.joined:
                padding = {"encoder_padding": encoder - inputs, "decoder_padding": decoder - targets}
            own = [next(segments) for _ in range(int(rows.tasks.lengths[number]))]
            decoded.append({"row": number, **padding, "segments": own})
        return decoded

    def _segment(
        self, vocabulary: Vocabulary, task: int, draw: int, inputs: list[int], targets: list[int]
    ) -> dict[str, Any]:
        name, origin = self.stream.spec.tasks[task].name, self.stream.reader(task).origin(draw)
        return {
            "task": name,
            "source": self.shard_names[name](origin.shard),
            "rows": [origin.first_row, origin.last_row],
            "epoch": origin.epoch,
            "draw": draw,
            "inputs": vocabulary.decode(inputs),
            "targets": vocabulary.decode(targets),
            "inputs_length": len(inputs),
            "targets_length": len(targets),
        }


def _sums(segments: Ragged, tasks: Ragged) -> list[int]:
    """Tokens of every row."""
    ends = segments.offsets[tasks.offsets]
    sums: list[int] = (ends[1:] - ends[:-1]).tolist()
    return sums
