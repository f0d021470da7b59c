"""The stream: which rows block g has. A pure function of a `StreamSpec` and a number.

    spec -> schedule: draws of block g -> order: shard and row of each draw -> cache: tokens
         -> objective -> trim, EOS -> pack -> shuffle the rows -> a table, one line a packed row

Blocks are dealt to lanes: of every `lanes` consecutive blocks (a round) each lane owns one. `lanes.py` turns lanes
into batches.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixtura.platform.data.answer_window import answer_window
from mixtura.platform.data.cache import TokenCache, open_cache
from mixtura.platform.data.mixture import ONE
from mixtura.platform.data.objectives import Objective, make_objective
from mixtura.platform.data.packing import PACKINGS, pack, trim_and_append_eos
from mixtura.platform.data.permutation import EpochOrder, shard_order
from mixtura.platform.data.ragged import Int64, Ragged
from mixtura.platform.data.schedule import Schedule
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.random_bits import derive, key, order

STREAM_VERSION = 1
"""Part of every key: a stream of another version has other batches."""


def order_key(seed: int, task: str) -> int:
    """The key of the order in which a task's examples are visited."""
    return key("stream", STREAM_VERSION, seed, "order", task)


def first_epoch_shards(seed: int, task: str, count: int) -> list[int]:
    """The shards of a task in the order in which its first epoch visits them, `window_shards` at a time."""
    return shard_order(order_key(seed, task), 0, count).tolist()


@dataclass(frozen=True)
class StreamTask:
    """One task of a stream. Its keys come from the seed and its name, so tasks beside it do not matter."""

    name: str
    cache: str
    """folder of its token cache; not part of the stream's identity but for its last part, which has the cache's key"""
    rate_bits: int
    """integer rate; those of all tasks sum to 2^64"""
    objective: str | None = None
    """how an unsupervised task becomes inputs and targets; None for a supervised one"""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """of the objective"""
    split: str = "train"
    around_answer: bool = False
    """whether inputs that are too long are cut around their targets, see `answer_window`, rather than at their end"""


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides the batches of a run. Plain values: it is stored with the run and sent to builders."""

    seed: int
    tasks: tuple[StreamTask, ...]
    block_size: int
    """draws per block"""
    lanes: int
    """divides global_batch_size; the most ranks there can be"""
    global_batch_size: int
    """rows per step over all ranks"""
    inputs_length: int
    targets_length: int
    packing: str
    eos_id: int
    first_sentinel: int
    vocabulary_size: int
    window_shards: int = 8
    """shards read side by side in one part of an epoch"""
    segment_rows: int = 16
    """neighbouring rows that are visited together"""
    version: int = STREAM_VERSION

    def __post_init__(self) -> None:
        self._check_numbers()
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ConfigError(f"a task may be in a stream once; found {', '.join(names)}")
        if sum(task.rate_bits for task in self.tasks) != ONE:
            raise ConfigError("the integer rates of a stream must sum to 2^64: make them with integer_rates")
        if self.packing not in PACKINGS:
            raise UnknownNameError("packing", self.packing, PACKINGS)
        for task in self.tasks:
            self.objective_of(task)

    def _check_numbers(self) -> None:
        if self.version != STREAM_VERSION:
            raise ConfigError(
                f"this stream is of version {self.version}, this program makes version {STREAM_VERSION}: "
                "use the program that made it, or start another run"
            )
        positive = ("block_size", "lanes", "global_batch_size", "window_shards", "segment_rows")
        for name, least in {**dict.fromkeys(positive, 1), "inputs_length": 2, "targets_length": 2}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.global_batch_size % self.lanes:
            raise ConfigError(
                f"lanes is {self.lanes}, which does not divide global_batch_size {self.global_batch_size}: "
                "every lane gives the same number of rows to a batch; change one of them"
            )
        for name in ("eos_id", "first_sentinel"):
            if not 0 < getattr(self, name) < self.vocabulary_size:
                raise ConfigError(f"{name} is {getattr(self, name)}, outside a vocabulary of {self.vocabulary_size}")

    def objective_of(self, task: StreamTask) -> Objective | None:
        """The objective of an unsupervised task, checked against the lengths."""
        if task.objective is None:
            return None
        objective = make_objective(task.objective, self.first_sentinel, task.parameters)
        objective.piece_length(self.inputs_length, self.targets_length)
        return objective

    @property
    def rows_per_lane(self) -> int:
        """Rows that every lane gives to a global batch."""
        return self.global_batch_size // self.lanes

    def key(self, *parts: int | str) -> int:
        """A key of this stream."""
        return key("stream", self.version, self.seed, *parts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` is the inverse."""
        return {**dataclasses.asdict(self), "tasks": [dataclasses.asdict(task) for task in self.tasks]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamSpec:
        """From what `to_dict` gave, also after a way through JSON."""
        return cls(**{**values, "tasks": tuple(StreamTask(**task) for task in values["tasks"])})

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that two specs share if they make the same batches; where the caches lie does not matter."""
        values = self.to_dict()
        for task in values["tasks"]:
            task["cache"] = Path(task["cache"]).name
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


class _TaskReader:
    """The examples of one task, by draw number."""

    def __init__(self, spec: StreamSpec, task: StreamTask) -> None:
        self._cache = open_cache(task.cache, task.split)
        self._objective = spec.objective_of(task)
        if (self._objective is None) != (self._cache.kind == "supervised"):
            need = "needs an objective" if self._objective is None else "takes no objective"
            raise ConfigError(f"task {task.name!r} has {self._cache.kind} data and {need}, found {task.objective!r}")
        if self._objective is None:
            rows = self._cache.shard_rows
        else:
            self._length = self._objective.piece_length(spec.inputs_length, spec.targets_length)
            rows = self._cache.pieces(self._length)
        if not any(rows):
            raise ConfigError(f"task {task.name!r} has a rate but no examples in split {task.split!r}: set its rate 0")
        self._order = EpochOrder(order_key(spec.seed, task.name), rows, spec.window_shards, spec.segment_rows)
        self._key = spec.key("objective", task.name)
        self._window = spec.inputs_length - 1 if task.around_answer else None

    @property
    def size(self) -> int:
        """Examples of an epoch."""
        return self._order.size

    def examples(self, draws: npt.NDArray[np.uint64]) -> tuple[Ragged, Ragged]:
        """Inputs and targets of these draws, untrimmed and without EOS."""
        shards, rows = self._order.locate(draws)
        if self._objective is None:
            inputs, targets = _gather(shards, rows, self._cache.examples)
            if self._window is not None:
                inputs = around_answers(inputs, targets, self._window, derive(self._key, *self._order.split(draws)))
            return inputs, targets
        (pieces,) = _gather(shards, rows, functools.partial(_fetch_pieces, self._cache, self._length))
        epochs, positions = self._order.split(draws)
        return self._objective.apply(pieces, derive(self._key, epochs, positions))


def around_answers(inputs: Ragged, targets: Ragged, length: int, keys: npt.NDArray[np.uint64]) -> Ragged:
    """Inputs longer than `length` cut around their answers; those without the answer stay, and lose their end later."""
    if int(inputs.lengths.max(initial=0)) <= length:
        return inputs
    pairs = zip(inputs.to_lists(), targets.to_lists(), keys, strict=True)
    return Ragged.from_lists([answer_window(text, answer, length, int(key)) or text for text, answer, key in pairs])


def _fetch_pieces(cache: TokenCache, length: int, shard: int, rows: Int64) -> tuple[Ragged]:
    return (cache.fetch_pieces(shard, rows, length),)


def _gather(shards: Int64, rows: Int64, fetch: Callable[[int, Int64], tuple[Ragged, ...]]) -> tuple[Ragged, ...]:
    """Fetch rows shard by shard and put them back in the order that was asked for."""
    groups = [np.flatnonzero(shards == shard) for shard in np.unique(shards)]
    fetched = [fetch(int(shards[group[0]]), rows[group]) for group in groups]
    if len(groups) == 1:
        return fetched[0]
    place = np.argsort(np.concatenate(groups))
    return tuple(Ragged.concatenate(column).take(place) for column in zip(*fetched, strict=True))


class MixtureStream:
    """Builds the blocks of a spec. Caches are opened and verified at the first block, or by `open`."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec
        names = [task.name for task in spec.tasks]
        phases = [spec.key("phase", name) for name in names]
        rates = [task.rate_bits for task in spec.tasks]
        self.schedule = Schedule(rates, phases, spec.block_size, spec.key("block"))

    def open(self) -> None:
        """Open and verify all caches now, so that what is wrong is said before anything starts."""
        _ = self._readers

    @functools.cached_property
    def _readers(self) -> list[_TaskReader | None]:
        return [_TaskReader(self.spec, task) if task.rate_bits else None for task in self.spec.tasks]

    @property
    def epoch_sizes(self) -> dict[str, int]:
        """Examples in an epoch of every task that has a rate."""
        pairs = zip(self.spec.tasks, self._readers, strict=True)
        return {task.name: reader.size for task, reader in pairs if reader is not None}

    def block_of(self, round_: int, lane: int) -> int:
        """Which block a lane owns in a round: `lanes` consecutive blocks are dealt by a permutation of their own."""
        dealt = order(int(derive(self.spec.key("lanes"), round_)), self.spec.lanes)
        return round_ * self.spec.lanes + int(dealt[lane])

    def build_block(self, block: int) -> pa.Table:
        """The packed rows of a block. Columns, all lists:

        inputs, targets                 tokens of the row (int32)
        input_lengths, target_lengths   of its segments (int32)
        tasks, draws                    of its segments: task index (int32) and draw number (int64)
        inputs_trimmed, targets_trimmed tokens that its segments lost (int32)
        """
        spec = self.spec
        tasks, draws = self.schedule.draws(block)
        inputs, targets = self._fetch(tasks, draws)
        inputs, inputs_trimmed = trim_and_append_eos(inputs, spec.inputs_length, spec.eos_id)
        targets, targets_trimmed = trim_and_append_eos(targets, spec.targets_length, spec.eos_id)
        rows = pack(spec.packing, inputs.lengths, targets.lengths, spec.inputs_length, spec.targets_length)
        counts = np.bincount(rows)
        shuffled = order(int(derive(spec.key("rows"), block)), len(counts))
        examples = np.argsort(np.argsort(shuffled)[rows], kind="stable")
        per_row = counts[shuffled]
        inputs, targets = inputs.take(examples), targets.take(examples)
        segments: dict[str, npt.NDArray[Any]] = {
            "input_lengths": inputs.lengths,
            "target_lengths": targets.lengths,
            "tasks": tasks[examples],
            "draws": draws[examples],
            "inputs_trimmed": inputs_trimmed[examples],
            "targets_trimmed": targets_trimmed[examples],
        }
        columns = {"inputs": inputs.grouped(per_row), "targets": targets.grouped(per_row)}
        columns |= {
            name: Ragged(values, np.arange(len(values) + 1)).grouped(per_row) for name, values in segments.items()
        }
        return pa.table([columns[name].to_arrow().cast(kind) for name, kind in BLOCK_COLUMNS.items()], schema=SCHEMA)

    def _fetch(self, tasks: npt.NDArray[np.int32], draws: npt.NDArray[np.uint64]) -> tuple[Ragged, Ragged]:
        groups = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
        examples = [self._read(int(tasks[group[0]]), draws[group]) for group in groups]
        if not groups:
            return Ragged.from_lists([]), Ragged.from_lists([])
        place = np.argsort(np.concatenate(groups))
        inputs, targets = zip(*examples, strict=True)
        return Ragged.concatenate(inputs).take(place), Ragged.concatenate(targets).take(place)

    def _read(self, task: int, draws: npt.NDArray[np.uint64]) -> tuple[Ragged, Ragged]:
        reader = self._readers[task]
        assert reader is not None, "a task without a rate is never drawn"
        return reader.examples(draws)


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


def count_rows(rows: pa.Table, tasks: int) -> dict[str, Int64]:
    """What is in packed rows, per task index: [tasks] each.

    examples; input_tokens and target_tokens with EOS; trimmed_inputs and trimmed_targets, the examples cut to fit;
    trimmed_input_tokens and trimmed_target_tokens, what they lost. Counts of blocks or batches add up.
    """
    of_task = ragged_column(rows, "tasks").values
    per_segment = {
        name: ragged_column(rows, name).values for name in BLOCK_COLUMNS if name not in ("inputs", "targets")
    }

    def total(values: npt.NDArray[Any]) -> Int64:
        return np.bincount(of_task, weights=values, minlength=tasks).astype(np.int64)

    return {
        "examples": total(np.ones(len(of_task))),
        "input_tokens": total(per_segment["input_lengths"]),
        "target_tokens": total(per_segment["target_lengths"]),
        "trimmed_inputs": total(per_segment["inputs_trimmed"] > 0),
        "trimmed_targets": total(per_segment["targets_trimmed"] > 0),
        "trimmed_input_tokens": total(per_segment["inputs_trimmed"]),
        "trimmed_target_tokens": total(per_segment["targets_trimmed"]),
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
