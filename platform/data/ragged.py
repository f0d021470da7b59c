"""Many token sequences in two arrays: their values one after the other, and the offsets where each begins.

`Ragged([7, 8, 9, 4], [0, 3, 3, 4])` holds [7, 8, 9], [] and [4]. Everything between a cache and a batch works on
whole blocks of sequences in this form, so that no Python loop runs over examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def offsets_of(lengths: npt.NDArray[np.integer]) -> Int64:
    """Where sequences of these lengths begin, and where the last one ends.

    >>> offsets_of(np.array([3, 0, 1])).tolist()
    [0, 3, 3, 4]
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """The integers of [start, start + length) of every pair, one range after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.arange(total) + np.repeat(starts - (ends - lengths), lengths), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Sequences as `values` [tokens] and `offsets` [sequences + 1]; offsets begin at 0 and end at len(values)."""

    values: npt.NDArray[Any]
    offsets: Int64

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[int]], dtype: npt.DTypeLike = np.int32) -> Ragged:
        """From Python lists, for small things.

        >>> Ragged.from_lists([[7, 8], [], [9]]).to_lists()
        [[7, 8], [], [9]]
        """
        kept = [np.asarray(row, dtype=dtype) for row in rows]
        values = np.concatenate(kept) if kept else np.zeros(0, dtype=dtype)
        return cls(values, offsets_of(np.array([len(row) for row in kept], dtype=np.int64)))

    @classmethod
    def from_arrow(cls, array: Any) -> Ragged:
        """From an Arrow list array (a slice of one too), without a copy of the values; offsets of 64 bits that begin
        at 0 are not copied either."""
        offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
        values = array.values.to_numpy(zero_copy_only=True)[offsets[0] : offsets[-1]]
        return cls(values, offsets - offsets[0] if offsets[0] else offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """One after the other; there must be at least one part."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.values for part in parts]), offsets_of(lengths))

    def to_arrow(self) -> Any:
        """As an Arrow list array."""
        import pyarrow as pa

        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))

    def to_lists(self) -> list[list[int]]:
        """As Python lists."""
        return [row.tolist() for row in np.split(self.values, self.offsets[1:-1])] if len(self) else []

    @property
    def lengths(self) -> Int64:
        """The length of every sequence."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: npt.NDArray[np.integer]) -> Ragged:
        """The sequences with these numbers, in this order, copied.

        >>> Ragged.from_lists([[7, 8], [], [9]]).take(np.array([2, 0, 2])).to_lists()
        [[9], [7, 8], [9]]
        """
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        return Ragged(self.values[ranges(starts, lengths)], offsets_of(lengths))

    def grouped(self, counts: npt.NDArray[np.integer]) -> Ragged:
        """Join runs of neighbouring sequences: the first counts[0] become one, the next counts[1] another, ...

        >>> Ragged.from_lists([[7, 8], [4], [9]]).grouped(np.array([2, 1])).to_lists()
        [[7, 8, 4], [9]]
        """
        return Ragged(self.values, self.offsets[offsets_of(counts)])
