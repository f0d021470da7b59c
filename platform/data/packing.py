"""Examples into rows of the model's lengths: trimming, EOS, and which example goes to which row.

    none      every example has a row of its own
    best_fit  the open row with the least room left in which the example fits; a new one if there is none
    greedy    SeqIO's: one open row, closed when an example does not fit

Packing happens within one block, so a block stays a function of its number alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.ragged import Int64, Ragged, offsets_of, ranges
from mixtura.platform.errors import UnknownNameError


def trim_and_append_eos(sequences: Ragged, length: int, eos_id: int) -> tuple[Ragged, Int64]:
    """Cut to length - 1 tokens and append EOS; also how many tokens each sequence lost.

    >>> trimmed, lost = trim_and_append_eos(Ragged.from_lists([[7, 8, 9], [5], []]), length=3, eos_id=1)
    >>> trimmed.to_lists(), lost.tolist()
    ([[7, 8, 1], [5, 1], [1]], [1, 0, 0])
    """
    kept = np.minimum(sequences.lengths, length - 1)
    offsets = offsets_of(kept + 1)
    values = np.full(int(offsets[-1]), eos_id, dtype=np.int32)
    values[ranges(offsets[:-1], kept)] = sequences.values[ranges(sequences.offsets[:-1], kept)]
    return Ragged(values, offsets), sequences.lengths - kept


def pack(name: str, input_lengths: Int64, target_lengths: Int64, inputs_length: int, targets_length: int) -> Int64:
    """The row of every example; rows are numbered in the order in which they were opened.

    >>> pack("best_fit", np.array([6, 5, 4, 2]), np.array([1, 1, 1, 1]), inputs_length=8, targets_length=4).tolist()
    [0, 1, 2, 0]
    >>> pack("greedy", np.array([6, 5, 4, 2]), np.array([1, 1, 1, 1]), inputs_length=8, targets_length=4).tolist()
    [0, 1, 2, 2]
    """
    if name not in PACKINGS:
        raise UnknownNameError("packing", name, PACKINGS)
    return PACKINGS[name](input_lengths, target_lengths, inputs_length, targets_length)


def _none(input_lengths: Int64, target_lengths: Int64, inputs_length: int, targets_length: int) -> Int64:  # noqa: ARG001
    return np.arange(len(input_lengths), dtype=np.int64)


def _greedy(input_lengths: Int64, target_lengths: Int64, inputs_length: int, targets_length: int) -> Int64:
    """SeqIO packs groups of max(lengths) examples; the open row is closed at the end of each."""
    group = max(inputs_length, targets_length)
    rows, row, inputs_left, targets_left = [], -1, 0, 0
    for number, (inputs, targets) in enumerate(zip(input_lengths.tolist(), target_lengths.tolist(), strict=True)):
        if number % group == 0 or inputs > inputs_left or targets > targets_left:
            row, inputs_left, targets_left = row + 1, inputs_length, targets_length
        inputs_left, targets_left = inputs_left - inputs, targets_left - targets
        rows.append(row)
    return np.array(rows, dtype=np.int64)


class _OpenRows:
    """Rows that may still take an example: their numbers and the room left for inputs and targets."""

    def __init__(self, most: int) -> None:
        self._rows, self._inputs, self._targets = (np.zeros(most, dtype=np.int64) for _ in range(3))
        self._count = 0

    def best(self, inputs: int, targets: int) -> int | None:
        """Where the fitting row with the least room (inputs plus targets) is, the first of equals."""
        inputs_left, targets_left = self._inputs[: self._count], self._targets[: self._count]
        fitting = np.flatnonzero((inputs_left >= inputs) & (targets_left >= targets))
        if not len(fitting):
            return None
        return int(fitting[np.argmin(inputs_left[fitting] + targets_left[fitting])])

    def open(self, row: int, inputs_left: int, targets_left: int) -> int:
        at = self._count
        self._rows[at], self._inputs[at], self._targets[at] = row, inputs_left, targets_left
        self._count += 1
        return at

    def fill(self, at: int, inputs: int, targets: int, least: tuple[int, int]) -> int:
        """Take an example; a row in which not even the least example fits is closed, the others keep their order."""
        row = int(self._rows[at])
        self._inputs[at] -= inputs
        self._targets[at] -= targets
        if self._inputs[at] < least[0] or self._targets[at] < least[1]:
            for column in (self._rows, self._inputs, self._targets):
                column[at : self._count - 1] = column[at + 1 : self._count]
            self._count -= 1
        return row


def _best_fit(input_lengths: Int64, target_lengths: Int64, inputs_length: int, targets_length: int) -> Int64:
    if not len(input_lengths):
        return np.zeros(0, dtype=np.int64)
    least = int(input_lengths.min()), int(target_lengths.min())
    open_rows, rows, opened = _OpenRows(len(input_lengths)), [], 0
    for inputs, targets in zip(input_lengths.tolist(), target_lengths.tolist(), strict=True):
        at = open_rows.best(inputs, targets)
        if at is None:
            at, opened = open_rows.open(opened, inputs_length, targets_length), opened + 1
        rows.append(open_rows.fill(at, inputs, targets, least))
    return np.array(rows, dtype=np.int64)


PACKINGS: dict[str, Callable[[Int64, Int64, int, int], npt.NDArray[np.int64]]] = {
    "none": _none,
    "best_fit": _best_fit,
    "greedy": _greedy,
}
