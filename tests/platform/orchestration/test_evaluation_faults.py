"""What may happen to an evaluation: it is shared, its process is killed, its checkpoint deleted, the disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from mixtura.platform.config import Config, ExecutorSection
from mixtura.platform.errors import MixturaError, ResourceError
from mixtura.platform.orchestration import evaluation_job as evaluating
from mixtura.platform.orchestration.cluster import connected
from mixtura.platform.orchestration.evaluate import jobs_for
from mixtura.platform.orchestration.evaluate_by_hand import Wanted, evaluate_run
from mixtura.platform.orchestration.evaluation_job import EvaluationJob, in_parts
from mixtura.platform.orchestration.executor import InlineExecutor
from mixtura.platform.orchestration.on_ray import RayExecutor, evaluate_on
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.records import EvaluationSkipped, evaluation_results, read_events
from mixtura.platform.training.checkpoint import list_checkpoints
from mixtura.platform.workspace import Run, Workspace, workspace

pytestmark = pytest.mark.slow

PATIENCE_S = 120.0
INLINE = ("executor.kind=inline", "evaluation.test=false")


@pytest.fixture(scope="module")
def config(module_workspace: Path, tiny_config: Callable[..., Config]) -> Config:
    return tiny_config(module_workspace, "base", *INLINE)


@pytest.fixture(scope="module")
def space(module_workspace: Path, config: Config) -> Workspace:
    """With the run `base` and its checkpoints of steps 4 and 8."""
    train_recipe("quickstart", config, SilentReporter())
    return workspace(str(module_workspace))


@pytest.fixture(scope="module")
def jobs(space: Workspace, config: Config) -> list[EvaluationJob]:
    last = list_checkpoints(space.run("base").checkpoints)[-1]
    prepared = prepare(config, space, map_inline, SilentReporter())
    return [replace(job, checkpoint=str(last.path)) for job in jobs_for(config, prepared)]


@pytest.fixture(scope="module")
def on_ray() -> Iterator[RayExecutor]:
    with connected(ExecutorSection(workers=1)) as ledger:
        yield RayExecutor(ledger, 0, None, 1)


def measured(results: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (one["task"], metric["metric"], pytest.approx(metric["value"], rel=1e-4))
        for one in results
        for metric in one["metrics"]
    ]


@pytest.mark.ray
def test_numbers_and_answers_do_not_depend_on_how_many_evaluators_share_a_split(
    on_ray: RayExecutor, jobs: list[EvaluationJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_answers(folder: str) -> list[EvaluationJob]:
        return [replace(job, answers=str(tmp_path / folder / f"{job.name}.jsonl")) for job in jobs]

    shared = with_answers("shared")
    assert on_ray.ledger.evaluators == 2
    monkeypatch.setattr(evaluating, "_SMALLEST_PART", 4)
    assert {job.parts for job in in_parts(shared, 5)} != {1}
    expected = measured(InlineExecutor().evaluate(with_answers("alone")))
    many = [*on_ray.evaluators() * 2, on_ray.evaluators()[0]]  # five takers of jobs, of which some are the same
    assert measured(evaluate_on(many, shared)) == expected
    files = sorted((tmp_path / "shared").iterdir())
    assert [path.name for path in files] == sorted(f"{job.name}.jsonl" for job in jobs)
    for path in files:
        alone, together = (
            [json.loads(line) for line in (tmp_path / folder / path.name).read_text().splitlines()]
            for folder in ("alone", "shared")
        )
        for name in ("log_probability", "target_log_probability"):
            if name in alone[0]:
                likelihoods = [[one.pop(name) for one in records] for records in (alone, together)]
                assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-3)
        assert alone == together


@pytest.mark.ray
def test_a_killed_evaluator_is_started_again_and_every_number_is_there(
    on_ray: RayExecutor, jobs: list[EvaluationJob]
) -> None:
    expected = measured(InlineExecutor().evaluate(jobs))
    many = [replace(job, batch_tokens=128, precision="fp32") for job in jobs]  # slow enough to be met at work
    found: list[dict[str, Any]] = []
    work = threading.Thread(target=lambda: found.extend(on_ray.evaluate(many)))
    work.start()
    killed = None
    deadline = time.monotonic() + PATIENCE_S
    while killed is None and time.monotonic() < deadline and work.is_alive():
        killed = kill_one("ray::Evaluator.run")
    work.join(PATIENCE_S)
    assert killed is not None
    assert not work.is_alive()
    assert measured(found) == expected
    assert ray.is_initialized()


def kill_one(name: str) -> int | None:
    """Kill a process of this test's cluster by Ray's title for it; its number, if there was any."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                process.kill()
                return process.pid
    return None


def test_a_checkpoint_that_is_deleted_in_a_pause_does_not_end_the_training(
    module_workspace: Path, tiny_config: Callable[..., Config], space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluating.load

    def deleting(chosen: Any, *given: Any) -> Any:
        if chosen.paths[0].name == "step-000004":
            shutil.rmtree(chosen.paths[0])
        return whole(chosen, *given)

    monkeypatch.setattr(evaluating, "load", deleting)
    assert train_recipe("quickstart", tiny_config(module_workspace, "deleted", *INLINE), SilentReporter())
    records = read_events(space.run("deleted").events)
    assert [(one.step, one.reason) for one in records if isinstance(one, EvaluationSkipped)] == [
        (4, "its files are gone")
    ]
    assert {one.step for one in evaluation_results(records)} == {8}


def test_a_checkpoint_that_is_deleted_under_an_evaluation_by_hand_is_named(
    space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Workspace(tmp_path / "runs")
    copy.root.mkdir()
    (copy.root / "caches").symlink_to(space.caches)
    shutil.copytree(space.run("base").path, copy.run("base").path)
    before = evaluations(copy.run("base"))
    whole = evaluating.load

    def deleting(chosen: Any, *given: Any) -> Any:
        shutil.rmtree(chosen.paths[0])
        return whole(chosen, *given)

    monkeypatch.setattr(evaluating, "load", deleting)
    evaluating.forget_model()
    with pytest.raises(MixturaError, match="step-000004"):
        evaluate_run(copy, "base@4", Wanted(), SilentReporter())
    assert evaluations(copy.run("base")) == before


def test_a_full_disk_is_said_and_costs_no_number(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = space.run("base")
    before = evaluations(run)
    kept = {path: path.read_bytes() for path in run.predictions.rglob("*.jsonl")}

    def full(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(evaluating, "write_bytes_atomically", full)
        with pytest.raises(ResourceError, match="disk is full"):
            evaluate_run(space, "base@8", Wanted(), SilentReporter())
    assert evaluations(run) == before
    assert {path: path.read_bytes() for path in run.predictions.rglob("*.jsonl")} == kept
    evaluate_run(space, "base@8", Wanted(), SilentReporter())
    assert evaluations(run) > before


def evaluations(run: Run) -> int:
    return len(evaluation_results(read_events(run.events)))
