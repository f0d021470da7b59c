"""Killed with SIGKILL at any moment, a run goes on, and its losses are those that an undisturbed run gives.

Dropout is on, and two ranks share the batch, so that what each of them saved must fit together again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mixtura.platform.config import Config
from mixtura.platform.orchestration.cluster import divide
from mixtura.platform.orchestration.executor import Executor
from mixtura.platform.orchestration.on_ray import RayExecutor
from mixtura.platform.tracking.records import Note, read_events
from mixtura.platform.training.checkpoint import list_checkpoints
from mixtura.platform.workspace import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

Step = tuple[float, str]
Steps = Callable[[Path], dict[int, Step]]

STEPS = 60
FREE = ("executor.workers=2", f"training.steps={STEPS}", "checkpoints.every=10", "evaluation.examples=2")
"""Many short steps: the ranks of a driver that was killed live for a moment, and must not come to the end in it."""
LOOK_EVERY_S = 0.05
KILLS = ("builder", "rank 1", "rank 0")


@dataclass
class Runs:
    """Two runs of the same steps."""

    undisturbed: Path
    disturbed: Path
    kills: list[str]
    """Who was killed in the disturbed run."""


@pytest.fixture(scope="module")
def executor(ray_cluster: None, module_workspace: Path, tiny_config: Callable[..., Config]) -> RayExecutor:
    tree = tiny_config(module_workspace, "any", *FREE)
    return RayExecutor(divide(2, 0, tree.executor), len(KILLS), shards_at_once=1, blocks_per_lane=1)


@pytest.fixture(scope="module")
def runs(
    executor: RayExecutor,
    module_workspace: Path,
    tiny_config: Callable[..., Config],
    train_only: Callable[[Config, Executor], Path],
    attempts_of: Callable[[Path], list[list[int]]],
) -> Runs:
    undisturbed = train_only(tiny_config(module_workspace, "undisturbed", *FREE), executor)
    disturbed = module_workspace / "disturbed"
    with Killer(disturbed, attempts_of) as killer:
        train_only(tiny_config(module_workspace, "disturbed", *FREE), executor)
    return Runs(undisturbed, disturbed, killer.killed)


class Killer:
    """Kills a block builder at its work, then rank 1, then rank 0, each after steps of another attempt."""

    def __init__(self, run: Path, attempts_of: Callable[[Path], list[list[int]]]) -> None:
        self.run, self.attempts_of = run, attempts_of
        self.killed: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill_all)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill_all(self) -> None:
        self._kill("builder", lambda: self._named("MapBatches(build_"))
        self._kill("rank 1", lambda: self._ranks_other_than_0() if self._is_in_attempt(1, after_step=13) else [])
        self._kill("rank 0", lambda: [self._rank_0()] if self._is_in_attempt(2, after_step=25) else [])

    def _kill(self, name: str, find: Callable[[], list[psutil.Process]]) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            found = find()
            if found:
                found[0].kill()
                self.killed.append(name)
                return

    def _is_in_attempt(self, number: int, after_step: int) -> bool:
        attempts = self.attempts_of(self.run) if (self.run / "events").is_dir() else []
        return len(attempts) == number and bool(attempts[-1]) and attempts[-1][-1] >= after_step

    def _rank_0(self) -> psutil.Process:
        """By the name of the process that holds the run's lock."""
        return psutil.Process(int((self.run / ".writer.lock").read_text().split()[1]))

    def _ranks_other_than_0(self) -> list[psutil.Process]:
        return [process for process in self._named("RayTrainWorker") if process.pid != self._rank_0().pid]

    def _named(self, name: str) -> list[psutil.Process]:
        """Processes of this test's cluster by Ray's title for them."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


# ---- a builder and both ranks ----------------------------------------------------------------------------------------


def test_a_builder_and_both_ranks_were_killed(runs: Runs) -> None:
    assert runs.kills == list(KILLS)


def test_a_run_whose_builder_and_ranks_are_killed_goes_on_by_itself_from_its_checkpoints(
    runs: Runs, attempts_of: Callable[[Path], list[list[int]]]
) -> None:
    attempts = attempts_of(runs.disturbed)
    assert len(attempts) == 3
    assert [steps[0] for steps in attempts[1:]] == [
        max(step for step in steps if step % 10 == 0) + 1 for steps in attempts[:-1]
    ]
    assert attempts[-1][-1] == STEPS


def test_each_restart_is_told_with_its_reason_and_how_many_are_left(
    runs: Runs, attempts_of: Callable[[Path], list[list[int]]]
) -> None:
    notes = [record.text for record in read_events(runs.disturbed / "events") if isinstance(record, Note)]
    told = [note for note in notes if note.startswith("attempt failed: ")]
    steps = [steps[0] - 1 for steps in attempts_of(runs.disturbed)[1:]]
    assert [note.rpartition("; ")[2] for note in told] == [
        f"going on from step {step}, {left} of {len(KILLS)} restarts left"
        for step, left in zip(steps, (2, 1), strict=True)
    ]
    assert all("the process of rank" in note or "lost its connection" in note for note in told)


def test_killed_builders_and_ranks_change_no_fingerprint(runs: Runs, steps_of: Steps) -> None:
    found, expected = steps_of(runs.disturbed), steps_of(runs.undisturbed)
    assert len(expected) == STEPS
    assert {step: print_ for step, (_, print_) in found.items()} == {
        step: print_ for step, (_, print_) in expected.items()
    }


def test_killed_ranks_change_no_loss(runs: Runs, steps_of: Steps) -> None:
    found, expected = steps_of(runs.disturbed), steps_of(runs.undisturbed)
    assert {step: loss for step, (loss, _) in found.items()} == {step: loss for step, (loss, _) in expected.items()}


# ---- the driver ------------------------------------------------------------------------------------------------------


def test_a_driver_that_is_killed_and_started_again_gives_the_run_that_nothing_disturbed(
    runs: Runs,
    new_workspace: Path,
    tiny: list[str],
    mixtura: Callable[..., Any],
    wait_for: Callable[..., None],
    kill_with_children: Callable[[int], None],
    steps_of: Steps,
    attempts_of: Callable[[Path], list[list[int]]],
) -> None:
    """Killed before the first checkpoint with all its processes, as when the power goes; then the driver alone, at a
    random moment after a checkpoint, and started again at once, while what it left behind may still be alive."""
    run = new_workspace / "killed"
    command = ["train", "quickstart", *tiny, *FREE, f"run.root={new_workspace}", "run.name=killed"]
    command.append("evaluation.test=false")

    first = mixtura(*command)
    wait_for(lambda: (run / "events").is_dir() and steps_of(run), "the first step", first)
    kill_with_children(first.pid)
    first.process.wait()
    assert not list_checkpoints(run / "checkpoints")

    second = mixtura(*command)
    moment = random.SystemRandom().randint(11, 35)
    wait_for(lambda: len(attempts_of(run)) == 2 and max(attempts_of(run)[1], default=0) >= moment, "a step", second)
    left_behind = psutil.Process(second.pid).children(recursive=True)
    second.process.kill()
    second.process.wait()

    third = mixtura(*command)
    assert third.process.wait() == 0, third.said
    assert "Traceback" not in third.said
    assert steps_of(run) == steps_of(runs.undisturbed), f"killed at step {moment}"
    attempts = attempts_of(run)
    assert [steps[0] for steps in attempts[:2]] == [1, 1]
    assert not attempts[2] or attempts[2][0] > 10
    assert Run(run).facts()["status"] == "done"
    assert [info.step for info in list_checkpoints(run / "checkpoints")] == list(range(10, STEPS + 1, 10))
    assert not [process for process in left_behind if process.is_running() and "RayTrainWorker" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
