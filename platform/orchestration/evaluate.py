"""What is measured on a checkpoint, and how the numbers come to the run that it is of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.data.cache import is_closed, read_manifest
from mixtura.platform.evaluation.baselines import Baseline
from mixtura.platform.evaluation.evaluator import MetricResult, TaskResult
from mixtura.platform.filesystems import shown
from mixtura.platform.orchestration.evaluation_job import EvaluationJob
from mixtura.platform.orchestration.mixture import held_out_spec
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.orchestration.tasks import choice_of, prepared_splits, tasks_of
from mixtura.platform.tracking.records import EvaluationResult, EventWriter
from mixtura.platform.workspace import Run

WHOLE_VALIDATION = "validation_whole"
"""Results on all of a validation split, beside those of every checkpoint on a choice of its examples."""


def jobs_for(config: Config, prepared: Prepared) -> list[EvaluationJob]:
    """What is measured on every checkpoint: each task with right answers, on its validation split; and the loss of each
    task's held-out text."""
    answered = [
        replace(job_for(config, name, "validation", prepared.caches[name]), limit=config.evaluation.examples)
        for name, splits in _judged_splits(config, prepared).items()
        if "validation" in splits
    ]
    return answered + [_text_job(config, prepared, name) for name in prepared.held_out]


def final_jobs_for(config: Config, prepared: Prepared) -> list[EvaluationJob]:
    """What is measured once, on the best checkpoint: each task's whole test split, or its whole validation split where
    the answers of the test split are not public."""
    tasks = tasks_of(config)
    trained = {judge: name for name, task in tasks.items() for judge in task.evaluated_by}
    trained |= {name: name for name, task in tasks.items() if task.trained}
    jobs = []
    for name, splits in _judged_splits(config, prepared).items():
        if splits:
            split = "test" if "test" in splits else "validation"
            job = job_for(config, name, split, prepared.caches[name])
            named = split if split == "test" else WHOLE_VALIDATION
            training = prepared.caches[trained[name]] if name in trained else ""
            jobs.append(replace(job, named=named, baselines=True, training=training))
    return jobs


def _judged_splits(config: Config, prepared: Prepared) -> dict[str, tuple[str, ...]]:
    """The splits of each prepared task whose right answers are known."""
    return {
        name: tuple(split for split in prepared_splits(task) if split in task.evaluated)
        for name, task in tasks_of(config).items()
        if name in prepared.caches and task.metrics
    }


def _text_job(config: Config, prepared: Prepared, name: str) -> EvaluationJob:
    spec = held_out_spec(config, prepared, name)
    job = job_for(config, name, "validation", prepared.held_out[name])
    return replace(job, limit=config.evaluation.text_pieces, stream=spec.to_dict())


def job_for(config: Config, name: str, split: str, cache: str = "") -> EvaluationJob:
    """A split of a task, answered as the recipe says, by a checkpoint that is not named yet."""
    size = read_manifest(cache)["splits"][split]["rows"] if cache and is_closed(cache) else None
    return EvaluationJob(
        task=asdict(choice_of(config, name)),
        split=split,
        named=split,
        cache=cache,
        inputs_length=config.data.inputs_length,
        targets_length=config.data.targets_length,
        decode_length=config.evaluation.decode_length,
        batch_tokens=config.evaluation.batch_tokens,
        beams=config.evaluation.beams,
        length_penalty=config.evaluation.length_penalty,
        rank=config.evaluation.classification == "rank",
        precision=config.evaluation.precision,
        copies=asdict(copies_of(config)),
        size=size,
    )


def evaluation_events(
    run_path: Path,
    checkpoint: Path,
    step: int,
    jobs: Sequence[EvaluationJob],
    evaluate: Callable[[Sequence[EvaluationJob]], list[dict[str, Any]]],
) -> list[TaskResult]:
    """Evaluate a checkpoint of a run and report the results to the run's events."""
    if not jobs:
        return []
    run, started = Run(run_path), time.perf_counter()
    ready = [
        replace(
            job,
            checkpoint=str(checkpoint),
            answers=str(run.predictions / checkpoint.name / f"{job.name}.{job.named}.jsonl"),
            earlier_answers=str(run.predictions / checkpoint.name / f"{job.name}.{job.split}.jsonl")
            if job.named == WHOLE_VALIDATION
            else "",
        )
        for job in jobs
    ]
    results = answered(evaluate(ready))
    seconds = time.perf_counter() - started
    run.events.mkdir(exist_ok=True)
    records = [
        record for job, result in zip(ready, results, strict=True) for record in _records(job, result, step, seconds)
    ]
    with EventWriter(run.events / f"evaluate-{step:06d}-{jobs[0].named}-{time.time_ns()}.jsonl") as events:
        events.write(*records)
    return results


def _records(job: EvaluationJob, result: TaskResult, step: int, seconds: float) -> list[EvaluationResult]:
    return [
        EvaluationResult(
            step=step,
            task=result.task,
            split=result.split,
            metric=metric.metric,
            value=metric.value,
            low=metric.low,
            high=metric.high,
            baseline=None if metric.baseline is None else metric.baseline.value,
            baseline_rule=None if metric.baseline is None else metric.baseline.rule,
            examples=result.examples,
            seconds=seconds,
            higher_is_better=metric.higher_is_better,
            target_tokens=result.target_tokens,
            data=job.data,
            data_source=shown(job.cache),
        )
        for metric in result.metrics
    ]


def answered(plain: Sequence[dict[str, Any]]) -> list[TaskResult]:
    """The results that jobs gave in plain values."""
    return [_result(values) for values in plain]


def _result(values: dict[str, Any]) -> TaskResult:
    metrics = [
        MetricResult(**{**metric, "baseline": None if metric["baseline"] is None else Baseline(**metric["baseline"])})
        for metric in values["metrics"]
    ]
    return TaskResult(**{**values, "metrics": metrics})
