"""One trial of a search: a short training run in this process, and what its last checkpoint reaches on validation.

The rank, the stream, the loss and the engine are the ones of `mixtura train --executor inline`. A trial writes to its
own folder only, and nothing but JSON lines and its result stays there: the checkpoint is deleted once it is measured.
"""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config, validated
from mixtura.platform.errors import MixturaError, TrainingError
from mixtura.platform.files import disk_full_is_an_answer, exclusive_lock
from mixtura.platform.orchestration.evaluate import evaluation_events, jobs_for
from mixtura.platform.orchestration.evaluation_job import EvaluationJob
from mixtura.platform.orchestration.executor import InlineExecutor
from mixtura.platform.orchestration.mixture import stream_spec
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.orchestration.worker import TrainPlan
from mixtura.platform.search.trials import Trial, TrialFolder, TrialResult, usable
from mixtura.platform.tracking.records import EventWriter, RunFinished, RunStarted, TrainPoint, read_events
from mixtura.platform.tracking.selection import AVERAGE, scores
from mixtura.platform.training.checkpoint import list_checkpoints
from mixtura.platform.workspace import Run

SPLIT = "validation"


class TrialStoppedError(MixturaError):
    """The search was asked to stop; the trial goes on when the search does."""


@dataclass(frozen=True)
class TrialJob:
    """A trial with all that is needed to run it; plain values, so that it can be sent anywhere."""

    trial: dict[str, Any]
    config: dict[str, Any]
    """The configuration of the search; the trial's mixture, seed and steps are put in its place."""
    folder: str
    vocabulary: str
    caches: dict[str, str]
    fork: str | None = None
    overlap: dict[str, str] = field(default_factory=dict)

    @property
    def prepared(self) -> Prepared:
        """The caches."""
        return Prepared(Path(self.vocabulary), self.caches, overlap=self.overlap)


def trial_config(config: Config, trial: Trial) -> Config:
    """The configuration of a trial: one process, one checkpoint at its end, no test split."""
    values = trial.candidate.applied(config).to_dict()
    values["run"] |= {"seed": trial.seed, "name": None, "stop_after": None}
    values["training"]["steps"] = values["checkpoints"]["every"] = trial.steps
    values["executor"] |= {"kind": "inline", "workers": 1, "cpus_per_worker": None}
    values["evaluation"] |= {"when": "after", "test": False}
    values["tracking"]["system_every"] = None  # trials share machines
    return validated(values, where=f"trial {trial.label!r}")


def run_trial(values: Mapping[str, Any]) -> TrialResult:
    """Train and measure, or give the result that is there already.

    Raises TrialStoppedError where the folder holds a file `stop`. Other failures are written to the folder and raised.
    """
    job = TrialJob(**values)
    folder, trial = TrialFolder(Path(job.folder)), Trial.from_dict(job.trial)
    # The process of a trial whose driver was killed may live a moment longer than it.
    with exclusive_lock(folder.path / ".lock", "the trial is being run", wait=True):
        result = folder.result()
        if result is None:
            result = _attempt(job, folder, trial)
        delete_checkpoints(folder.path)
    return result


def _attempt(job: TrialJob, folder: TrialFolder, trial: Trial) -> TrialResult:
    (folder.path / "stop").unlink(missing_ok=True)
    folder.begin(trial)
    attempt = len(list((folder.path / "events").glob("trial-*.jsonl"))) + 1
    with EventWriter(folder.path / "events" / f"trial-{attempt:04d}-{time.time_ns()}.jsonl") as events:
        events.write(RunStarted(attempt))
        try:
            with disk_full_is_an_answer(folder.path, "running a trial"):
                result = _train_and_measure(job, trial, attempt)
        except TrialStoppedError:
            events.write(RunFinished("resumable"))
            raise
        except Exception as error:
            folder.fail(_reason(error))
            (folder.path / "error.txt").write_text(traceback.format_exc())
            events.write(RunFinished("failed", _reason(error)))
            raise
        events.write(TrainPoint(trial.steps, {f"{SPLIT}/{AVERAGE}": result.score}))
        events.write(RunFinished("done", f"average {result.score:.4g}"))
    folder.commit(result)
    return result


def _train_and_measure(job: TrialJob, trial: Trial, attempt: int) -> TrialResult:
    started = time.perf_counter()
    run, config = Run(Path(job.folder)), trial_config(validated(job.config, where="the plan of a search"), trial)
    plan = TrainPlan(
        config=config.to_dict(),
        run=str(run.path),
        stream=stream_spec(config, job.prepared).to_dict(),
        vocabulary=job.vocabulary,
        attempt=attempt,
        fork=job.fork,
    )
    executor = InlineExecutor(threads=1)
    if not executor.train(plan, []):
        raise TrialStoppedError(f"trial {trial.label!r} was stopped")
    gc.collect()  # the engine holds its model in circles, and the next trial may be run in this process
    last = list_checkpoints(run.checkpoints)[-1]
    jobs = jobs_for(config, job.prepared)
    evaluation_events(run.path, last.path, last.step, jobs, executor.evaluate)
    score, by_task = _reached(run, last.step, jobs)
    return TrialResult(trial, score, by_task, time.perf_counter() - started)


def _reached(run: Run, step: int, jobs: list[EvaluationJob]) -> tuple[float, dict[str, float]]:
    """The average by which checkpoints are chosen, and the headline metric of each task."""
    found = scores(read_events(run.events), SPLIT, [job.name for job in jobs])
    last = next((one for one in found if one.step == step), None)
    average = None if last is None else last.average
    if last is None or average is None or not usable(average):
        raise TrainingError(f"the {SPLIT} split gave no number for every task: look at {run.events}")
    return average, {task: result.value for task, result in last.results.items()}


def delete_checkpoints(path: Path) -> None:
    """Delete what a trial saved and answered; its result and its events stay."""
    for name in ("checkpoints", "predictions"):
        shutil.rmtree(path / name, ignore_errors=True)


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no reason given"
    return text if isinstance(error, MixturaError) else f"{type(error).__name__}: {text}"
