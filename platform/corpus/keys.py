"""Equal things found across files of any number: addresses, lines, spans of sentences.

    file       -> runs        keys of 16 bytes with their places, sorted; of equal ones in a run only the best goes on
    runs       -> verdicts    each job reads one range of all keys from all runs, and says who loses
    verdicts   -> file        each file reads what was said of its own places

Of equal keys the place with the smallest (rank, file, page, line) stays, so neither the number of jobs nor the order in
which they end matters. A job holds as many rows as it is given a range for: what is held is bounded by making ranges
small. A text that is everywhere costs a row in each file, not one for each time that it occurs.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtura.platform.corpus.work_files import read_range, writing
from mixtura.platform.filesystems import is_uri, joined

BUCKETS = 4096
"""Ranges of keys that a run's header tells apart: the most jobs that may share the work."""
ROW_BYTES = 36
HELD_BYTES = 3 * ROW_BYTES
"""That a row needs while it is judged."""

_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("rank", "<u8"), ("page", "<u4"), ("line", "<u4"), ("count", "<u4")])
_PLACE = np.dtype([("page", "<u4"), ("line", "<u4")])
_STAYS = np.uint32(1 << 31)
_HEADER = 8 * (BUCKETS + 1)
_RUN_ROWS = 1 << 20
_READERS = 16

Array = npt.NDArray[Any]


class KeyRuns:
    """Writes the keys of a file, in runs of bounded size."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._keys = bytearray()
        self._ranks, self._pages, self._lines = array("Q"), array("I"), array("I")
        self._lost: list[Array] = []
        self.runs: list[int] = []
        """Rows of each run that is written."""

    def add(self, key: bytes, rank: int, page: int, line: int = 0) -> None:
        """A key of 16 bytes, and where it is."""
        self._keys += key
        self._ranks.append(rank)
        self._pages.append(page)
        self._lines.append(line)
        if len(self._ranks) >= _RUN_ROWS:
            self._write()

    def close(self) -> None:
        """Write what is left, and the places that have lost within a run."""
        if self._ranks:
            self._write()
        lost = np.concatenate(self._lost) if self._lost else np.empty(0, _PLACE)
        _write_verdict(_own_place(self._place), np.zeros(len(lost), np.uint32), lost, files=1)

    def _write(self) -> None:
        rows = np.empty(len(self._ranks), _ROW)
        keys = np.frombuffer(bytes(self._keys), ">u8").reshape(-1, 2)
        rows["high"], rows["low"] = keys[:, 0], keys[:, 1]
        rows["rank"], rows["page"], rows["line"] = self._ranks, self._pages, self._lines
        rows["count"] = 1
        groups = _grouped(rows, np.zeros(len(rows), np.uint32))
        kept = rows[groups.best]
        kept["count"] = groups.sizes
        self._lost.append(_places(rows[groups.others]))
        counts = np.bincount(_bucket(kept["high"]), minlength=BUCKETS)
        with writing(Run(0, self._place, len(self.runs)).path) as file:
            file.write(np.concatenate(([0], np.cumsum(counts))).astype("<u8").tobytes())
            file.write(kept.tobytes())
        self.runs.append(len(kept))
        self._keys = bytearray()
        self._ranks, self._pages, self._lines = array("Q"), array("I"), array("I")


@dataclass(frozen=True)
class Run:
    """A run of a file's keys."""

    file: int
    place: str
    """folder of the file's keys"""
    number: int

    @property
    def path(self) -> str:
        """Where it is."""
        return joined(self.place, str(self.number))


@dataclass(frozen=True)
class Repeated:
    """A key that occurs more than once."""

    count: int
    file: int
    page: int
    line: int


def judge(
    runs: Sequence[Run],
    buckets: tuple[int, int],
    verdict: str,
    files: int,
    *,
    tell_kept: bool = False,
    most_repeated: int = 0,
) -> list[Repeated]:
    """Say which places of the files lose, of the keys in a range of buckets; and what occurs most often.

    With `tell_kept` the verdict also names the places that stay while others with the same key lose.
    """
    rows, numbers = _read(runs, buckets)
    groups = _grouped(rows, numbers)
    totals = np.add.reduceat(rows["count"][groups.order], groups.starts, dtype=np.int64) if len(rows) else groups.sizes
    places, of_files = _places(rows[groups.others]), numbers[groups.others]
    repeated = np.flatnonzero(totals > 1)
    if tell_kept:
        best = groups.best[repeated]
        kept = _places(rows[best])
        kept["line"] |= _STAYS
        places, of_files = np.concatenate((places, kept)), np.concatenate((of_files, numbers[best]))
    _write_verdict(verdict, of_files, places, files)
    often = repeated[np.argsort(-totals[repeated], kind="stable")[:most_repeated]]
    return [
        Repeated(int(totals[group]), int(numbers[row]), int(rows["page"][row]), int(rows["line"][row]))
        for group, row in zip(often, groups.best[often], strict=True)
    ]


def read_verdicts(verdicts: Sequence[str], files: int, file: int, place: str) -> Verdict:
    """What the jobs said of the places of a file, and what was said when its keys were written to `place`."""
    found = [_read_verdict(verdict, files, file) for verdict in verdicts]
    told = np.concatenate((_read_verdict(_own_place(place), 1, 0), *found))
    told = told[np.lexsort((told["line"], told["page"]))]
    stays = told["line"] >= _STAYS
    kept = told[stays]
    kept["line"] ^= _STAYS
    return Verdict(told[~stays], kept)


@dataclass(frozen=True)
class Verdict:
    """Places of a file, sorted by page and line."""

    lost: Array
    kept: Array
    """Those that stay while others with the same key lose, if they are told."""

    def pages(self) -> frozenset[int]:
        """The pages that lose."""
        return frozenset(self.lost["page"].tolist())

    def lines(self) -> dict[int, set[int]]:
        """Of each page the lines that lose."""
        return _by_page(self.lost)

    def kept_lines(self) -> dict[int, set[int]]:
        """Of each page the lines that stay while others lose."""
        return _by_page(self.kept)


def _by_page(places: Array) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for page, line in places.tolist():
        found.setdefault(page, set()).add(line)
    return found


@dataclass(frozen=True)
class _Groups:
    """Rows by equal keys, as positions of rows."""

    order: Array
    starts: Array
    """of each group in the order"""
    sizes: Array
    best: Array
    """of each group"""
    others: Array


def _grouped(rows: Array, numbers: Array) -> _Groups:
    high, low = np.ascontiguousarray(rows["high"]), rows["low"]
    order = np.argsort(high, kind="stable")  # quick for what consists of sorted runs
    same = high[order][1:] == high[order][:-1]
    equal = same & (low[order][1:] == low[order][:-1])
    if not np.array_equal(same, equal):  # half of a key is equal by chance
        order = np.lexsort((low, high))
        equal = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    starts = np.concatenate(([0], np.flatnonzero(~equal) + 1)) if len(rows) else np.empty(0, np.int64)
    sizes = np.diff(np.append(starts, len(rows)))
    best = order[starts]
    several = np.flatnonzero(sizes > 1)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    among = sizes[groups] > 1
    members, groups = order[among], groups[among]
    ranked = np.lexsort((rows["line"][members], rows["page"][members], numbers[members], rows["rank"][members], groups))
    members, groups = members[ranked], groups[ranked]
    first = np.diff(groups, prepend=-1) != 0
    best[several] = members[first]
    return _Groups(order, starts, sizes, best, members[~first])


def _places(rows: Array) -> Array:
    places = np.empty(len(rows), _PLACE)
    places["page"], places["line"] = rows["page"], rows["line"]
    return places


def _read(runs: Sequence[Run], buckets: tuple[int, int]) -> tuple[Array, Array]:
    def rows_of(run: Run) -> Array:
        bounds = np.frombuffer(read_range(run.path, 8 * buckets[0], 8 * (buckets[1] + 1)), "<u8")
        begin, end = int(bounds[0]), int(bounds[-1])
        return np.frombuffer(read_range(run.path, _HEADER + begin * ROW_BYTES, _HEADER + end * ROW_BYTES), _ROW)

    parts = list(_many(rows_of, runs))
    rows = np.concatenate(parts) if parts else np.empty(0, _ROW)
    numbers = np.repeat(np.array([run.file for run in runs], np.uint32), [len(part) for part in parts])
    return rows, numbers


def _many(function: Callable[[Run], Array], runs: Sequence[Run]) -> Iterator[Array]:
    """Reads from buckets take their time, and wait for one another only here."""
    if not runs or not is_uri(runs[0].path):
        yield from map(function, runs)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(function, runs)


def _write_verdict(place: str, numbers: Array, places: Array, files: int) -> None:
    order = np.lexsort((places["line"], places["page"], numbers))
    counts = np.bincount(numbers, minlength=files)
    with writing(place) as file:
        file.write(np.concatenate(([0], np.cumsum(counts))).astype("<u8").tobytes())
        file.write(places[order].tobytes())


def _read_verdict(place: str, files: int, file: int) -> Array:
    begin, end = map(int, np.frombuffer(read_range(place, 8 * file, 8 * file + 16), "<u8"))
    rows = 8 * (files + 1)
    return np.frombuffer(read_range(place, rows + begin * _PLACE.itemsize, rows + end * _PLACE.itemsize), _PLACE)


def _bucket(high: Array) -> Array:
    return (high >> np.uint64(52)).astype(np.int64)


def _own_place(place: str) -> str:
    return joined(place, "own")
