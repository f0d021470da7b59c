"""Evaluation as work of its own: one checkpoint on one split of one task, anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtura.platform.config import Config
from mixtura.platform.data.cache import TokenCache, open_cache
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.evaluation.baselines import Baseline, trivial_baselines
from mixtura.platform.evaluation.evaluator import (
    Decode,
    EvaluationExample,
    MetricResult,
    TaskResult,
    evaluate_task,
    write_answers,
)
from mixtura.platform.files import write_bytes_atomically
from mixtura.platform.orchestration import assemble
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.random_bits import key, order
from mixtura.platform.tracking.records import EvaluationResult, EventWriter
from mixtura.platform.workspace import Run
from mixtura.tasks import get_task

if TYPE_CHECKING:
    from mixtura.models.t5 import T5


@dataclass(frozen=True)
class EvaluationJob:
    """What to measure; plain values, so that it can be sent anywhere. The checkpoint is filled in when there is one."""

    task: str
    split: str
    cache: str
    inputs_length: int
    decode_length: int
    batch_tokens: int
    limit: int | None = None
    """At most so many examples, chosen by chance and the same for every checkpoint."""
    baselines: bool = False
    checkpoint: str = ""
    answers: str = ""
    """File for what the checkpoint answered, as JSON lines."""
    threads: int = 1


def jobs_for(config: Config, prepared: Prepared, split: str, *, threads: int = 1) -> list[EvaluationJob]:
    """One job for each supervised task of a mixture that is drawn from."""
    final = split == "test"
    return [
        EvaluationJob(
            task=name,
            split=split,
            cache=str(prepared.caches[name]),
            inputs_length=config.data.inputs_length,
            decode_length=config.evaluation.decode_length,
            batch_tokens=config.evaluation.batch_tokens,
            limit=None if final else config.evaluation.examples,
            baselines=final,
            threads=threads,
        )
        for name in config.mixture.tasks
        if get_task(name).kind == "supervised" and get_task(name).metrics and split in get_task(name).splits
    ]


def run_job(job: EvaluationJob) -> dict[str, Any]:
    """Answer and judge; returns the numbers (the answers go to their file)."""
    import torch

    torch.set_num_threads(job.threads)
    model, vocabulary = _loaded(job.checkpoint)
    task, cache = get_task(job.task), open_cache(job.cache, job.split)
    examples = load_examples(cache, job.inputs_length, job.limit)
    baselines: dict[str, Baseline] = {}
    if job.baselines:
        baselines = trivial_baselines(task, training_targets(job, vocabulary), [example.fields for example in examples])
    result = evaluate_task(
        task,
        job.split,
        examples,
        greedy(model, job.decode_length),
        vocabulary.decode,
        batch_tokens=job.batch_tokens,
        baselines=baselines,
    )
    if job.answers:
        write_bytes_atomically(Path(job.answers), write_answers(result).encode())
    return asdict(replace(result, answers=[]))


def load_examples(cache: TokenCache, inputs_length: int, limit: int | None) -> list[EvaluationExample]:
    """The examples of a split, trimmed as in training; with a limit, a fixed choice of them by chance."""
    examples = []
    for shard in range(len(cache.shards)):
        table = cache.table(shard)
        for ids, fields in zip(table.column("inputs"), table.column("fields"), strict=True):
            tokens = ids.values.to_numpy()[: inputs_length - 1]
            examples.append(EvaluationExample(np.append(tokens, EOS_ID).astype(np.int32), json.loads(fields.as_py())))
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.sort(order(key("evaluation examples", cache.name, cache.split), len(examples))[:limit])
    return [examples[place] for place in chosen]


def training_targets(job: EvaluationJob, vocabulary: Vocabulary) -> list[str]:
    """The outputs that training saw, as text."""
    cache = open_cache(job.cache, "train")
    return [
        vocabulary.decode(ids.values.to_numpy())
        for shard in range(len(cache.shards))
        for ids in cache.table(shard).column("targets")
    ]


def greedy(model: T5, decode_length: int) -> Decode:
    """Greedy decoding with a model, as the evaluator takes it."""
    import torch

    from mixtura.models.t5 import greedy_decode

    def decode(inputs: np.ndarray[Any, Any]) -> list[list[int]]:
        rows: list[list[int]] = greedy_decode(
            model, torch.from_numpy(inputs).long(), max_length=decode_length, eos_id=EOS_ID
        ).tolist()
        return rows

    return decode


@lru_cache(maxsize=1)
def _loaded(checkpoint: str) -> tuple[T5, Vocabulary]:
    return assemble.load_model(Path(checkpoint))


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
            answers=str(run.predictions / checkpoint.name / f"{job.task}.{job.split}.jsonl"),
        )
        for job in jobs
    ]
    results = [_result(values) for values in evaluate(ready)]
    seconds = time.perf_counter() - started
    run.events.mkdir(exist_ok=True)
    records = [record for result in results for record in _records(result, step, seconds)]
    with EventWriter(run.events / f"evaluate-{step:06d}-{jobs[0].split}-{time.time_ns()}.jsonl") as events:
        events.write(*records)
    return results


def _records(result: TaskResult, step: int, seconds: float) -> list[EvaluationResult]:
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
        )
        for metric in result.metrics
    ]


def _result(values: dict[str, Any]) -> TaskResult:
    metrics = [
        MetricResult(**{**metric, "baseline": None if metric["baseline"] is None else Baseline(**metric["baseline"])})
        for metric in values["metrics"]
    ]
    return TaskResult(**{**values, "metrics": metrics})
