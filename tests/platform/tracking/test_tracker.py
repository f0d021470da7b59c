"""The tailer hands every record over, also when the store is away for a while."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mixtura.platform.errors import MixturaError
from mixtura.platform.tracking.records import EventWriter, Note, Record
from mixtura.platform.tracking.tracker import Tailer


class ListTracker:
    """Keeps records in a list; refuses as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.records: list[Record] = []
        self.failures = failures
        self._positions: dict[str, int] = {}

    def positions(self) -> Mapping[str, int]:
        return self._positions

    def log(self, records: Sequence[Record], positions: Mapping[str, int]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the store is away")
        self.records += records
        self._positions = dict(positions)


NOTES = [Note(str(number), time_s=float(number)) for number in range(6)]


def test_records_are_handed_over_while_the_run_goes_on(tmp_path: Path) -> None:
    tracker = ListTracker()
    with EventWriter(tmp_path / "a.jsonl") as events, Tailer(tmp_path, lambda: tracker, interval_s=0.01):
        events.write(*NOTES[:3])
        deadline = time.monotonic() + 10
        while len(tracker.records) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert tracker.records == NOTES[:3]
        events.write(*NOTES[3:])
    assert tracker.records == NOTES


def test_a_store_that_is_away_for_a_while_loses_nothing_and_is_told_of_once(tmp_path: Path) -> None:
    tracker, said = ListTracker(failures=3), list[str]()
    with EventWriter(tmp_path / "a.jsonl") as events, Tailer(tmp_path, lambda: tracker, said.append, interval_s=0.01):
        events.write(*NOTES)
        deadline = time.monotonic() + 10
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert tracker.records == NOTES
    away, back = said
    assert "the store is away" in away
    assert "waits on disk" in away
    assert "is back" in back


def test_a_store_that_is_back_in_the_last_round_is_told_of_too(tmp_path: Path) -> None:
    tracker, said = ListTracker(failures=1), list[str]()
    with EventWriter(tmp_path / "a.jsonl") as events:
        events.write(*NOTES)
    with Tailer(tmp_path, lambda: tracker, said.append, interval_s=0.01):
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.001)
    assert len(said) == 2
    assert tracker.records == NOTES


def test_a_store_that_is_always_there_is_not_told_of(tmp_path: Path) -> None:
    said = list[str]()
    with EventWriter(tmp_path / "a.jsonl") as events, Tailer(tmp_path, ListTracker, said.append, interval_s=0.01):
        events.write(*NOTES)
    assert said == []


def test_a_store_that_stays_away_is_told_at_the_end_and_hides_no_other_error(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "a.jsonl") as events:
        events.write(*NOTES)
    with (
        pytest.raises(MixturaError, match=r"the store is away.*safe on disk.*same command"),
        Tailer(tmp_path, lambda: ListTracker(failures=99), interval_s=60),
    ):
        pass
    with (
        pytest.raises(ValueError, match="training broke"),
        Tailer(tmp_path, lambda: ListTracker(failures=99), interval_s=60),
    ):
        raise ValueError("training broke")


def test_a_tracker_that_remembers_goes_on_where_it_was(tmp_path: Path) -> None:
    tracker = ListTracker()
    with EventWriter(tmp_path / "a.jsonl") as events:
        events.write(*NOTES[:2])
        assert Tailer(tmp_path, lambda: tracker).pump() == 2
        events.write(*NOTES[2:])
        assert Tailer(tmp_path, lambda: tracker).pump() == 4
        assert Tailer(tmp_path, lambda: tracker).pump() == 0
    assert tracker.records == NOTES
