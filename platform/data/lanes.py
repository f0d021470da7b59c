"""From blocks to batches: a run's lanes, who owns them, and how far each has come.

The global batch takes `rows_per_lane` rows from every lane, in lane order. Rank r of W owns lanes r, r + W, ... So
the rows of a step do not depend on W:

    lanes 4, global_batch_size 8     row of the batch   0 1 | 2 3 | 4 5 | 6 7
                                     lane               0     1     2     3
                                     rank of 3          0     1     2     0

A lane stands at (round, row): the block it owns in that round, and the next row of it. A lane that has used up a
block stands at (round + 1, 0); the next block counts as drawn when its first row is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixtura.platform.data.features import (
    PackedRows,
    features_of,
    global_fingerprint,
    row_fingerprints,
    segment_tasks,
)
from mixtura.platform.data.ragged import Int64, Ragged, offsets_of
from mixtura.platform.data.stream import MixtureStream, StreamSpec, count_rows, ragged_column, ragged_columns
from mixtura.platform.errors import ConfigError, RunError

Int32 = npt.NDArray[np.int32]
Position = tuple[int, int]
"""(round, row) of a lane"""


class BlockSource(Protocol):
    """Where a rank's blocks come from. A rank asks for the blocks of a lane one round after the other."""

    def get(self, lane: int, round_: int, /) -> pa.Table:
        """The block that a lane owns in a round."""
        ...


class InlineBlocks:
    """Builds each block when it is asked for."""

    def __init__(self, stream: MixtureStream) -> None:
        self._stream = stream

    def get(self, lane: int, round_: int, /) -> pa.Table:
        """Build it."""
        return self._stream.build_block(self._stream.block_of(round_, lane))


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a global batch."""

    step: int
    features: dict[str, Int32]
    """SeqIO's names, each [rows, length]; see features.py"""
    rows: Int64
    """number of every row within the global batch, ascending"""
    segment_tasks: Int32
    """[rows, most segments]: task index of segment k + 1 in column k, -1 where there is none"""
    counters: dict[str, Int64]
    """per task index, of this rank's rows, see `count_rows`; and `drawn`, the examples of the blocks that it began"""

    @property
    def examples(self) -> Int64:
        """Examples per task index."""
        return self.counters["examples"]

    def fingerprints(self) -> npt.NDArray[np.uint64]:
        """A hash of every row."""
        return row_fingerprints(self.features, self.segment_tasks)


def batch_fingerprint(parts: Sequence[Batch]) -> str:
    """The hash of a global batch from the parts of all ranks, in whatever order they come."""
    rows = np.concatenate([part.rows for part in parts])
    fingerprints = np.concatenate([part.fingerprints() for part in parts])
    return global_fingerprint(fingerprints[np.argsort(rows)])


def to_batch(spec: StreamSpec, step: int, rows: Int64, packed: pa.Table) -> Batch:
    """Expand packed rows to features."""
    columns = ragged_columns(packed)
    targets_length = spec.targets_length if spec.joined else spec.row_lengths[1]
    features = features_of(spec.features, packed_rows(columns), spec.inputs_length, targets_length, spec.loss_on)
    return Batch(step, features, rows, segment_tasks(columns["tasks"]), count_rows(columns, len(spec.tasks)))


def packed_rows(columns: Mapping[str, Ragged]) -> PackedRows:
    """The segments of a block's rows."""
    inputs = Ragged(columns["inputs"].values, offsets_of(columns["input_lengths"].values))
    targets = Ragged(columns["targets"].values, offsets_of(columns["target_lengths"].values))
    return PackedRows(inputs, targets, columns["tasks"])


class LaneCursor:
    """A lane's place in its blocks; holds at most the block in hand, compact."""

    def __init__(self, lane: int, position: Position, blocks: BlockSource) -> None:
        self.lane = lane
        self._round, self._row = position
        self._blocks = blocks
        self._table: pa.Table | None = None
        self.begun: list[pa.Table] = []
        """Blocks of which the first row was taken, since somebody last emptied this list."""

    @property
    def position(self) -> Position:
        """Round, and row within the block of that round."""
        return self._round, self._row

    def take(self, count: int) -> list[pa.Table]:
        """The next rows, from as many blocks as it needs; blocks may be empty."""
        taken = []
        while count:
            block = self._block()
            here = min(count, len(block) - self._row)
            if here:
                taken.append(block.slice(self._row, here))
                self.begun += [block] if self._row == 0 else []
            self._row += here
            count -= here
            if self._row >= len(block):
                self._round, self._row, self._table = self._round + 1, 0, None
        return taken

    def held(self) -> pa.Table | None:
        """The rows of the block in hand that are still to come; None where no block was begun."""
        return self._block().slice(self._row) if self._row else None

    def _block(self) -> pa.Table:
        if self._table is None:
            self._table = self._blocks.get(self.lane, self._round)
        return self._table


class RankStream:
    """The batches of one rank, from step 0 or from a state."""

    def __init__(
        self,
        stream: MixtureStream,
        rank: int = 0,
        world_size: int = 1,
        state: Mapping[str, Any] | None = None,
        blocks: BlockSource | None = None,
    ) -> None:
        self.stream = stream
        self.step = state["step"] if state else 0
        positions = lane_positions(stream.spec, rank, world_size, state)
        blocks = blocks or InlineBlocks(stream)
        self._cursors = [LaneCursor(lane, position, blocks) for lane, position in positions.items()]

    def next_batch(self) -> Batch:
        """This rank's rows of the next global batch."""
        spec = self.stream.spec
        taken = [table for cursor in self._cursors for table in cursor.take(spec.rows_per_lane)]
        lanes = np.array([cursor.lane for cursor in self._cursors], dtype=np.int64)
        rows = (lanes[:, None] * spec.rows_per_lane + np.arange(spec.rows_per_lane)).reshape(-1)
        batch = to_batch(spec, self.step, rows, pa.concat_tables(taken))
        batch.counters["drawn"] = self._newly_drawn()
        self.step += 1
        return batch

    def _newly_drawn(self) -> Int64:
        """Examples per task index in the blocks that were begun since the last batch."""
        drawn = np.zeros(len(self.stream.spec.tasks), dtype=np.int64)
        for cursor in self._cursors:
            for block in cursor.begun:
                drawn += np.bincount(ragged_column(block, "tasks").values, minlength=len(drawn))
            cursor.begun.clear()
        return drawn

    def state(self) -> dict[str, Any]:
        """Where this rank's lanes stand, as JSON values; `merge_states` joins those of all ranks."""
        return stream_state(self.stream.spec, self.step, {cursor.lane: cursor.position for cursor in self._cursors})

    def in_lanes(self) -> Int64:
        """Examples per task index that were drawn into this rank's blocks and not yet given out."""
        held = [rows for cursor in self._cursors if (rows := cursor.held()) is not None]
        none = np.zeros(len(self.stream.spec.tasks), dtype=np.int64)
        return sum((count_rows(ragged_columns(rows), len(none))["examples"] for rows in held), none)


def stream_state(spec: StreamSpec, step: int, positions: Mapping[int, Position]) -> dict[str, Any]:
    """Where lanes stand before a step, as JSON values."""
    lanes = [[lane, *position] for lane, position in sorted(positions.items())]
    return {"stream": spec.fingerprint, "step": step, "lanes": lanes}


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state from those of all ranks, from which any number of ranks can go on."""
    heads = {(state["stream"], state["step"]) for state in states}
    if len(heads) != 1:
        raise RunError(f"the ranks' stream states are not of one step of one stream: {sorted(heads)}")
    return {**states[0], "lanes": sorted(lane for state in states for lane in state["lanes"])}


def lane_positions(
    spec: StreamSpec, rank: int, world_size: int, state: Mapping[str, Any] | None
) -> dict[int, Position]:
    """The lanes that a rank owns and where they begin: at a state, or at the start."""
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} of {world_size} ranks does not exist")
    if world_size > spec.lanes:
        raise ConfigError(
            f"{world_size} workers share {spec.lanes} lanes, so some would have none: "
            f"use at most {spec.lanes} workers, or start another run with more lanes"
        )
    owned = range(rank, spec.lanes, world_size)
    if state is None:
        return dict.fromkeys(owned, (0, 0))
    if state["stream"] != spec.fingerprint:
        raise RunError(
            f"the saved state is of the stream {state['stream']}, this run's stream is {spec.fingerprint}: "
            "its data, rates, lengths, lanes or seed were changed"
        )
    positions = {lane: (round_, row) for lane, round_, row in state["lanes"]}
    if missing := [lane for lane in owned if lane not in positions]:
        raise RunError(f"the saved state lacks lanes {missing}: it must hold all {spec.lanes} lanes of the run")
    return {lane: positions[lane] for lane in owned}


def drawn(stream: MixtureStream, state: Mapping[str, Any]) -> Int64:
    """Examples per task index in all blocks that the lanes of a state have begun.

    Minus the examples of all batches before the state, this is what the lanes hold.
    """
    tasks = range(len(stream.spec.tasks))
    complete = min(round_ for _, round_, _ in state["lanes"])
    before = complete * stream.spec.lanes
    total = np.array([stream.schedule.drawn_before(task, before) for task in tasks], dtype=np.int64)
    for lane, round_, row in state["lanes"]:
        for begun in range(complete, round_ + (row > 0)):
            total += np.array(stream.schedule.counts(stream.block_of(begun, lane)), dtype=np.int64)
    return total
