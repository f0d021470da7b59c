"""A run that stands still is noticed, on every rank; one that is slow for a reason is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.platform.errors import TrainingError
from mixtura.platform.orchestration import watchdog
from mixtura.platform.orchestration.watchdog import FIRST_STEP, Interruption, Launch, Watchdog, who_is_late

LIMIT_S = 0.2


def launch(folder: Path, rank: int = 0, world_size: int = 1) -> Launch:
    return Launch(folder, "0001.0", rank, world_size)


def watched(
    folder: Path, during: Callable[[Watchdog], None], limit_s: float | None = LIMIT_S, **given: Callable[[], object]
) -> list[str]:
    """What was said while something was done."""
    said: list[str] = []
    with Watchdog(launch(folder), limit_s, said.append, **given) as dog:
        during(dog)
    return said


def stand_still(dog: Watchdog) -> None:
    dog.progress(7)
    time.sleep(6 * LIMIT_S)


def test_a_rank_that_stands_still_writes_its_stacks_and_says_where_they_are(tmp_path: Path) -> None:
    (said,) = watched(tmp_path, stand_still)
    stacks = tmp_path / "0001.0-000007-rank-0.txt"
    assert str(stacks) in said
    assert "after step 7" in said
    assert "executor.hang_after" in said
    text = stacks.read_text()
    assert text.index("thread MainThread") < text.index("thread watchdog")
    assert "stand_still" in text


def test_steps_that_end_in_time_are_no_hang(tmp_path: Path) -> None:
    def steps(dog: Watchdog) -> None:
        for step in range(20):
            time.sleep(LIMIT_S / 4)
            dog.progress(step)

    assert watched(tmp_path, steps) == []


def test_the_first_step_may_take_longer_but_not_for_ever(tmp_path: Path) -> None:
    def compile_for(times: float) -> Callable[[Watchdog], None]:
        return lambda _: time.sleep(times * LIMIT_S)

    assert watched(tmp_path / "a", compile_for(FIRST_STEP * 0.7)) == []
    assert "after step 0" in watched(tmp_path / "b", compile_for(FIRST_STEP * 2))[0]


def test_no_limit_waits_for_ever(tmp_path: Path) -> None:
    assert watched(tmp_path, stand_still, limit_s=None) == []
    assert list(tmp_path.iterdir()) == []


def test_a_pause_of_rank_0_is_no_hang_on_any_rank(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        Watchdog(launch(tmp_path / "stacks", 0, 2), LIMIT_S, said.append) as first,
        Watchdog(launch(tmp_path / "stacks", 1, 2), LIMIT_S, said.append) as other,
    ):
        first.progress(7)
        other.progress(7)
        with first.paused():
            time.sleep(6 * LIMIT_S)
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_a_shard_is_no_hang_while_shards_are_being_prepared(tmp_path: Path) -> None:
    began = time.monotonic()

    def bytes_there() -> int:
        return int((time.monotonic() - began) * 100)

    assert watched(tmp_path / "a", stand_still, works_elsewhere=bytes_there) == []
    assert len(watched(tmp_path / "b", stand_still, works_elsewhere=lambda: 5)) == 1

    def fail() -> int:
        raise OSError("the store does not answer")

    assert len(watched(tmp_path / "c", stand_still, works_elsewhere=fail)) == 1


def test_a_watchdog_that_fails_ends_the_run_with_the_reason_and_leaves_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OSError("Stale file handle")

    monkeypatch.setattr(Watchdog, "_is_hang", fail)
    (said,) = watched(tmp_path, lambda dog: time.sleep(LIMIT_S))
    assert said == "the watchdog of rank 0 failed: OSError: Stale file handle"
    assert launch(tmp_path).sign("message").read_text() == said


def test_a_hang_on_a_disk_that_takes_nothing_ends_the_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(watchdog, "_create", full)
    monkeypatch.setattr(watchdog, "write_bytes_atomically", full)
    (said,) = watched(tmp_path, stand_still)
    assert said == "the watchdog of rank 0 failed: OSError: No space left on device"


def test_when_one_rank_notices_all_write_their_stacks_and_say_the_same(tmp_path: Path) -> None:
    said: dict[int, str] = {}

    def rank(number: int, limit_s: float) -> None:
        with Watchdog(launch(tmp_path, number, 2), limit_s, lambda text: said.__setitem__(number, text)) as dog:
            dog.progress(3)
            time.sleep(1.5)

    ranks = [threading.Thread(target=rank, args=(number, limit_s)) for number, limit_s in ((0, LIMIT_S), (1, 5.0))]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert said[0] == said[1]
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [
        "0001.0-000003-rank-0.txt",
        "0001.0-000003-rank-1.txt",
    ]


RANKS, ROWS, WORK = "waits for other ranks", "waits for its rows", "is at work"


@pytest.mark.parametrize(
    ("doing", "answer"),
    [
        ([RANKS, WORK, RANKS], "rank 1 is at work, and the others wait for it"),
        ([ROWS, ROWS, RANKS], "ranks 0, 1 each waits for its rows, and the others wait for it"),
        ([WORK, ROWS], "rank 1 waits for its rows, and the others wait for it"),
        ([RANKS, None], "rank 1 gave no sign of life: it is stopped, or its machine is gone"),
        ([RANKS, RANKS], "which rank is late cannot be told from what they do"),
        ([ROWS], "the only rank waits for its rows"),
    ],
)
def test_the_late_rank_is_the_one_that_waits_for_nobody(doing: list[str | None], answer: str) -> None:
    assert who_is_late(doing) == answer


def test_the_main_thread_is_woken_from_whatever_it_waits_for(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(TrainingError, match="after step 7"),
        Interruption() as end,
        Watchdog(launch(tmp_path), LIMIT_S, end) as dog,
    ):
        dog.progress(7)
        threading.Event().wait(60)
    assert time.monotonic() - began < 30
