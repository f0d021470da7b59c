"""What ends an attempt under Ray Train, and how the run goes on: it says why, from which step, and how often it may.

A cluster of two small machines, of which neither has room for both ranks. One run there meets in turn a rank that
stands still and the loss of a machine; starting ranks takes longer than all their steps.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mixtura.platform.config import Config
from mixtura.platform.errors import TrainingError
from mixtura.platform.orchestration.cluster import divide, nodes_of_cluster
from mixtura.platform.orchestration.executor import Executor
from mixtura.platform.orchestration.on_ray import RayExecutor
from mixtura.platform.tracking.records import Note, TrainPoint, read_events
from mixtura.platform.training.checkpoint import list_checkpoints, verify

from .machines import two_machines

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

Train = Callable[[Config, Executor], Path]
Make = Callable[..., Config]

RESTARTS, STEPS, HANG_AFTER_S = 3, 80, 10
GIVEN = ("executor.workers=2", "executor.cpus_per_worker=0.6", "checkpoints.every=10", f"training.steps={STEPS}")


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Iterator[Any]:
    with two_machines(repository) as machines:
        yield machines


@pytest.fixture(scope="module")
def executor(cluster: Any, module_workspace: Path, tiny_config: Make) -> RayExecutor:
    settings = tiny_config(module_workspace, "any", *GIVEN).executor
    ledger = divide(2, 0, settings, nodes=nodes_of_cluster())
    return RayExecutor(ledger, RESTARTS, shards_at_once=1, blocks_per_lane=8)  # soon all are there: no step waits


def until(holds: Callable[[], Any], patience_s: float = 300) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def notes(run: Path) -> list[str]:
    if not (run / "events").is_dir():
        return []
    return [record.text for record in read_events(run / "events") if isinstance(record, Note)]


def failures(run: Path) -> list[str]:
    return [note for note in notes(run) if note.startswith("attempt failed: ")]


def last_step(run: Path) -> int:
    if not (run / "events").is_dir():
        return 0
    return max([record.step for record in read_events(run / "events") if isinstance(record, TrainPoint)], default=0)


def ranks(run: Path) -> list[psutil.Process]:
    """The processes of the ranks, rank 0 first: it is the one that holds the run's lock."""
    first = int((run / ".writer.lock").read_text().split()[1])
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.pid != first)


class Disturbing:
    """Stops rank 1 after some steps; when the ranks are at work again, takes the second machine away; and adds another
    one when the run has said that it waits for it. All on a thread of its own."""

    def __init__(self, run: Path, cluster: Any) -> None:
        self.run, self.cluster = run, cluster
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._disturb)

    def _disturb(self) -> None:
        try:
            until(lambda: last_step(self.run) >= 12)
            os.kill(ranks(self.run)[1].pid, signal.SIGSTOP)
            until(lambda: len(failures(self.run)) == 1 and last_step(self.run) >= 22)
            self.cluster.remove_node(self.cluster.worker_nodes.copy().pop(), allow_graceful=False)
            until(lambda: any("waits for a node to join" in note for note in notes(self.run)))
            self.cluster.add_node(num_cpus=1)
        except BaseException as error:  # noqa: BLE001  raised in the test's own thread
            self.error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def disturbed(
    cluster: Any, executor: RayExecutor, module_workspace: Path, tiny_config: Make, train_only: Train
) -> Path:
    run = module_workspace / "disturbed"
    with Disturbing(run, cluster):
        train_only(tiny_config(module_workspace, "disturbed", *GIVEN, f"executor.hang_after={HANG_AFTER_S}s"), executor)
    return run


def test_memory_that_runs_out_before_the_first_step_is_not_tried_again_and_the_answer_names_what_helps(
    executor: RayExecutor, module_workspace: Path, tiny_config: Make, train_only: Train, attempts_of: Callable[..., Any]
) -> None:
    run = module_workspace / "too-large"
    with pytest.raises(TrainingError) as raised:
        train_only(tiny_config(module_workspace, "too-large", *GIVEN, "model.d_ff=1000000000000"), executor)
    head, *lines = str(raised.value).splitlines()
    assert "ran out of memory" in head
    assert len(lines) == 3
    assert all("GB" in line for line in lines)
    assert len(attempts_of(run)) <= 1
    assert not failures(run)
    assert not (run / "restarts.json").exists()


def test_a_rank_that_stands_still_ends_the_attempt_and_the_run_goes_on(disturbed: Path) -> None:
    told = failures(disturbed)[0]
    assert f"no step ended for {HANG_AFTER_S} s after step" in told
    assert "rank 1 gave no sign of life" in told
    (stacks,) = (disturbed / "stacks").glob("*-rank-0.txt")
    assert str(stacks) in told
    assert "all_reduce" in stacks.read_text()
    assert told.endswith(f"0, {RESTARTS - 1} of {RESTARTS} restarts left")


def test_a_run_that_loses_a_machine_says_so_and_goes_on_when_another_one_joins(
    disturbed: Path, attempts_of: Callable[[Path], list[list[int]]]
) -> None:
    said = notes(disturbed)
    lost = "a node was lost, 1 with 1 CPU is left: the 2 workers with 0.6 CPU each do not fit there, so the run waits"
    assert any(note.startswith(lost) for note in said)
    assert any(note.startswith("a node joined, there are 2 now") for note in said)
    assert len(failures(disturbed)) == 2
    before, after = attempts_of(disturbed)[1:]
    saved = after[0] - 1
    assert saved % 10 == 0
    assert before[0] - 1 <= saved <= before[-1]  # its last save may not have been whole yet
    assert failures(disturbed)[1].endswith(f"from step {saved}, {RESTARTS - 2} of {RESTARTS} restarts left")


def test_with_its_failures_behind_it_the_run_comes_to_its_end_with_whole_checkpoints(
    disturbed: Path, steps_of: Callable[[Path], dict[int, Any]]
) -> None:
    assert sorted(steps_of(disturbed)) == list(range(1, STEPS + 1))  # a step done twice gave the same loss
    saved = list_checkpoints(disturbed / "checkpoints")
    assert [info.step for info in saved] == list(range(10, STEPS + 1, 10))
    for info in saved:
        verify(info.path)
