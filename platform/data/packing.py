"""Examples into rows of the model's lengths: how long they are there, and which example goes to which row.

    none      every example has a row of its own
    best_fit  the largest examples first, each into the open row with the least room in which it fits
    greedy    SeqIO's: one open row, closed when an example does not fit

Inputs and targets have a room each: an example fits where both of its sides do. Packing happens within one block, so a
block stays a function of its number alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.ragged import Int64
from mixtura.platform.errors import UnknownNameError


def trimmed_lengths(lengths: npt.NDArray[np.integer], length: int | Int64) -> Int64:
    """Lengths after cutting to length - 1 tokens and appending EOS; `length` may be one for all, or each its own.

    >>> trimmed_lengths(np.array([3, 1, 0]), length=3).tolist()
    [3, 2, 1]
    """
    return np.asarray(np.minimum(lengths, length - 1) + 1, dtype=np.int64)


def pack(name: str, input_lengths: Int64, target_lengths: Int64, inputs_length: int, targets_length: int) -> Int64:
    """The row of every example; rows are numbered in the order in which they were opened.

    >>> pack("best_fit", np.array([2, 5, 4, 6]), np.array([1, 1, 1, 1]), inputs_length=8, targets_length=4).tolist()
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


def _best_fit(input_lengths: Int64, target_lengths: Int64, inputs_length: int, targets_length: int) -> Int64:
    """Best fit decreasing in two dimensions: an example is as large as the larger share that it takes of a side."""
    count = len(input_lengths)
    rows = np.empty(count, dtype=np.int64)
    if not count:
        return rows
    room_inputs, room_targets = inputs_length - int(input_lengths.min()), targets_length - int(target_lengths.min())
    alone = (input_lengths > room_inputs) | (target_lengths > room_targets)  # beside these not even the least would fit
    lonely = np.flatnonzero(alone)
    rows[lonely] = np.arange(len(lonely))
    shared = np.flatnonzero(~alone)
    inputs, targets = input_lengths[shared], target_lengths[shared]
    largest_first = np.argsort(-np.maximum(inputs * targets_length, targets * inputs_length), kind="stable")
    rows[shared[largest_first]] = len(lonely) + np.array(
        _fill(
            inputs[largest_first].tolist(),
            targets[largest_first].tolist(),
            inputs_length,
            targets_length,
            (inputs_length - room_inputs, targets_length - room_targets),
        ),
        dtype=np.int64,
    )
    return rows


def _fill(
    inputs: list[int], targets: list[int], inputs_length: int, targets_length: int, least: tuple[int, int]
) -> list[int]:
    """The row of each example, taken in this order.

    Open rows stand under the room that they have left for inputs; bit n of `occupied` says whether any has room n, so
    that the next larger room is found in a few operations on one integer.
    """
    least_inputs, least_targets = least
    with_room: list[list[int]] = [[] for _ in range(inputs_length + 1)]
    targets_left: list[int] = []
    rows: list[int] = []
    occupied = 0
    for need, targets_need in zip(inputs, targets, strict=True):
        row = -1
        candidates = occupied >> need << need
        while candidates:
            lowest = candidates & -candidates
            room = lowest.bit_length() - 1
            here = with_room[room]
            for place, one in enumerate(here):
                if targets_left[one] >= targets_need:
                    row = one
                    del here[place]
                    if not here:
                        occupied ^= lowest
                    break
            if row >= 0:
                break
            candidates ^= lowest
        if row < 0:
            row, room = len(targets_left), inputs_length
            targets_left.append(targets_length)
        rows.append(row)
        left = room - need
        targets_left[row] -= targets_need
        if left >= least_inputs and targets_left[row] >= least_targets:
            with_room[left].append(row)
            occupied |= 1 << left
    return rows


PACKINGS: dict[str, Callable[[Int64, Int64, int, int], npt.NDArray[np.int64]]] = {
    "none": _none,
    "best_fit": _best_fit,
    "greedy": _greedy,
}
