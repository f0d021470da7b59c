"""From a model's answers to numbers: decode, postprocess, metric, for one task and split."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.task import Task
from mixtura.platform.evaluation.baselines import Baseline
from mixtura.platform.evaluation.intervals import Interval, bootstrap_interval

Ids = npt.NDArray[np.int32]
Decode = Callable[[npt.NDArray[np.int32]], Sequence[tuple[Sequence[int], float]]]
"""Padded encoder inputs [batch, length] to the ids of one answer a row, and its log-probability."""


@dataclass(frozen=True)
class Prediction:
    """What a model answered, and the log-probability that it gives this answer, its end included."""

    text: str
    log_probability: float


@dataclass(frozen=True)
class EvaluationExample:
    """One example to answer: its encoder ids with EOS, and what its task needs to judge the answer."""

    ids: Ids
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class MetricResult:
    """A metric's value with its 95 % bootstrap interval, and what costs nothing to reach."""

    metric: str
    value: float
    low: float
    high: float
    higher_is_better: bool = True
    baseline: Baseline | None = None


@dataclass(frozen=True)
class TaskResult:
    """What a checkpoint reached on one split of one task; the first metric is the headline."""

    task: str
    split: str
    examples: int
    seconds: float
    metrics: list[MetricResult]
    answers: list[dict[str, Any]] = field(repr=False)
    """One record an example: inputs, targets, prediction (text), its log_probability, answer (postprocessed), scores by
    metric."""


def evaluate_task(
    task: Task,
    split: str,
    examples: Sequence[EvaluationExample],
    decode: Decode,
    text_of: Callable[[Sequence[int]], str],
    *,
    batch_tokens: int,
    baselines: Mapping[str, Baseline] | None = None,
) -> TaskResult:
    """Answer all examples, longest first so that batches hold little padding, and judge the answers in their order."""
    started = time.perf_counter()
    predictions = dict(predict([example.ids for example in examples], decode, text_of, batch_tokens))
    ordered = [predictions[place] for place in range(len(examples))]
    return judged(task, split, examples, ordered, time.perf_counter() - started, baselines or {})


def predict(
    rows: Sequence[Ids], decode: Decode, text_of: Callable[[Sequence[int]], str], batch_tokens: int
) -> Iterator[tuple[int, Prediction]]:
    """The answer to each row of ids, with its place, batch by batch: the longest first, so that little is padding."""
    for batch in batches_by_length([len(row) for row in rows], batch_tokens):
        for place, (ids, log_probability) in zip(batch, decode(padded([rows[at] for at in batch])), strict=True):
            yield place, Prediction(text_of(ids), log_probability)


def judged(
    task: Task,
    split: str,
    examples: Sequence[EvaluationExample],
    predictions: Sequence[Prediction],
    seconds: float,
    baselines: Mapping[str, Baseline],
) -> TaskResult:
    """The metrics of answers that are given as text."""
    answers = [task.postprocess(one.text, example.fields) for one, example in zip(predictions, examples, strict=True)]
    targets = [task.answer(example.fields) for example in examples]
    results, scores = [], {}
    for metric in task.metrics:
        interval: Interval = bootstrap_interval(metric, answers, targets)
        scores[metric.name] = metric.scores(answers, targets)
        results.append(
            MetricResult(
                metric.name,
                interval.value,
                interval.low,
                interval.high,
                metric.higher_is_better,
                baselines.get(metric.name),
            )
        )
    records = [
        {
            "inputs": example.fields["inputs"],
            "targets": example.fields["targets"],
            "prediction": prediction.text,
            "log_probability": prediction.log_probability,
            "answer": answer,
            "scores": {name: float(values[place]) for name, values in scores.items() if values is not None},
        }
        for place, (example, prediction, answer) in enumerate(zip(examples, predictions, answers, strict=True))
    ]
    return TaskResult(task.name, split, len(examples), seconds, results, records)


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions in batches of similar length, longest first, of at most `batch_tokens` padded positions each.

    >>> list(batches_by_length([2, 8, 3, 7], batch_tokens=16))
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def padded(rows: Sequence[Ids]) -> npt.NDArray[np.int32]:
    """Rows of ids as one array, padded with 0 to the longest.

    >>> padded([np.array([5, 1], np.int32), np.array([1], np.int32)]).tolist()
    [[5, 1], [1, 0]]
    """
    result = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int32)
    for place, row in enumerate(rows):
        result[place, : len(row)] = row
    return result


def write_answers(result: TaskResult) -> str:
    """The records of a result as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in result.answers)
