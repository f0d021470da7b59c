"""How sure a number is: percentile bootstrap intervals over the examples of a split (Efron 1979).

A split of n examples is drawn again `resamples` times, n examples with replacement each time; the interval holds the
middle 95 % of the metric's values. The draws come from a specified generator, so the same answers give the same
interval on every machine. It speaks of the choice of examples only, not of the seeds of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mixtura.platform.random_bits import integers, key

RESAMPLES = 1000
CONFIDENCE = 0.95

_DRAWS_AT_ONCE = 1 << 20


class _Metric(Protocol):
    def __call__(self, predictions: Sequence[Any], targets: Sequence[Any]) -> float: ...

    def scores(self, predictions: Sequence[Any], targets: Sequence[Any]) -> Sequence[float] | None: ...


@dataclass(frozen=True)
class Interval:
    """A value, and the bounds between which it lies with the given confidence."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE


def bootstrap_interval(
    metric: _Metric,
    predictions: Sequence[Any],
    targets: Sequence[Any],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The metric's value with its interval. Means over examples are resampled as arrays, others computed each time.

    >>> from mixtura.platform.evaluation.metrics import accuracy
    >>> interval = bootstrap_interval(accuracy, ["a"] * 100, ["a"] * 50 + ["b"] * 50)
    >>> interval.value, interval.low, interval.high
    (50.0, 40.0, 60.0)
    """
    value = metric(predictions, targets)
    scores = metric.scores(predictions, targets)
    if scores is not None:
        return _between(value, resampled_means(scores, resamples, seed), confidence)
    values = [
        metric([predictions[place] for place in places], [targets[place] for place in places])
        for block in _drawn(len(targets), resamples, seed)
        for places in block
    ]
    return _between(value, np.array(values), confidence)


def bootstrap_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `first - second`, the scores of two systems on the same examples, with its paired interval.

    Where it leaves out 0 the systems differ; it is narrower than what two separate intervals say.

    >>> bootstrap_difference([100.0, 100.0, 0.0], [0.0, 0.0, 0.0]).value
    66.66666666666667
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return _between(float(differences.mean()), resampled_means(differences, resamples, seed), confidence)


def resampled_means(
    scores: Sequence[float] | npt.NDArray[np.float64], resamples: int, seed: int = 0
) -> npt.NDArray[np.float64]:
    """The mean of each resample: [resamples]."""
    values = np.asarray(scores, dtype=np.float64)
    return np.concatenate([values[places].mean(axis=1) for places in _drawn(len(values), resamples, seed)])


def _drawn(count: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Places of examples, [some resamples, count] at a time, so that memory stays bounded for large splits."""
    rows = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, resamples, rows):
        draws = np.arange(start * count, min(resamples, start + rows) * count)
        yield integers(key("bootstrap", seed), draws, count).astype(np.int64).reshape(-1, count)


def _between(value: float, resampled: npt.NDArray[np.float64], confidence: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), confidence)
