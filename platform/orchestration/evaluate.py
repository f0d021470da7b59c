"""Evaluation as work of its own: one checkpoint on one split of one task, anywhere."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtura.platform.config import Config
from mixtura.platform.data.answer_window import answer_window
from mixtura.platform.data.cache import TokenCache, open_cache
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.filesystems import last_name, shown
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.evaluation.baselines import Baseline, trivial_baselines
from mixtura.platform.evaluation.evaluator import (
    Decode,
    EvaluationExample,
    MetricResult,
    Prediction,
    TaskResult,
    evaluate_task,
    judged,
    write_answers,
)
from mixtura.platform.files import write_bytes_atomically
from mixtura.platform.orchestration.ensembles import Answerer, load
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.orchestration.tasks import choice_of, chosen_task, prepared_splits, tasks_of
from mixtura.platform.random_bits import key, order
from mixtura.platform.tracking.records import EvaluationResult, EventWriter
from mixtura.platform.workspace import Run

if TYPE_CHECKING:
    from mixtura.models.t5 import Answering


_FREQUENT_TARGETS = 1000

WHOLE_VALIDATION = "validation_whole"
"""Results on all of a validation split, beside those of every checkpoint on a choice of its examples."""


@dataclass(frozen=True)
class EvaluationJob:
    """What to measure; plain values, so that it can be sent anywhere. The checkpoint is filled in when there is one."""

    task: dict[str, Any]
    """A `TaskChoice` as a dictionary."""
    split: str
    named: str
    """The split as results call it."""
    cache: str
    inputs_length: int
    decode_length: int
    batch_tokens: int
    beams: int = 1
    """Answers that beam search looks at side by side; 1 is greedy."""
    length_penalty: float = 0.6
    limit: int | None = None
    """At most so many examples, chosen by chance and the same for every checkpoint."""
    baselines: bool = False
    training: str = ""
    """Cache of the task whose training outputs are baselines; none if empty."""
    checkpoint: str = ""
    """A folder, or several as `Answerer.spec` has them."""
    answers: str = ""
    """File for what the checkpoint answered, as JSON lines."""
    earlier_answers: str = ""
    """File of the same checkpoint's answers to the same examples, if there is one: they are judged again then."""
    copies: dict[str, Any] = field(default_factory=dict)
    """`Copies` as a dictionary: where a node keeps local copies of caches that lie in a bucket."""

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.task["name"])

    @property
    def data(self) -> str:
        """The digest of the examples: that of their cache, and behind it how many were chosen, if not all were."""
        digest = last_name(self.cache).rpartition("-")[2]
        return digest if self.limit is None else f"{digest}-{self.limit}"

    @property
    def asked(self) -> dict[str, Any]:
        """How answers are decoded, kept with each of them."""
        penalty = {} if self.beams == 1 else {"length_penalty": self.length_penalty}
        return {"decode_length": self.decode_length, "beams": self.beams, **penalty}


def jobs_for(config: Config, prepared: Prepared) -> list[EvaluationJob]:
    """What is measured on every checkpoint: each task with right answers, on its validation split."""
    return [
        replace(_job(config, prepared, name, "validation"), limit=config.evaluation.examples)
        for name, splits in _judged_splits(config, prepared).items()
        if "validation" in splits
    ]


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
            job = _job(config, prepared, name, split)
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


def _job(config: Config, prepared: Prepared, name: str, split: str) -> EvaluationJob:
    return EvaluationJob(
        task=asdict(choice_of(config, name)),
        split=split,
        named=split,
        cache=prepared.caches[name],
        inputs_length=config.data.inputs_length,
        decode_length=config.evaluation.decode_length,
        batch_tokens=config.evaluation.batch_tokens,
        beams=config.evaluation.beams,
        length_penalty=config.evaluation.length_penalty,
        copies=asdict(copies_of(config)),
    )


def run_job(job: EvaluationJob) -> dict[str, Any]:
    """Answer and judge; returns the numbers (the answers go to their file)."""
    model, vocabulary = _loaded(job.checkpoint)
    task, cache = chosen_task(job.task), open_cache(job.cache, job.split, Copies(**job.copies))
    examples = load_examples(cache, job.inputs_length, job.limit, around_answer=task.around_answer)
    baselines: dict[str, Baseline] = {}
    if job.baselines:
        targets = training_targets(job.training, vocabulary, Copies(**job.copies)) if job.training else Counter()
        baselines = trivial_baselines(task, targets, [example.fields for example in examples])
    earlier = _earlier_predictions(job, len(examples))
    if earlier is not None:
        result = judged(task, job.named, examples, earlier, 0.0, baselines)
    else:
        result = evaluate_task(
            task,
            job.named,
            examples,
            decoding(model, job.decode_length, job.beams, job.length_penalty),
            vocabulary.decode,
            batch_tokens=max(1, job.batch_tokens // job.beams),
            baselines=baselines,
        )
    if job.answers:
        records = [{**record, **job.asked} for record in result.answers]
        write_bytes_atomically(Path(job.answers), write_answers(replace(result, answers=records)).encode())
    return asdict(replace(result, answers=[]))


def _earlier_predictions(job: EvaluationJob, count: int) -> list[Prediction] | None:
    """What the checkpoint answered before, where it was asked exactly these examples, and decoded as now."""
    path = Path(job.earlier_answers)
    if not job.earlier_answers or not path.is_file():
        return None
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    asked = job.asked.items()
    same = len(records) == count and all(one.items() >= asked and "log_probability" in one for one in records)
    return [Prediction(record["prediction"], record["log_probability"]) for record in records] if same else None


def load_examples(
    cache: TokenCache, inputs_length: int, limit: int | None, *, around_answer: bool = False
) -> list[EvaluationExample]:
    """The examples of a split, trimmed as in training; with a limit, a fixed choice of them by chance."""
    examples: list[EvaluationExample] = []
    for shard in range(cache.count):
        table = cache.table(shard)
        columns = (table.column(name) for name in ("inputs", "targets", "fields"))
        for ids, targets, fields in zip(*columns, strict=True):
            tokens = ids.values.to_numpy()
            if around_answer:
                window = answer_window(
                    tokens, targets.values.to_numpy(), inputs_length - 1, key("window", len(examples))
                )
                tokens = tokens if window is None else np.asarray(window)
            tokens = tokens[: inputs_length - 1]
            examples.append(EvaluationExample(np.append(tokens, EOS_ID).astype(np.int32), json.loads(fields.as_py())))
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.sort(order(key("evaluation examples", cache.name, cache.split), len(examples))[:limit])
    return [examples[place] for place in chosen]


def training_targets(place: str, vocabulary: Vocabulary, copies: Copies | None = None) -> Counter[str]:
    """The most frequent outputs that training saw, as text, with how often. Only those are turned into text."""
    cache = open_cache(place, "train", copies)
    counts: Counter[bytes] = Counter()
    for shard in range(cache.count):
        for ids in cache.table(shard).column("targets"):
            counts[ids.values.to_numpy().tobytes()] += 1
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_FREQUENT_TARGETS]
    texts: Counter[str] = Counter()
    for ids, count in frequent:
        texts[vocabulary.decode(np.frombuffer(ids, np.int32))] += count
    return texts


def decoding(model: Answering, decode_length: int, beams: int, length_penalty: float) -> Decode:
    """Decoding with a model, as the evaluator takes it: greedy with one beam."""
    import torch

    from mixtura.models.t5 import decode

    def answer(inputs: np.ndarray[Any, Any]) -> list[tuple[list[int], float]]:
        found = decode(
            model,
            torch.from_numpy(inputs).long(),
            max_length=decode_length,
            beams=beams,
            length_penalty=length_penalty,
            eos_id=EOS_ID,
        )
        return list(zip(found.ids.tolist(), found.log_probabilities.tolist(), strict=True))

    return answer


@lru_cache(maxsize=1)
def _loaded(checkpoint: str) -> tuple[Answering, Vocabulary]:
    return load(Answerer.of_spec(checkpoint))


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
