"""Where every lane stands before any step, far from a checkpoint too: found by a walk over lengths alone, and kept.

    caches/stream-3f0c9a1be55d0b42/
      rounds-000000000.npy      rows that each lane was given before rounds 0, 1, ... 64: int64 [65, lanes]
      rounds-000000064.npy      and so on

A lane takes the same number of rows in every step, so the running totals of its blocks' rows say in which block it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mixtura.platform.data.lanes import Position, stream_state
from mixtura.platform.data.ragged import Int64
from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.files import write_bytes_atomically

_ROUNDS = 64
"""In one file; a round has `lanes` blocks."""
_ROUNDS_AT_ONCE = 16

Progress = Callable[[int, int], object]
"""Told how many rows of a lane were passed, of how many."""


class StreamIndex:
    """The positions of a stream's lanes by step. What was walked once is kept below `folder`, if there is one."""

    def __init__(self, stream: MixtureStream, folder: Path | None = None) -> None:
        self._stream, self._folder = stream, folder
        self._parts: list[Int64] = []

    def state(self, step: int, progress: Progress = lambda *_: None) -> dict[str, Any]:
        """The state before a step, as `RankStream.state` gives it after the step before."""
        spec = self._stream.spec
        wanted = step * spec.rows_per_lane
        while not self._parts or self._parts[-1][-1].min() < wanted:
            progress(int(self._parts[-1][-1].min()) if self._parts else 0, wanted)
            self._parts.append(self._part(len(self._parts)))
        positions = {lane: self._position(lane, wanted) for lane in range(spec.lanes)}
        return stream_state(spec, step, positions)

    def _position(self, lane: int, rows: int) -> Position:
        """The first round before which the lane was given so many rows, or the place in the one that has them."""
        part = next(number for number, totals in enumerate(self._parts) if totals[-1, lane] >= rows)
        totals = self._parts[part][:, lane]
        at = int(np.searchsorted(totals, rows, side="left"))
        first = part * _ROUNDS
        return (first + at, 0) if totals[at] == rows else (first + at - 1, rows - int(totals[at - 1]))

    def _part(self, number: int) -> Int64:
        path = None if self._folder is None else self._folder / f"rounds-{number * _ROUNDS:09d}.npy"
        if path is not None and path.is_file():
            return np.asarray(np.load(path, allow_pickle=False))
        lanes = self._stream.spec.lanes
        totals = np.zeros((_ROUNDS + 1, lanes), dtype=np.int64)
        if number:
            totals[0] = self._parts[number - 1][-1]
        for place in range(_ROUNDS):
            if place % _ROUNDS_AT_ONCE == 0:
                first = (number * _ROUNDS + place) * lanes
                rows = self._stream.count_rows(first, first + _ROUNDS_AT_ONCE * lanes).reshape(_ROUNDS_AT_ONCE, lanes)
            dealt = self._stream.dealt(number * _ROUNDS + place)
            totals[place + 1] = totals[place] + rows[place % _ROUNDS_AT_ONCE][dealt]
        if path is not None:
            data = io.BytesIO()
            np.save(data, totals, allow_pickle=False)
            write_bytes_atomically(path, data.getvalue())
        return totals
