"""The examples of one task of a stream, by draw number: where they are, how long they are, and their tokens.

Lengths come without tokens, so that a stream can be walked without reading any; `Drawn` then copies the tokens to where
the packed rows want them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.answer_window import answer_window
from mixtura.platform.data.cache import TokenCache, open_cache
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.objectives import Objective
from mixtura.platform.data.overlap import load_ranges
from mixtura.platform.data.permutation import EpochOrder, Places
from mixtura.platform.data.pieces import ContiguousPieces, Pieces, PiecesWithout, make_pieces
from mixtura.platform.data.ragged import Int64, Ragged, ranges
from mixtura.platform.data.stream_spec import StreamSpec, StreamTask, order_key
from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import derive

Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]
Lengths = tuple[Int64, Int64]
"""of inputs and of targets, [draws] each"""


@dataclass(frozen=True)
class Copy:
    """Where the tokens of one side are wanted: the first `kept` tokens of draw k go to `out[starts[k]:]`."""

    out: Int32
    starts: Int64
    kept: Int64


@dataclass(frozen=True)
class Origin:
    """Where an example is from: the epoch, the shard, and its rows there (documents, of unsupervised text)."""

    epoch: int
    shard: int
    first_row: int
    last_row: int


class Drawn(Protocol):
    """Some draws of a task."""

    lengths: Lengths
    """untrimmed, without EOS"""

    def copy(self, inputs: Copy, targets: Copy) -> None:
        """Copy their tokens."""


class TaskReader:
    """A task's examples by draw number; waits where a draw needs a shard that is still being prepared."""

    def __init__(self, spec: StreamSpec, task: StreamTask, copies: Copies | None = None) -> None:
        self.name = task.name
        self.cache = open_cache(task.cache, task.split, copies)
        objective = spec.objective_of(task)
        if (objective is None) != (self.cache.kind == "supervised"):
            need = "needs an objective" if objective is None else "takes no objective"
            raise ConfigError(f"task {task.name!r} has {self.cache.kind} data and {need}, found {task.objective!r}")
        if self.cache.closed and not (self.cache.rows if objective is None else self.cache.tokens):
            raise ConfigError(f"task {task.name!r} has a rate but no examples in split {task.split!r}: set its rate 0")
        key = spec.key("objective", task.name)
        self._source: _Supervised | _Unsupervised
        if objective is None:
            self._source = _Supervised(self.cache, task, spec.inputs_length - 1 if task.around_answer else None, key)
        else:
            self._source = _Unsupervised(self.cache, task, spec, objective, key, copies)
        rows_of: Callable[[int], int] = self._source.rows_of
        shards = self._source.shards
        if task.first_examples is not None:
            kept = list(_first(task.first_examples, shards, rows_of))
            shards, rows_of = len(kept), kept.__getitem__
        self._held = task.first_examples is not None or task.first_tokens is not None
        self.order = EpochOrder(
            order_key(spec.seed, task.name),
            shards,
            rows_of,
            spec.window_shards,
            spec.segment_rows,
            read_ahead=self.cache.read_ahead,
        )

    @property
    def size(self) -> int | None:
        """Examples of an epoch; None while shards of the source are still being prepared."""
        if self.order.known_size is None and not self.cache.closed and not self._held:
            return None
        return self.order.size

    @property
    def known_size(self) -> int | None:
        """The same where no shard need be opened for it."""
        return self.size if self._source.counts_are_listed else self.order.known_size

    @property
    def longest_targets(self) -> int:
        """The most tokens of an example's targets, without EOS; where chance decides, the most that there can be."""
        return self._source.longest_targets()

    def origin(self, draw: int) -> Origin:
        """Where a draw's example is from."""
        places = self.order.locate(draw, 1)
        return self._source.origin(int(places.epochs[0]), int(places.shards[0]), int(places.rows[0]))

    def draw(self, first: int, count: int) -> Drawn:
        """Draws first ... first + count - 1."""
        return self._source.draw(self.order.locate(first, count))

    def lengths(self, first: int, count: int) -> Lengths:
        """Their lengths alone, untrimmed and without EOS."""
        return self._source.lengths(self.order.locate(first, count))


def _first(rows: int, shards: int, rows_of: Callable[[int], int]) -> Iterator[int]:
    """How many of the first rows in the order of shards each shard has."""
    for shard in range(shards):
        if rows <= 0:
            return
        here = min(rows, rows_of(shard))
        yield here
        rows -= here


class _Supervised:
    """Rows of inputs and targets."""

    counts_are_listed = True

    def __init__(self, cache: TokenCache, task: StreamTask, window: int | None, key: int) -> None:
        self._cache, self._window, self._key = cache, window, key
        self._held = None if task.first_tokens is None else list(self._rows_of_first_tokens(task.first_tokens))
        self.shards = cache.count if self._held is None else len(self._held)

    def rows_of(self, shard: int) -> int:
        return int(self._cache.entry(shard)["rows"]) if self._held is None else self._held[shard]

    def origin(self, epoch: int, shard: int, row: int) -> Origin:
        return Origin(epoch, shard, row, row)

    def longest_targets(self) -> int:
        entries = (self._cache.entry(shard) for shard in range(self.shards))
        return max((int(entry["columns"]["targets"]["longest"]) for entry in entries), default=0)

    def _rows_of_first_tokens(self, tokens: int) -> Iterator[int]:
        """Of each shard the rows whose tokens, inputs and targets together, are among the first; at least one row."""
        for shard in range(self._cache.count):
            if tokens <= 0:
                return
            inputs, targets = (self._cache.column(shard, name) for name in ("inputs", "targets"))
            behind = inputs.offsets[1:] + targets.offsets[1:]
            rows = int(np.searchsorted(behind, tokens, side="right"))
            yield max(rows, 1) if shard == 0 and len(behind) else rows
            if rows < len(behind):
                return
            tokens -= int(behind[-1]) if len(behind) else 0

    def draw(self, places: Places) -> _DrawnRows:
        groups = list(by_shard(places.shards))
        sides = tuple([self._cache.column(shard, name) for shard, _ in groups] for name in ("inputs", "targets"))
        drawn = _DrawnRows(places, groups, (sides[0], sides[1]))
        if self._window is not None and int(drawn.lengths[0].max(initial=0)) > self._window:
            drawn.around_answers(self._window, derive(self._key, places.epochs, places.positions))
        return drawn

    def lengths(self, places: Places) -> Lengths:
        # A window around the answer has the length to which its inputs would have been cut.
        groups = list(by_shard(places.shards))
        columns = ([self._cache.column(shard, name) for shard, _ in groups] for name in ("inputs", "targets"))
        inputs, targets = (_row_lengths(side, groups, places.rows) for side in columns)
        return inputs, targets


Group = tuple[int, Int64 | slice]
"""A shard, and which draws are in it."""


def by_shard(shards: Int64) -> Iterator[Group]:
    """Every shard, and which draws are in it.

    >>> [(shard, here.tolist()) for shard, here in by_shard(np.array([4, 1, 4]))]
    [(1, [1]), (4, [0, 2])]
    """
    if len(shards) and int(shards.min()) == int(shards.max()):
        yield int(shards[0]), slice(None)
        return
    order = np.argsort(shards, kind="stable")
    borders = np.flatnonzero(np.diff(shards[order])) + 1
    for here in np.split(order, borders) if len(order) else ():
        yield int(shards[here[0]]), here


def _row_lengths(columns: Sequence[Ragged], groups: Sequence[Group], rows: Int64) -> Int64:
    lengths = np.empty(len(rows), dtype=np.int64)
    for column, (_, here) in zip(columns, groups, strict=True):
        at = rows[here]
        lengths[here] = column.offsets[at + 1] - column.offsets[at]
    return lengths


class _DrawnRows:
    """Rows of a supervised task, in its shards' columns."""

    def __init__(
        self, places: Places, groups: Sequence[Group], sides: tuple[Sequence[Ragged], Sequence[Ragged]]
    ) -> None:
        self._rows, self._groups, self._sides = places.rows, groups, sides
        self._windows: dict[int, Int32] = {}
        inputs, targets = (_row_lengths(side, groups, places.rows) for side in sides)
        self.lengths = inputs, targets

    def around_answers(self, length: int, keys: UInt64) -> None:
        """Cut inputs longer than `length` around their answers; those without the answer lose their end, as others."""
        for columns, targets, (_, here) in zip(*self._sides, self._groups, strict=True):
            for draw in np.arange(len(self._rows))[here].tolist():
                if self.lengths[0][draw] <= length:
                    continue
                row = self._rows[draw]
                text = columns.values[columns.offsets[row] : columns.offsets[row + 1]]
                answer = targets.values[targets.offsets[row] : targets.offsets[row + 1]]
                window = answer_window(text.tolist(), answer.tolist(), length, int(keys[draw]))
                if window is not None:
                    self._windows[draw] = np.asarray(window, dtype=np.int32)

    def copy(self, inputs: Copy, targets: Copy) -> None:
        """From the columns, all draws of a shard at once."""
        for columns, wanted in zip(self._sides, (inputs, targets), strict=True):
            for column, (_, here) in zip(columns, self._groups, strict=True):
                kept = wanted.kept[here]
                source = ranges(column.offsets[self._rows[here]], kept)
                wanted.out[ranges(wanted.starts[here], kept)] = column.values[source]
        for draw, window in self._windows.items():
            length, start = int(inputs.kept[draw]), int(inputs.starts[draw])
            inputs.out[start : start + length] = window[:length]


class _Unsupervised:
    """Pieces of text, made into examples by an objective."""

    def __init__(
        self,
        cache: TokenCache,
        task: StreamTask,
        spec: StreamSpec,
        objective: Objective,
        key: int,
        copies: Copies | None,
    ) -> None:
        self._cache, self._objective, self._key = cache, objective, key
        self._pieces: Pieces = make_pieces(
            cache,
            spec.piece_length(task),
            chunks=spec.chunks,
            concatenates=objective.concatenates,
            first_tokens=task.first_tokens,
        )
        if task.overlap is not None:
            self._pieces = PiecesWithout(self._pieces, functools.partial(load_ranges, task.overlap, copies=copies))
        self.shards, self.rows_of = self._pieces.shards, self._pieces.count
        self.counts_are_listed = isinstance(self._pieces, ContiguousPieces)
        of_pieces = np.array([spec.piece_length(task)]), np.zeros(1, dtype=np.uint64)
        most = spec.limits_of(task)[1] - 1
        self._longest_targets = int(objective.lengths(*of_pieces)[1][0]) if objective.fixed_lengths else most

    def origin(self, epoch: int, shard: int, row: int) -> Origin:
        start, end = (int(side[row]) for side in self._pieces.spans(shard))
        offsets = self._cache.column(shard, "tokens").offsets
        first, last = np.searchsorted(offsets, [start, end - 1], side="right").tolist()
        return Origin(epoch, shard, first - 1, last - 1)

    def longest_targets(self) -> int:
        return self._longest_targets

    def _keys(self, places: Places) -> UInt64:
        return derive(self._key, places.epochs, places.positions)

    def draw(self, places: Places) -> _DrawnExamples:
        groups = list(by_shard(places.shards))
        pieces = [self._pieces.fetch(shard, places.rows[here]) for shard, here in groups]
        order = _order_of(groups, len(places.rows))
        keys = self._keys(places)
        if order is not None:
            keys = keys[order]
        joined = pieces[0] if len(pieces) == 1 else Ragged.concatenate(pieces)
        return _DrawnExamples(*self._objective.apply(joined, keys), order)

    def lengths(self, places: Places) -> Lengths:
        lengths = np.empty(len(places.rows), dtype=np.int64)
        for shard, here in by_shard(places.shards):
            lengths[here] = self._pieces.lengths(shard, places.rows[here])
        return self._objective.lengths(lengths, self._keys(places))


def _order_of(groups: Sequence[Group], count: int) -> Int64 | None:
    """Which draw stands at each place, shard by shard; None where they stand in their own order."""
    if len(groups) == 1:
        return None
    return np.concatenate([np.arange(count)[here] for _, here in groups])


class _DrawnExamples:
    """Examples that an objective made, shard by shard; `order` says which draw each is."""

    def __init__(self, inputs: Ragged, targets: Ragged, order: Int64 | None) -> None:
        self._sides, self._order = (inputs, targets), order
        if order is None:
            self.lengths = inputs.lengths, targets.lengths
        else:
            sides = tuple(np.empty(len(order), dtype=np.int64) for _ in range(2))
            for lengths, side in zip(sides, self._sides, strict=True):
                lengths[order] = side.lengths
            self.lengths = sides[0], sides[1]

    def copy(self, inputs: Copy, targets: Copy) -> None:
        """All at once."""
        for side, wanted in zip(self._sides, (inputs, targets), strict=True):
            starts, kept = wanted.starts, wanted.kept
            if self._order is not None:
                starts, kept = starts[self._order], kept[self._order]
            whole = int(kept.sum()) == len(side.values)
            values = side.values if whole else side.values[ranges(side.offsets[:-1], kept)]
            wanted.out[ranges(starts, kept)] = values
