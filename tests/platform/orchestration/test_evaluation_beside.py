"""Evaluation beside training: every checkpoint is evaluated, or skipped with its reason; a killed run goes on."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.config import Config
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.evaluation_beside import EvaluationBeside
from mixtura.platform.orchestration.evaluation_job import EvaluationJob
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
    EvaluationSkipped,
    TrainPoint,
    read_events,
)
from mixtura.platform.training.checkpoint import MANIFEST, folder_name, list_checkpoints
from mixtura.platform.workspace import Run, workspace

PATIENCE_S = 30.0


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = workspace(str(tmp_path / "runs")).run("base")
    run.events.mkdir(parents=True)
    return run


def commit(run: Run, step: int) -> None:
    folder = run.checkpoints / folder_name(step)
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")


class Evaluators:
    """Answer a job when they are told to."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.may_answer = threading.Event()
        self.error: Exception | None = None

    def __call__(self, jobs: Sequence[EvaluationJob]) -> list[dict[str, Any]]:
        self.seen.append(int(Path(jobs[0].checkpoint).name.removeprefix("step-")))
        assert self.may_answer.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        metric = {"metric": "accuracy", "value": 50.0, "low": 40.0, "high": 60.0}
        result = {"task": "rte", "split": "validation", "examples": 2, "target_tokens": 4, "seconds": 0.1}
        return [{**result, "metrics": [{**metric, "higher_is_better": True, "baseline": None}], "answers": []}]


@pytest.fixture
def evaluators() -> Iterator[Evaluators]:
    made = Evaluators()
    yield made
    made.may_answer.set()


@pytest.fixture
def beside(run: Run, evaluators: Evaluators) -> EvaluationBeside:
    job = EvaluationJob({"name": "rte"}, "validation", "validation", "", 64, 8, 8, 1024)
    return EvaluationBeside(run, [job], evaluators, waiting=2, reporter=SilentReporter())


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def evaluated(run: Run) -> list[int]:
    return [one.step for one in read_events(run.events) if isinstance(one, EvaluationResult)]


def skipped(run: Run) -> dict[int, str]:
    return {one.step: one.reason for one in read_events(run.events) if isinstance(one, EvaluationSkipped)}


def test_of_more_than_may_wait_the_oldest_are_skipped_and_named(
    run: Run, beside: EvaluationBeside, evaluators: Evaluators
) -> None:
    commit(run, 100)
    with beside:
        until(lambda: evaluators.seen == [100])
        for step in (200, 300, 400, 500):
            commit(run, step)
        evaluators.may_answer.set()
        until(lambda: evaluated(run) == [100, 400, 500])
    assert set(skipped(run)) == {200, 300}
    assert all("more than 2 checkpoints waited" in reason for reason in skipped(run).values())


def test_when_training_is_over_all_that_wait_are_evaluated(
    run: Run, beside: EvaluationBeside, evaluators: Evaluators
) -> None:
    evaluators.may_answer.set()
    with beside:
        for step in (100, 200, 300, 400, 500):
            commit(run, step)
        beside.finish()
    steps = {*evaluated(run), *skipped(run)}
    assert steps == {100, 200, 300, 400, 500}
    assert evaluated(run)[-1] == 500


def test_a_checkpoint_that_is_deleted_under_its_evaluation_is_named_and_the_next_one_evaluated(
    run: Run, beside: EvaluationBeside, evaluators: Evaluators
) -> None:
    commit(run, 100)
    with beside:
        until(lambda: evaluators.seen == [100])
        shutil.rmtree(run.checkpoints / folder_name(100))
        evaluators.error = FileNotFoundError("model.safetensors")
        evaluators.may_answer.set()
        until(lambda: 100 in skipped(run))
        evaluators.error = None
        commit(run, 200)
        until(lambda: evaluated(run) == [200])
    assert skipped(run) == {100: "its files are gone"}


def test_a_failure_is_told_with_its_reason_and_training_goes_on(
    run: Run, beside: EvaluationBeside, evaluators: Evaluators
) -> None:
    evaluators.error = RuntimeError("no memory")
    evaluators.may_answer.set()
    commit(run, 100)
    with beside:
        until(lambda: skipped(run))
    assert skipped(run) == {100: "RuntimeError: no memory"}
    assert not run.stop_sign.exists()


def test_what_was_under_way_when_the_run_ended_waits_for_the_next_attempt(
    run: Run, beside: EvaluationBeside, evaluators: Evaluators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixtura.platform.orchestration.evaluation_beside._PATIENCE_S", 0.1)
    commit(run, 100)
    with beside:
        until(lambda: evaluators.seen == [100])
    evaluators.error = RuntimeError("the evaluators are gone")
    evaluators.may_answer.set()
    beside._thread.join(PATIENCE_S)
    assert not skipped(run)
    evaluators.error = None
    with EvaluationBeside(run, beside.jobs, evaluators, waiting=2, reporter=SilentReporter()) as again:
        again.finish()
    assert evaluated(run) == [100]


def test_one_process_cannot_do_both_at_once(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs processes of its own, but executor\.kind is inline"):
        tiny_config(tmp_path, "any", "evaluation.when=beside", "executor.kind=inline")


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_ray_evaluates_its_checkpoints_while_it_goes_on(
    tiny_config: Callable[..., Config], module_workspace: Path
) -> None:
    given = ("evaluation.when=beside", "executor.workers=1", "evaluation.examples=20", "evaluation.test=false")
    config = tiny_config(
        module_workspace, "beside", *given, "training.steps=12", "checkpoints.every=2", "checkpoints.keep=1"
    )
    assert train_recipe("quickstart", config, SilentReporter())
    run = workspace(str(module_workspace)).run("beside")
    records = read_events(run.events)
    committed = [one.step for one in records if isinstance(one, CheckpointCommitted)]
    assert committed == [2, 4, 6, 8, 10, 12]
    assert {*evaluated(run), *skipped(run)} == set(committed)
    assert 12 in evaluated(run)
    assert 12 in [info.step for info in list_checkpoints(run.checkpoints)]
    assert sorted({one.step for one in records if isinstance(one, TrainPoint)}) == list(range(1, 13))
