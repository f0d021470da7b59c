"""The stream: which rows block g has. A pure function of a `StreamSpec` and a number.

    spec -> schedule: draws of block g -> order: shard and row of each draw -> lengths of its examples
         -> pack -> shuffle the rows -> copy tokens, objective, EOS to their places -> a table, one line a packed row

Blocks are dealt to lanes: of every `lanes` consecutive blocks (a round) each lane owns one. `lanes.py` turns lanes
into batches. How many rows a block has follows from lengths alone, without a token: `stream_index.py` walks that way.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.packing import pack, trimmed_lengths
from mixtura.platform.data.ragged import Int64, Ragged, offsets_of, ranges
from mixtura.platform.data.schedule import Draws, SampledSchedule, Schedule
from mixtura.platform.data.stream_spec import StreamSpec, StreamTask, phase
from mixtura.platform.data.task_reader import Copy, TaskReader
from mixtura.platform.random_bits import derive, order

__all__ = ["MixtureStream", "StreamSpec", "StreamTask", "count_rows", "plan_window", "ragged_column", "ragged_columns"]


@dataclass(frozen=True)
class _Sides:
    """One side of a block's examples, task by task: [draws] each."""

    lengths: Int64
    """with EOS"""
    trimmed: Int64
    """tokens lost"""


class MixtureStream:
    """Builds the blocks of a spec. Caches are opened and verified at the first block, or by `open`."""

    def __init__(self, spec: StreamSpec, copies: Copies | None = None) -> None:
        self.spec, self.copies = spec, copies
        rates = [task.rate_bits for task in spec.tasks]
        self.schedule: Draws
        if spec.draws == "sampled":
            self.schedule = SampledSchedule(rates, spec.block_size, spec.key("draws"))
        else:
            phases = [phase(spec.seed, task.name) for task in spec.tasks]
            self.schedule = Schedule(rates, phases, spec.block_size, spec.key("block"), spec.changes)
        self._lane_key, self._rows_key = spec.key("lanes"), spec.key("rows")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, so that any process can make it again."""
        copies = None if self.copies is None else dataclasses.asdict(self.copies)
        return {"spec": self.spec.to_dict(), "copies": copies}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixtureStream:
        """From what `to_dict` gave."""
        copies = None if values["copies"] is None else Copies(**values["copies"])
        return cls(StreamSpec.from_dict(values["spec"]), copies)

    def open(self) -> None:
        """Open and verify all caches now, so that what is wrong is said before anything starts."""
        _ = self._readers

    @functools.cached_property
    def _readers(self) -> list[TaskReader | None]:
        drawn = [
            any((task.rate_bits, *(change.rates[at] for change in self.spec.changes)))
            for at, task in enumerate(self.spec.tasks)
        ]
        return [
            TaskReader(self.spec, task, self.copies) if is_drawn else None
            for task, is_drawn in zip(self.spec.tasks, drawn, strict=True)
        ]

    @property
    def epoch_sizes(self) -> dict[str, int | None]:
        """Examples in an epoch of every task that has a rate; None while a source is still being prepared."""
        pairs = zip(self.spec.tasks, self._readers, strict=True)
        return {task.name: reader.size for task, reader in pairs if reader is not None}

    @property
    def known_epoch_sizes(self) -> dict[str, int]:
        """Those that are known already, or cost nothing to know."""
        pairs = zip(self.spec.tasks, self._readers, strict=True)
        sizes = {task.name: reader.known_size for task, reader in pairs if reader is not None}
        return {name: size for name, size in sizes.items() if size is not None}

    def reader(self, task: int) -> TaskReader:
        """The examples of a task that has a rate."""
        reader = self._readers[task]
        assert reader is not None, "a task without a rate is never drawn"
        return reader

    def block_of(self, round_: int, lane: int) -> int:
        """Which block a lane owns in a round: `lanes` consecutive blocks are dealt by a permutation of their own."""
        return round_ * self.spec.lanes + int(self.dealt(round_)[lane])

    def dealt(self, round_: int) -> Int64:
        """Which block of a round each lane owns, from 0: [lanes]."""
        return order(int(derive(self._lane_key, round_)), self.spec.lanes)

    def example_lengths(self, block: int) -> tuple[Int64, Int64]:
        """Lengths of the inputs and targets of a block's examples with EOS, in the order in which they are packed."""
        counts = self.schedule.counts(block)
        lengths = [
            self.reader(task).lengths(self.schedule.drawn_before(task, block), count)
            for task, count in enumerate(counts)
            if count
        ]
        if not lengths:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        inputs, targets = self._sides(counts, [np.concatenate(side) for side in zip(*lengths, strict=True)])
        drawn_order = self.schedule.order(block)
        return inputs.lengths[drawn_order], targets.lengths[drawn_order]

    def count_rows(self, first: int, stop: int) -> Int64:
        """How many packed rows blocks first ... stop - 1 have, from lengths alone: [blocks]."""
        tasks = range(len(self.spec.tasks))
        before = np.array(
            [[self.schedule.drawn_before(task, block) for task in tasks] for block in range(first, stop + 1)]
        )
        counts = np.diff(before, axis=0)  # [blocks, tasks]
        drawn = before[-1] - before[0]
        lengths = [self.reader(task).lengths(int(before[0, task]), int(drawn[task])) for task in tasks if drawn[task]]
        if not lengths:
            return np.zeros(stop - first, dtype=np.int64)
        inputs, targets = self._sides(drawn, [np.concatenate(side) for side in zip(*lengths, strict=True)])
        # of each block the draws, task by task, among all draws of each task
        starts = offsets_of(drawn)[:-1] + before[:-1] - before[0]
        places = ranges(starts.ravel(), counts.ravel())
        borders = offsets_of(counts.sum(axis=1)).tolist()
        rows = []
        for number, block in enumerate(range(first, stop)):
            here = places[borders[number] : borders[number + 1]]
            packed = self._pack(self.schedule.order(block), inputs.lengths[here], targets.lengths[here])
            rows.append(int(packed.max(initial=-1)) + 1)
        return np.array(rows, dtype=np.int64)

    def _sides(self, counts: Sequence[int] | Int64, lengths: Sequence[Int64]) -> tuple[_Sides, _Sides]:
        """Trimmed, and with EOS where there is room for one; `counts` is how many draws are of each task."""
        sides = []
        for side, of_draws in enumerate(lengths):
            most = np.repeat([self._limits[task][side] for task in range(len(counts))], counts)
            with_eos = np.where(most > 0, trimmed_lengths(of_draws, most), 0)
            sides.append(_Sides(with_eos, of_draws - with_eos + (most > 0)))
        return sides[0], sides[1]

    @functools.cached_property
    def _limits(self) -> list[tuple[int, int]]:
        return [self.spec.limits_of(task) for task in self.spec.tasks]

    def _pack(self, drawn: Int64, inputs: Int64, targets: Int64) -> Int64:
        """The row of every draw, [draws] task by task; packing sees them in the order `drawn`."""
        encoder, decoder = self.spec.row_lengths
        inputs, targets = inputs[drawn], targets[drawn]
        if self.spec.joined:
            inputs = targets = inputs + targets
            encoder = decoder
        rows = np.empty(len(drawn), dtype=np.int64)
        rows[drawn] = pack(self.spec.packing, inputs, targets, encoder, decoder)
        return rows

    def build_block(self, block: int) -> pa.Table:
        """The packed rows of a block. Columns, all lists:

        inputs, targets                 tokens of the row (int32)
        input_lengths, target_lengths   of its segments (int32)
        tasks, draws                    of its segments: task index (int32) and draw number (int64)
        inputs_trimmed, targets_trimmed tokens that its segments lost (int32)
        """
        spec, counts = self.spec, self.schedule.counts(block)
        if not any(counts):
            return SCHEMA.empty_table()
        begins = offsets_of(np.array(counts))
        firsts = [self.schedule.drawn_before(task, block) if count else 0 for task, count in enumerate(counts)]
        drawn = {task: self.reader(task).draw(firsts[task], count) for task, count in enumerate(counts) if count}
        lengths = [np.concatenate([one.lengths[side] for one in drawn.values()]) for side in range(2)]
        inputs, targets = self._sides(counts, lengths)
        drawn_order = self.schedule.order(block)
        rows = self._pack(drawn_order, inputs.lengths, targets.lengths)
        per_row = np.bincount(rows)
        shuffled = order(int(derive(self._rows_key, block)), len(per_row))
        place_of_row = np.argsort(shuffled)
        # draws in the order of the rows, and in a row as they were drawn
        examples = drawn_order[np.argsort(place_of_row[rows[drawn_order]], kind="stable")]
        borders = offsets_of(per_row[shuffled])
        numbers = np.concatenate([np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)])
        columns: dict[str, pa.Array] = {}
        copies = []
        for name, side in (("inputs", inputs), ("targets", targets)):
            offsets = offsets_of(side.lengths[examples])
            values = np.empty(int(offsets[-1]), dtype=np.int32)
            with_eos = side.lengths > 0
            starts = np.empty(len(examples), dtype=np.int64)
            starts[examples] = offsets[:-1]
            values[(starts + side.lengths - 1)[with_eos]] = spec.eos_id
            copies.append((values, starts, side.lengths - with_eos))
            columns[name] = _lists(values, offsets[borders])
        for task, one in drawn.items():
            own = slice(int(begins[task]), int(begins[task + 1]))
            one.copy(*(Copy(values, starts[own], kept[own]) for values, starts, kept in copies))
        columns |= {
            "input_lengths": _lists(inputs.lengths[examples].astype(np.int32), borders),
            "target_lengths": _lists(targets.lengths[examples].astype(np.int32), borders),
            "tasks": _lists(np.repeat(np.arange(len(counts), dtype=np.int32), counts)[examples], borders),
            "draws": _lists(numbers[examples], borders),
            "inputs_trimmed": _lists(inputs.trimmed[examples].astype(np.int32), borders),
            "targets_trimmed": _lists(targets.trimmed[examples].astype(np.int32), borders),
        }
        return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _lists(values: npt.NDArray[Any], borders: Int64) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(borders.astype(np.int32)), pa.array(values))


_TOKENS, _NUMBERS = pa.list_(pa.int32()), pa.list_(pa.int64())
BLOCK_COLUMNS = {
    "inputs": _TOKENS,
    "targets": _TOKENS,
    "input_lengths": _TOKENS,
    "target_lengths": _TOKENS,
    "tasks": _TOKENS,
    "draws": _NUMBERS,
    "inputs_trimmed": _TOKENS,
    "targets_trimmed": _TOKENS,
}
SCHEMA = pa.schema(list(BLOCK_COLUMNS.items()))


def ragged_column(rows: pa.Table, name: str) -> Ragged:
    """One column of a block, of slices of it, or of several joined."""
    chunks = [Ragged.from_arrow(chunk) for chunk in rows.column(name).chunks]
    return Ragged.concatenate(chunks) if chunks else Ragged.from_lists([])


def ragged_columns(rows: pa.Table) -> dict[str, Ragged]:
    """All columns of packed rows."""
    return {name: ragged_column(rows, name) for name in rows.column_names}


def count_rows(columns: Mapping[str, Ragged], tasks: int) -> dict[str, Int64]:
    """What is in packed rows, per task index: [tasks] each.

    examples; input_tokens and target_tokens with EOS; trimmed_inputs and trimmed_targets, the examples cut to fit;
    trimmed_input_tokens and trimmed_target_tokens, what they lost. Counts of blocks or batches add up.
    """
    of_task = columns["tasks"].values

    def total(values: npt.NDArray[Any] | None) -> Int64:
        return np.bincount(of_task, weights=values, minlength=tasks).astype(np.int64)

    return {
        "examples": total(None),
        "input_tokens": total(columns["input_lengths"].values),
        "target_tokens": total(columns["target_lengths"].values),
        "trimmed_inputs": total(columns["inputs_trimmed"].values > 0),
        "trimmed_targets": total(columns["targets_trimmed"].values > 0),
        "trimmed_input_tokens": total(columns["inputs_trimmed"].values),
        "trimmed_target_tokens": total(columns["targets_trimmed"].values),
    }


def plan_window(
    lanes: Sequence[int],
    next_rounds: Mapping[int, int],
    buffered_rows: Mapping[int, float],
    mean_rows: float,
    count: int,
) -> list[tuple[int, int]]:
    """Which blocks to build next, as (lane, round): always for the lane with the fewest rows at hand or planned.

    A block is taken to have `mean_rows`; of equal lanes the first in `lanes` goes first. No lane starves, since a
    batch takes the same number of rows from each.

    >>> plan_window([0, 2], {0: 5, 2: 4}, {0: 90, 2: 0}, mean_rows=60, count=4)
    [(2, 4), (2, 5), (0, 5), (2, 6)]
    """
    rounds = dict(next_rounds)
    waiting = [(float(buffered_rows[lane]), place, lane) for place, lane in enumerate(lanes)]
    heapq.heapify(waiting)
    planned = []
    for _ in range(count if waiting else 0):
        rows, place, lane = waiting[0]
        planned.append((lane, rounds[lane]))
        rounds[lane] += 1
        heapq.heapreplace(waiting, (rows + mean_rows, place, lane))
    return planned
