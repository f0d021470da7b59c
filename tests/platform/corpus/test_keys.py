"""Equal keys across files: who stays is the same however runs and ranges are cut."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from mixtura.platform.corpus import keys
from mixtura.platform.corpus.keys import BUCKETS, KeyRuns, Run, judge, read_verdicts

Place = tuple[int, int, int, int]


def write(folder: Path, places: list[tuple[bytes, Place]], files: int) -> list[Run]:
    runs = []
    for file in range(files):
        own = KeyRuns(str(folder / "keys" / str(file)))
        for key, (rank, number, page, line) in places:
            if number == file:
                own.add(key, rank, page, line)
        own.close()
        runs += [Run(file, str(folder / "keys" / str(file)), run) for run in range(len(own.runs))]
    return runs


def lost(
    folder: Path, runs: list[Run], files: int, jobs: int, *, tell_kept: bool = False
) -> tuple[set[Place], set[Place]]:
    verdicts = [str(folder / f"verdict-{jobs}-{number}") for number in range(jobs)]
    for number, verdict in enumerate(verdicts):
        buckets = BUCKETS * number // jobs, BUCKETS * (number + 1) // jobs
        judge(runs, buckets, verdict, files, tell_kept=tell_kept)
    gone, kept = set(), set()
    for file in range(files):
        said = read_verdicts(verdicts, files, file, str(folder / "keys" / str(file)))
        gone |= {(0, file, page, line) for page, line in said.lost.tolist()}
        kept |= {(0, file, page, line) for page, line in said.kept.tolist()}
        assert said.lost.tolist() == sorted(said.lost.tolist())
    return gone, kept


@pytest.fixture
def places() -> list[tuple[bytes, Place]]:
    chance = random.Random(0)
    named = [hashlib.md5(str(number).encode()).digest() for number in range(300)]
    named += [key[:8] + bytes(8) for key in named[:40]]  # half of a key may be equal by chance
    return [
        (chance.choice(named), (chance.randrange(50), chance.randrange(5), page, line))
        for page in range(60)
        for line in range(chance.randrange(30))
    ]


@pytest.mark.parametrize("jobs", [1, 7, 64])
@pytest.mark.parametrize("run_rows", [13, 1 << 20])
def test_the_smallest_place_of_each_key_stays(
    places: list[tuple[bytes, Place]], jobs: int, run_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_RUN_ROWS", run_rows)
    best: dict[bytes, Place] = {}
    for key, place in places:
        best[key] = min(place, best.get(key, place))
    several = {key for key in best if sum(key == other for other, _ in places) > 1}
    runs = write(tmp_path, places, 5)
    assert (len(runs) > 5) == (run_rows == 13)
    gone, kept = lost(tmp_path, runs, 5, jobs, tell_kept=True)
    expected = {(0, *place[1:]) for key, place in places if place != best[key]}
    assert len(expected) > 300
    assert gone == expected
    assert kept == {(0, *best[key][1:]) for key in several}


def test_a_key_that_is_everywhere_costs_a_row_in_each_file(tmp_path: Path) -> None:
    same = hashlib.md5(b"All rights reserved.").digest()
    runs = write(tmp_path, [(same, (page, file, page, 0)) for file in range(3) for page in range(1000)], 3)
    sizes = [Path(run.path).stat().st_size for run in runs]
    assert len(set(sizes)) == 1
    assert sizes[0] == 8 * (BUCKETS + 1) + keys.ROW_BYTES
    (often,) = judge(runs, (0, BUCKETS), str(tmp_path / "verdict"), 3, most_repeated=5)
    assert (often.count, often.file, often.page) == (3000, 0, 0)


def test_nothing_is_equal_to_nothing(tmp_path: Path) -> None:
    assert judge([], (0, BUCKETS), str(tmp_path / "verdict"), 2) == []
    runs = write(tmp_path, [], 2)
    assert runs == []
    assert lost(tmp_path, runs, 2, 1) == (set(), set())
