"""Work beside training that fails is not left to fail in silence."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from mixtura.platform.errors import TrainingError
from mixtura.platform.orchestration.cluster import Ledger, Node
from mixtura.platform.orchestration.helper_thread import HelperThread
from mixtura.platform.orchestration.lost_nodes import NodeWatch
from mixtura.platform.tracking.records import Note, read_events
from mixtura.platform.workspace import Run

EVERY_S = 0.01
LEDGER = Ledger(2, 2, 0.8, 0, 0.1, 1, 0.2, 1, 0, 0, 0)


class Looks(HelperThread):
    """Fails when it looks for the n-th time."""

    def __init__(self, run: Run, fails_at: int) -> None:
        super().__init__(run, "looks", EVERY_S)
        self.times, self.fails_at, self.enough = 0, fails_at, threading.Event()

    def look(self) -> None:
        self.times += 1
        if self.times == 5:
            self.enough.set()
        if self.times == self.fails_at:
            raise OSError("Stale file handle")


def until_asked_to_stop(run: Run) -> None:
    deadline = time.monotonic() + 30
    while not run.stop_sign.exists():
        assert time.monotonic() < deadline, "the run was never asked to stop"
        time.sleep(EVERY_S)


def test_it_looks_again_and_again_until_it_is_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with Looks(run, fails_at=0) as thread:
        assert thread.enough.wait(30)
    times = thread.times
    time.sleep(5 * EVERY_S)
    assert thread.times == times
    assert not run.stop_sign.exists()


def test_when_it_fails_the_run_is_asked_to_end_and_the_reason_is_raised(tmp_path: Path) -> None:
    run = Run(tmp_path)
    told = r"'looks'.*failed: OSError: Stale file handle.*the same command"
    with pytest.raises(TrainingError, match=told), Looks(run, fails_at=3):
        until_asked_to_stop(run)
    assert "Stale file handle" in run.stop_sign.read_text()


def test_what_ended_the_run_meanwhile_is_more_important(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"), Looks(Run(tmp_path), fails_at=1):
        until_asked_to_stop(Run(tmp_path))
        raise TrainingError("the loss is not finite")


def test_a_cluster_that_changes_is_told_of_and_one_that_does_not_answer_ends_the_run(tmp_path: Path) -> None:
    run, answers = Run(tmp_path), iter([[Node(1)] * 2, [Node(1)] * 2, [Node(1)]])
    watch = NodeWatch(run, 1, LEDGER, nodes=lambda: next(answers), every_s=EVERY_S)
    with pytest.raises(TrainingError, match="'nodes'.*StopIteration"), watch:
        until_asked_to_stop(run)
    (note,) = (record.text for record in read_events(run.events) if isinstance(record, Note))
    assert note.startswith("a node was lost, 1 with 1 CPU is left")
