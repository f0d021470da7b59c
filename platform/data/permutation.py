"""The order in which a task's examples are visited: computed, whatever the epoch, and without a shuffle buffer.

`permute` is a keyed pseudo-random permutation of [0, n): the rank among n words for small n, otherwise a Feistel
network over the next power of two, walked along its cycle until it lands below n (Black and Rogaway 2002, "Ciphers
with arbitrary finite domains").

`EpochOrder` uses it on three levels, so that reads stay local and every epoch has an order of its own:

    shards    |  4  0  2 |  1  3  |        a permutation of the listing, cut into windows of W = 3 shards
    segments  |  segments of S rows of the shards of one window, in a permuted order
    rows      |  the rows of one segment, in a permuted order

Every place can be computed by itself. Of the few windows in use the whole order is kept where they are small, since a
block's draws of a task are neighbours in it.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.ragged import Int64, offsets_of
from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import IntoUInt64, bits, derive, order

UInt64 = npt.NDArray[np.uint64]
Int32 = npt.NDArray[np.int32]

_ROUNDS = 8
_SMALL = 64
"""Up to this count a permutation is the rank among all words, where a Feistel network would be visibly uneven."""

_ONE = np.uint64(1)

_KEPT_ROWS = 1 << 20
"""Of a window with at most so many rows the order is kept (8 bytes a row); of a larger one it is computed per draw."""


def permute(key: IntoUInt64, index: IntoUInt64, count: IntoUInt64) -> UInt64:
    """Where the keyed permutation of [0, count) sends `index`; arrays broadcast; count is 1 to 2^40.

    >>> permute(7, np.arange(6), 6).tolist()
    [2, 0, 5, 4, 3, 1]
    """
    arrays = [np.asarray(array, dtype=np.uint64) for array in (key, index, count)]
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    keys, points, counts = (np.broadcast_to(array, shape).ravel() for array in arrays)
    result = np.empty(len(points), dtype=np.uint64)
    for chosen, way in ((counts <= _SMALL, _rank), (counts > _SMALL, _walk)):
        if chosen.any():
            result[chosen] = way(keys[chosen], points[chosen], counts[chosen])
    return result.reshape(shape)


def _rank(keys: UInt64, points: UInt64, counts: UInt64) -> UInt64:
    """How many of words 0 ... count - 1 are smaller than the point's own: every order is equally likely."""
    others = np.arange(int(counts.max()), dtype=np.uint64)
    words = bits(keys[:, None], others)  # [points, largest count]
    own = bits(keys, points)[:, None]
    return np.asarray(((words < own) & (others < counts[:, None])).sum(axis=1, dtype=np.uint64))


def _walk(keys: UInt64, points: UInt64, counts: UInt64) -> UInt64:
    """A Feistel network over the next power of two, applied until the result is below the count."""
    round_keys = derive(keys, np.arange(_ROUNDS)[:, None])  # [rounds, points]
    # frexp's exponent of n - 1 is its bit length, exact below 2^53
    widths = np.frexp((counts - _ONE).astype(np.float64))[1].astype(np.uint64)
    result = _feistel(round_keys, points, widths)
    while (outside := result >= counts).any():
        result[outside] = _feistel(round_keys[:, outside], result[outside], widths[outside])
    return result


def _feistel(round_keys: UInt64, points: UInt64, widths: UInt64) -> UInt64:
    """A permutation of [0, 2^width): the halves are changed in turns, each by words that the other chooses."""
    low_width = widths >> _ONE
    low_mask = (_ONE << low_width) - _ONE
    high_mask = (_ONE << (widths - low_width)) - _ONE
    low: UInt64 = points & low_mask
    high: UInt64 = points >> low_width
    for even, odd in zip(round_keys[::2], round_keys[1::2], strict=True):
        high = high ^ (bits(even, low) & high_mask)
        low = low ^ (bits(odd, high) & low_mask)
    return np.asarray((high << low_width) | low)


def shard_order(key: int, epoch: int, count: int) -> Int64:
    """The order of a task's shards in an epoch; `key` is the task's."""
    return order(int(derive(key, epoch, 0)), count)


@dataclass(frozen=True)
class Places:
    """Where draws are: shard and row, epoch and position in it, [draws] each."""

    shards: Int64
    rows: Int64
    epochs: UInt64
    positions: UInt64


_NOWHERE = Places(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.uint64))


@dataclass(frozen=True)
class _Window:
    """One window of an epoch: its segments in their order (shard, first row, key of each), offsets within the window.

    `rows` holds the whole order, a shard and a row for each place, where the window is small enough to keep it.
    """

    shards: Int64
    first_rows: Int64
    keys: UInt64
    offsets: Int64
    rows: tuple[Int32, Int32] | None


class EpochOrder:
    """Maps draw j of a task to a shard and a row: epoch j div n, position j mod n, with n the rows of all shards.

    Every row comes once in an epoch. Draws of the first epoch ask only for the row counts of the windows up to their
    own, in the order in which those come; n is asked for where the first epoch ends.
    """

    def __init__(
        self,
        key: int,
        shards: int,
        rows_of: Callable[[int], int],
        window_shards: int,
        segment_rows: int,
        read_ahead: Callable[[list[int]], object] = lambda _: None,
    ) -> None:
        """`rows_of` gives a shard's rows, and may wait until they are known; `read_ahead` is told, when a window is
        begun, the shards that are needed after it."""
        if window_shards < 1 or segment_rows < 1:
            raise ConfigError(
                f"window_shards and segment_rows must be at least 1, found {window_shards} and {segment_rows}"
            )
        self._key, self._count = key, shards
        self._window_shards, self._segment_rows = window_shards, segment_rows
        self._rows_of, self._read_ahead = rows_of, read_ahead
        self._known: dict[int, int] = {}
        self._shards = functools.lru_cache(maxsize=4)(functools.partial(shard_order, key, count=shards))
        # a block lies in one epoch and one window, or at a border; tiny tasks go through many epochs in a block
        self._starts_of_later = functools.lru_cache(maxsize=4)(self._window_starts)
        self._window = functools.lru_cache(maxsize=3)(self._make_window)
        self._first_starts = [0]
        self._size: int | None = None

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return -(-self._count // self._window_shards)

    @property
    def size(self) -> int:
        """Rows of an epoch; asks for the row counts of all shards."""
        if self._size is None:
            self._advance(None)
            self._size = self._first_starts[-1]
            if self._size == 0:
                raise ConfigError("there is nothing to draw from: no shard has a row")
        return self._size

    @property
    def known_size(self) -> int | None:
        """Rows of an epoch where all shards were asked for already."""
        return self._size

    def _advance(self, position: int | None) -> bool:
        """Ask for windows of the first epoch until one ends behind `position`; whether there is such a one."""
        starts = self._first_starts
        while position is None or starts[-1] <= position:
            if len(starts) > self.windows:
                return False
            starts.append(starts[-1] + sum(map(self._rows, self._members(0, len(starts) - 1))))
        return True

    def _rows(self, shard: int) -> int:
        if shard not in self._known:
            self._known[shard] = self._rows_of(shard)
        return self._known[shard]

    def _members(self, epoch: int, window: int) -> list[int]:
        first = window * self._window_shards
        members: list[int] = self._shards(epoch)[first : first + self._window_shards].tolist()
        return members

    def split(self, draw: int) -> tuple[int, int]:
        """Epoch and position of a draw."""
        if self._size is None and self._advance(draw):
            return 0, draw
        return divmod(draw, self.size)

    def locate(self, first: int, count: int) -> Places:
        """Where draws first ... first + count - 1 are.

        >>> places = EpochOrder(7, 3, [2, 0, 3].__getitem__, window_shards=2, segment_rows=2).locate(0, 5)
        >>> sorted(zip(places.shards.tolist(), places.rows.tolist()))
        [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
        """
        if self._size == 1:
            only = next(shard for shard in range(self._count) if self._rows(shard))
            zeros = np.zeros(count, dtype=np.int64)
            return Places(zeros + only, zeros, first + np.arange(count, dtype=np.uint64), zeros.astype(np.uint64))
        parts = list(self._runs(first, count))
        if len(parts) == 1:
            return parts[0]
        columns = zip(*((part.shards, part.rows, part.epochs, part.positions) for part in parts), strict=True)
        return Places(*(np.concatenate(column) for column in columns)) if parts else _NOWHERE

    def _runs(self, first: int, count: int) -> Iterator[Places]:
        """The places of neighbouring draws in one window, run by run."""
        while count:
            epoch, position = self.split(first)
            starts = self._starts(epoch)
            index = bisect.bisect_right(starts, position) - 1
            window = self._window(epoch, index)
            begin = position - starts[index]
            taken = min(count, int(window.offsets[-1]) - begin)
            shards, rows = self._inside(window, begin, begin + taken)
            positions = np.arange(position, position + taken, dtype=np.uint64)
            yield Places(shards, rows, np.full(taken, epoch, dtype=np.uint64), positions)
            first, count = first + taken, count - taken

    @staticmethod
    def _inside(window: _Window, start: int, stop: int) -> tuple[Int64, Int64]:
        if window.rows is not None:
            shards, rows = window.rows
            return shards[start:stop].astype(np.int64), rows[start:stop].astype(np.int64)
        places = np.arange(start, stop)
        segments = np.searchsorted(window.offsets, places, side="right") - 1
        inside = places - window.offsets[segments]
        lengths = window.offsets[segments + 1] - window.offsets[segments]
        permuted = permute(window.keys[segments], inside, lengths).astype(np.int64)
        return window.shards[segments], window.first_rows[segments] + permuted

    def _starts(self, epoch: int) -> list[int]:
        """Position at which each known window begins; of the first epoch those that were asked for."""
        return self._first_starts if epoch == 0 else self._starts_of_later(epoch)

    def _window_starts(self, epoch: int) -> list[int]:
        rows = np.array([self._rows(shard) for shard in range(self._count)], dtype=np.int64)
        starts: list[int] = offsets_of(rows[self._shards(epoch)])[:-1][:: self._window_shards].tolist()
        return starts

    def _make_window(self, epoch: int, window: int) -> _Window:
        if window + 1 < self.windows or self._size is not None:
            following = (epoch, window + 1) if window + 1 < self.windows else (epoch + 1, 0)
            self._read_ahead(self._members(*following))
        key = int(derive(self._key, epoch, 1, window))
        members = np.array(self._members(epoch, window), dtype=np.int64)
        rows = np.array([self._rows(shard) for shard in members.tolist()], dtype=np.int64)
        counts = -(-rows // self._segment_rows)
        shards = np.repeat(members, counts)
        first_rows = (np.arange(len(shards)) - np.repeat(offsets_of(counts)[:-1], counts)) * self._segment_rows
        lengths = np.minimum(self._segment_rows, np.repeat(rows, counts) - first_rows)
        moved = order(int(derive(key, 0)), len(shards))
        keys = derive(key, 1, np.arange(len(shards)))
        offsets = offsets_of(lengths[moved])
        made = _Window(shards[moved], first_rows[moved], keys, offsets, None)
        if self._segment_rows > _SMALL or int(offsets[-1]) > _KEPT_ROWS:
            return made
        whole = np.repeat(made.shards, np.diff(offsets)), _ranked(keys, np.diff(offsets), made.first_rows)
        return _Window(made.shards, made.first_rows, keys, offsets, (whole[0].astype(np.int32), whole[1]))


def _ranked(keys: UInt64, lengths: Int64, firsts: Int64) -> Int32:
    """The permuted rows of many short segments, one after the other; what `permute` gives for each point alone."""
    widest = int(lengths.max(initial=0))
    places = np.arange(widest)
    inside = places < lengths[:, None]  # [segments, widest]
    words = bits(keys[:, None], places)
    words[~inside] = np.iinfo(np.uint64).max
    by_word = np.argsort(words, axis=1, kind="stable")
    ranks = np.empty_like(by_word)
    np.put_along_axis(ranks, by_word, places[None, :], axis=1)
    return np.asarray((ranks + firsts[:, None])[inside], dtype=np.int32)
