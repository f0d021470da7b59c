"""The order in which a task's examples are visited, computed point by point: no index arrays, no shuffle buffers.

`permute` is a keyed pseudo-random permutation of [0, n): the rank among n words for small n, otherwise a Feistel
network over the next power of two, walked along its cycle until it lands below n (Black and Rogaway 2002, "Ciphers
with arbitrary finite domains").

`EpochOrder` uses it on three levels, so that reads stay local and every epoch has an order of its own:

    shards    |  4  0  2 |  1  3  |        a permutation of the listing, cut into windows of W = 3 shards
    segments  |  segments of S rows of the shards of one window, in a permuted order
    rows      |  the rows of one segment, in a permuted order
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.ragged import Int64, offsets_of
from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import IntoUInt64, bits, derive, order

UInt64 = npt.NDArray[np.uint64]

_ROUNDS = 8
_SMALL = 64
"""Up to this count a permutation is the rank among all words, where a Feistel network would be visibly uneven."""

_ONE = np.uint64(1)


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
class _Epoch:
    """The shards of one epoch in their order, and the position at which each window begins."""

    key: int
    shards: Int64
    window_starts: Int64


@dataclass(frozen=True)
class _Window:
    """The segments of one window in their order: shard, first row and key of each; offsets within the window."""

    shards: Int64
    first_rows: Int64
    keys: UInt64
    offsets: Int64


class EpochOrder:
    """Maps draw j of a task with n rows in shards to a shard and a row: epoch j div n, position j mod n.

    Every row comes once in an epoch. Positions before a window's end need the row counts of that window and of the
    windows before it only.
    """

    def __init__(self, key: int, shard_rows: Sequence[int], window_shards: int, segment_rows: int) -> None:
        if window_shards < 1 or segment_rows < 1:
            raise ConfigError(
                f"window_shards and segment_rows must be at least 1, found {window_shards} and {segment_rows}"
            )
        self._key, self._window_shards, self._segment_rows = key, window_shards, segment_rows
        self._rows = np.asarray(shard_rows, dtype=np.int64)
        self.size = int(self._rows.sum())
        if self.size == 0:
            raise ConfigError("there is nothing to draw from: no shard has a row")
        # a block lies in one epoch and one window, or at a border; tiny tasks go through many epochs in a block
        self._epoch = functools.lru_cache(maxsize=4)(self._make_epoch)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    def split(self, draws: npt.NDArray[np.integer]) -> tuple[UInt64, UInt64]:
        """Epoch and position of every draw."""
        epochs, positions = np.divmod(draws.astype(np.uint64), np.uint64(self.size))
        return epochs, positions

    def locate(self, draws: npt.NDArray[np.integer]) -> tuple[Int64, Int64]:
        """Shard and row of every draw.

        >>> shards, rows = EpochOrder(7, [2, 0, 3], window_shards=2, segment_rows=2).locate(np.arange(5))
        >>> sorted(zip(shards.tolist(), rows.tolist()))
        [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
        """
        if self.size == 1:
            return np.full(len(draws), np.flatnonzero(self._rows)[0]), np.zeros(len(draws), dtype=np.int64)
        epochs, positions = self.split(draws)
        shards, rows, inside, lengths = (np.zeros(len(draws), dtype=np.int64) for _ in range(4))
        keys = np.zeros(len(draws), dtype=np.uint64)
        for epoch, window, here in self._windows(epochs, positions.astype(np.int64)):
            segments = self._window(epoch, window)
            offset = positions[here].astype(np.int64) - self._epoch(epoch).window_starts[window]
            segment = np.searchsorted(segments.offsets, offset, side="right") - 1
            shards[here], rows[here], keys[here] = (
                column[segment] for column in (segments.shards, segments.first_rows, segments.keys)
            )
            inside[here] = offset - segments.offsets[segment]
            lengths[here] = np.diff(segments.offsets)[segment]
        return shards, rows + permute(keys, inside, lengths).astype(np.int64)

    def _windows(self, epochs: UInt64, positions: Int64) -> Iterator[tuple[int, int, Int64]]:
        """Every epoch and window that the draws touch, and which draws those are."""
        for epoch in np.unique(epochs).tolist():
            in_epoch = np.flatnonzero(epochs == epoch)
            windows = np.searchsorted(self._epoch(epoch).window_starts, positions[in_epoch], side="right") - 1
            for window in np.unique(windows).tolist():
                yield epoch, window, in_epoch[windows == window]

    def _make_epoch(self, epoch: int) -> _Epoch:
        key = int(derive(self._key, epoch))
        shards = shard_order(self._key, epoch, len(self._rows))
        starts = offsets_of(self._rows[shards])[:-1][:: self._window_shards]
        return _Epoch(key, shards, starts)

    def _make_window(self, epoch: int, window: int) -> _Window:
        whole = self._epoch(epoch)
        key = int(derive(whole.key, 1, window))
        members = whole.shards[window * self._window_shards : (window + 1) * self._window_shards]
        counts = -(-self._rows[members] // self._segment_rows)
        shards = np.repeat(members, counts)
        first_rows = (np.arange(len(shards)) - np.repeat(offsets_of(counts)[:-1], counts)) * self._segment_rows
        lengths = np.minimum(self._segment_rows, self._rows[shards] - first_rows)
        moved = order(int(derive(key, 0)), len(shards))
        keys = derive(key, 1, np.arange(len(shards)))
        return _Window(shards[moved], first_rows[moved], keys, offsets_of(lengths[moved]))
