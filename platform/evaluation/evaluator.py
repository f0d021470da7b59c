"""From a model's answers to numbers, for one task and split: decode, postprocess, metric; or score held-out text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.task import Metric, Task
from mixtura.platform.evaluation.baselines import Baseline
from mixtura.platform.evaluation.intervals import bootstrap_interval
from mixtura.platform.evaluation.losses import bits_per_byte, loss, perplexity

Ids = npt.NDArray[np.int32]


class Decoded(NamedTuple):
    """The answer to one row: its ids, its log-probability, and that of the right answer where it was given."""

    ids: Sequence[int]
    log_probability: float
    of_target: float | None


Decode = Callable[[Ids, Ids | None], Sequence[Decoded]]
"""Padded inputs [batch, length], and padded right answers [batch, target length] where they are known, to answers."""

Score = Callable[[Ids, Ids], Sequence[float]]
"""Padded inputs and padded targets to the targets' log-probabilities."""


class Prediction(NamedTuple):
    """What a model answered, and the log-probabilities that it gives this answer and the right one, ends included."""

    text: str
    log_probability: float
    target_log_probability: float | None = None


@dataclass(frozen=True)
class EvaluationExample:
    """One example to answer: the ids of its inputs and of its right answer, with EOS, and what its task needs to judge
    what is answered."""

    ids: Ids
    targets: Ids
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class TextExample:
    """A piece of held-out text as its objective has made it: ids with EOS, and the UTF-8 bytes of the targets' text."""

    ids: Ids
    targets: Ids
    target_bytes: int


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
    target_tokens: int
    """that losses are over"""
    seconds: float
    metrics: list[MetricResult]
    answers: list[dict[str, Any]] = field(repr=False)
    """One record an example: inputs, targets, prediction (text), its log_probability and that of the targets, how many
    tokens these have, answer and right_answer as metrics take them, scores by metric. Of text: inputs, targets and what
    is known of these."""


def predict(
    rows: Sequence[Ids],
    decode: Decode,
    text_of: Callable[[Sequence[int]], str],
    batch_tokens: int,
    targets: Sequence[Ids] | None = None,
) -> Iterator[tuple[int, Prediction]]:
    """The answer to each row of ids, with its place, batch by batch: the longest first, so that little is padding.

    With `targets` it is also told how likely these would have been.
    """
    for batch in batches_by_length([len(row) for row in rows], batch_tokens):
        right = None if targets is None else padded([targets[at] for at in batch])
        for place, found in zip(batch, decode(padded([rows[at] for at in batch]), right), strict=True):
            yield place, Prediction(text_of(found.ids), found.log_probability, found.of_target)


def judged(
    task: Task,
    split: str,
    examples: Sequence[EvaluationExample],
    predictions: Sequence[Prediction],
    seconds: float,
    baselines: Mapping[str, Baseline],
) -> TaskResult:
    """The metrics of answers that are given as text, then the loss of the right answers."""
    answers = [task.postprocess(one.text, example.fields) for one, example in zip(predictions, examples, strict=True)]
    targets = [task.answer(example.fields) for example in examples]
    tokens = [len(example.targets) for example in examples]
    results = [_result(metric, answers, targets, baselines.get(metric.name)) for metric in task.metrics]
    scores = {metric.name: metric.scores(answers, targets) for metric in task.metrics}
    likelihoods = [one.target_log_probability for one in predictions]
    nats = [-one for one in likelihoods if one is not None]
    if len(nats) == len(examples):
        results.append(_result(loss, nats, tokens))
    records = [
        {
            "inputs": example.fields["inputs"],
            "targets": example.fields["targets"],
            "prediction": prediction.text,
            "log_probability": prediction.log_probability,
            "target_log_probability": prediction.target_log_probability,
            "target_tokens": tokens[place],
            "answer": answer,
            "right_answer": targets[place],
            "scores": {name: float(values[place]) for name, values in scores.items() if values is not None},
        }
        for place, (example, prediction, answer) in enumerate(zip(examples, predictions, answers, strict=True))
    ]
    return TaskResult(task.name, split, len(examples), sum(tokens), seconds, results, records)


def evaluate_text(
    name: str,
    split: str,
    examples: Sequence[TextExample],
    score: Score,
    text_of: Callable[[Sequence[int]], str],
    *,
    batch_tokens: int,
) -> TaskResult:
    """How well a model knows held-out text: bits per byte, perplexity and loss of what its objective asks for."""
    started = time.perf_counter()
    nats = [0.0] * len(examples)
    for batch in batches_by_length([len(one.ids) + len(one.targets) for one in examples], batch_tokens):
        chosen = [examples[place] for place in batch]
        found = score(padded([one.ids for one in chosen]), padded([one.targets for one in chosen]))
        for place, likelihood in zip(batch, found, strict=True):
            nats[place] = -likelihood
    tokens = [len(one.targets) for one in examples]
    results = [
        _result(bits_per_byte, nats, [one.target_bytes for one in examples]),
        _result(perplexity, nats, tokens),
        _result(loss, nats, tokens),
    ]
    records = [
        {
            "inputs": text_of(one.ids.tolist()),
            "targets": text_of(one.targets.tolist()),
            "target_log_probability": -nats[place],
            "target_tokens": tokens[place],
            "target_bytes": one.target_bytes,
        }
        for place, one in enumerate(examples)
    ]
    return TaskResult(name, split, len(examples), sum(tokens), time.perf_counter() - started, results, records)


def _result(
    metric: Metric, answers: Sequence[Any], targets: Sequence[Any], baseline: Baseline | None = None
) -> MetricResult:
    interval = bootstrap_interval(metric, answers, targets)
    return MetricResult(metric.name, interval.value, interval.low, interval.high, metric.higher_is_better, baseline)


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
    """Rows of ids as one array, padded with 0 to the longest; at least one wide.

    >>> padded([np.array([5, 1], np.int32), np.array([1], np.int32)]).tolist()
    [[5, 1], [1, 0]]
    """
    result = np.zeros((len(rows), max(1, *(len(row) for row in rows))), dtype=np.int32)
    for place, row in enumerate(rows):
        result[place, : len(row)] = row
    return result


def write_answers(result: TaskResult) -> str:
    """The records of a result as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in result.answers)


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The records of a file of answers, as `write_answers` and submissions write them."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
