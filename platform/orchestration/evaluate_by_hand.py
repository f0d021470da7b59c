"""Evaluation that a person asks for: checkpoints of runs, or any model on a recipe's tasks.

What belongs to a run is written where the run's own results are, so that its table, MLflow and retention know of it.
What does not is written below `runs/evaluations`:

    runs/evaluations/flan-t5-small-1f2e3d4c/     of models and recipe
      predictions/glue_rte.validation_whole.jsonl
      results.json
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from mixtura.platform.config import Config
from mixtura.platform.errors import RequestError, ResourceError
from mixtura.platform.evaluation.benchmarks import averages
from mixtura.platform.evaluation.evaluator import TaskResult
from mixtura.platform.evaluation.intervals import bounds_shown
from mixtura.platform.files import disk_full_is_an_answer, write_json_atomically
from mixtura.platform.orchestration.ensembles import Answerer, answerer, vocabulary_path
from mixtura.platform.orchestration.evaluate import (
    answered,
    evaluation_events,
    final_jobs_for,
    jobs_for,
)
from mixtura.platform.orchestration.evaluation_job import EvaluationJob
from mixtura.platform.orchestration.executor import Executor
from mixtura.platform.orchestration.prepare import Prepared, prepare
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.result import FINAL_SPLITS
from mixtura.platform.orchestration.select import run_and_checkpoint, task_named
from mixtura.platform.orchestration.tasks import load_recipe, measured_tasks
from mixtura.platform.orchestration.track import tracker_of
from mixtura.platform.orchestration.train import executor_for, going_on
from mixtura.platform.tracking.records import LOSS
from mixtura.platform.tracking.tracker import Tailer
from mixtura.platform.training.checkpoint import CheckpointInfo, list_checkpoints, verify
from mixtura.platform.workspace import Run, Workspace


@dataclass(frozen=True)
class Wanted:
    """What to measure."""

    tasks: tuple[str, ...] = ()
    """Names, or ends of names; all of the recipe's if empty."""
    whole: bool = False
    """Whole test splits, or validation splits where test answers are not public, beside trivial baselines; otherwise
    the validation examples that a run measures on each of its checkpoints."""


def evaluate(
    space: Workspace,
    what: Sequence[str],
    recipe: str | None,
    overrides: Sequence[str],
    wanted: Wanted,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Evaluate runs and their checkpoints, or with a recipe any models: a row for each of their metrics.

    A name that leads nowhere is refused before anything is measured.
    """
    if recipe is not None:
        config = load_recipe(recipe, [f"run.root={space.root}", *overrides])
        models = [answerer(space, name) for name in what]
        return [row for model in models for row in evaluate_model(space, model, recipe, config, wanted, reporter)]
    refuse_models_of_no_run(space, what, overrides)
    return [row for name in what for row in evaluate_run(space, name, wanted, reporter)]


def refuse_models_of_no_run(space: Workspace, what: Sequence[str], overrides: Sequence[str]) -> None:
    """Raise RequestError where a name is not that of a run or of a checkpoint of one, and no recipe says the tasks."""
    if overrides:
        raise RequestError("--set changes a recipe, and none is given: add --recipe RECIPE")
    for name in what:
        if not is_of_run(space, name):
            known = ", ".join(run.name for run in space.runs()) or "none"
            raise RequestError(
                f"{name!r} is no run or checkpoint of one (runs: {known}): to measure any other model, say on which "
                "recipe's tasks with --recipe RECIPE"
            )
        run_and_checkpoint(space, name)


def evaluate_run(space: Workspace, name: str, wanted: Wanted, reporter: Reporter) -> list[dict[str, Any]]:
    """Evaluate all checkpoints of a run, or the one that RUN@STEP, RUN@best, ... names, on the run's own tasks."""
    run, chosen = run_and_checkpoint(space, name)
    infos = [chosen] if chosen is not None else list_checkpoints(run.checkpoints)
    if not infos:
        raise RequestError(f"run {run.name!r} has no checkpoint yet")
    for info in infos:
        verify(info.path)
    config, rows = run.config(), []
    names = _names(config, wanted, run.name)
    with disk_full_is_an_answer(space.root, "evaluation"), executor_for(config) as executor:
        prepared = prepare(going_on(config, space, run), space, executor.map_shards, reporter)
        jobs = _jobs(config, prepared, wanted, names)
        for info in infos:
            rows += _evaluate_checkpoint(run, info, jobs, executor, reporter)
    _send(space, run, config, reporter)
    return rows


def evaluate_model(
    space: Workspace, chosen: Answerer, recipe: str, config: Config, wanted: Wanted, reporter: Reporter
) -> list[dict[str, Any]]:
    """Evaluate any model, or several as one, on the tasks of a recipe, in the model's own vocabulary."""
    names = _names(config, wanted, recipe)
    own = str(vocabulary_path(chosen))
    config = config.model_copy(update={"vocabulary": config.vocabulary.model_copy(update={"path": own})})
    folder = space.root / "evaluations" / folder_name(chosen, recipe)
    with disk_full_is_an_answer(space.root, "evaluation"), executor_for(config) as executor:
        prepared = prepare(config, space, executor.map_shards, reporter)
        jobs = [
            replace(
                job,
                checkpoint=chosen.spec,
                answers=str(folder / "predictions" / f"{job.name}.{job.named}.jsonl"),
            )
            for job in _jobs(config, prepared, wanted, names)
        ]
        results = answered(executor.evaluate(jobs))
    values = [{**asdict(result), "answers": None} for result in results]
    write_json_atomically(folder / "results.json", {"model": chosen.name, "recipe": recipe, "results": values})
    reporter.line(f"results and predictions: {folder}")
    return [row for result in results for row in _rows(chosen.name, result)]


def benchmark_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The averages of the benchmarks for each model, with what is missing."""
    models = dict.fromkeys(row["model"] for row in rows)
    lines = []
    for model in models:
        found = {(row["task"], row["metric"]): row["value"] for row in rows if row["model"] == model}
        lines += [f"{model}: {one}" for one in averages(found)]
    return lines


def _names(config: Config, wanted: Wanted, of: str) -> set[str]:
    """The tasks that are measured, by their whole names; refused before any work where one is not known."""
    known = set(measured_tasks(config))
    if not known:
        raise RequestError(f"{of!r} has no task with a metric, and no text with a validation split")
    return {task_named(text, known, of) for text in wanted.tasks} or known


def _jobs(config: Config, prepared: Prepared, wanted: Wanted, names: set[str]) -> list[EvaluationJob]:
    every = final_jobs_for(config, prepared) if wanted.whole else jobs_for(config, prepared)
    jobs = [job for job in every if job.name in names]
    if not jobs:
        raise RequestError(f"the right answers of {', '.join(sorted(names))} are not known on such a split")
    return jobs


def _evaluate_checkpoint(
    run: Run, info: CheckpointInfo, jobs: Sequence[EvaluationJob], executor: Executor, reporter: Reporter
) -> list[dict[str, Any]]:
    name = f"{run.name}@{info.step}"
    reporter.line(f"evaluating {name} on {len(jobs)} tasks")
    results = evaluation_events(run.path, info.path, info.step, jobs, executor.evaluate)
    return [row for result in results for row in _rows(name, result)]


def _rows(model: str, result: TaskResult) -> list[dict[str, Any]]:
    loss = next((metric.value for metric in result.metrics if metric.metric == LOSS), None)
    return [
        {
            "model": model,
            "task": result.task,
            "split": FINAL_SPLITS.get(result.split, result.split),
            "metric": metric.metric,
            "value": metric.value,
            "95 % interval": bounds_shown(metric.low, metric.high),
            "loss": loss,
            "baseline": None if metric.baseline is None else metric.baseline.value,
            "rows": result.examples,
            "seconds": round(result.seconds, 2),
        }
        for metric in result.metrics
        if metric.metric != LOSS
    ]


def _send(space: Workspace, run: Run, config: Config, reporter: Reporter) -> None:
    """Send the results to MLflow, unless a driver follows the run, which then does."""
    try:
        with run.held():
            Tailer(run.events, lambda: tracker_of(space, run, config)).pump()
    except ResourceError as error:
        reporter.line(f"the results are on disk, and sent to MLflow by whoever works on the run next ({error})")


def folder_name(chosen: Answerer, recipe: str) -> str:
    """A name that a person knows again, and a digest of what exactly was measured."""
    readable = re.sub(r"[^\w.-]+", "-", f"{chosen.name}-{recipe}")[-80:].strip("-.")
    return f"{readable}-{xxhash.xxh3_64_hexdigest(f'{chosen.spec} {recipe}'.encode())[:8]}"


def is_of_run(space: Workspace, name: str) -> bool:
    """Whether a name is a run's, or that of a checkpoint of a run by RUN@..."""
    run = name.partition("@")[0]
    return bool(run) and "/" not in name and ":" not in name and not Path(name).exists() and space.run(run).exists()
