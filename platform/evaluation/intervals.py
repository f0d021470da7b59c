"""How sure a number is: percentile bootstrap intervals over the examples of a split (Efron 1979).

A split of n examples is drawn again `resamples` times, n examples with replacement each time; the interval holds the
middle 95 % of the metric's values. Where examples belong together (all answers to one question), whole groups are
drawn. The draws come from a specified generator, so the same answers give the same interval on every machine (but for
the last bits of sums). It speaks of the choice of examples only, not of the seeds of training.

NaN is a value: a metric that is NaN has an interval of NaN. Draws for which a metric is undefined, as a correlation
of equal numbers is, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mixtura.platform.evaluation.metrics_face import Units, units_of_mean
from mixtura.platform.random_bits import integers, key

RESAMPLES = 1000
CONFIDENCE = 0.95

_DRAWS_AT_ONCE = 1 << 18
_EXAMPLES_JUDGED = 2_000_000
_FEWEST_RESAMPLES = 100


class _Metric(Protocol):
    def __call__(self, predictions: Sequence[Any], targets: Sequence[Any]) -> float: ...

    def scores(self, predictions: Sequence[Any], targets: Sequence[Any]) -> Sequence[float] | None: ...


def bounds_shown(low: float, high: float) -> str:
    """Bounds for a person: three digits.

    >>> bounds_shown(57.333, 68.31), bounds_shown(0.02215, 0.034), bounds_shown(602.4, 1234.6)
    ('57.3 to 68.3', '0.0221 to 0.034', '602 to 1235')
    """
    return " to ".join(f"{bound:.3g}" if abs(bound) < 1000 else f"{bound:.0f}" for bound in (low, high))


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
    """The metric's value with its interval.

    A metric with `units` or `scores` is resampled as arrays. Any other is computed for each draw, for fewer draws (at
    least 100) where `resamples` times the examples would be more than two million.

    >>> from mixtura.platform.evaluation.metrics import accuracy
    >>> interval = bootstrap_interval(accuracy, ["a"] * 100, ["a"] * 50 + ["b"] * 50)
    >>> interval.value, interval.low, interval.high
    (50.0, 40.0, 60.0)
    """
    value = metric(predictions, targets)
    if np.isnan(value) or not len(targets):
        return Interval(value, value, value, confidence)
    units = _units(metric, predictions, targets)
    if units is None:
        units = _computed_each_time(metric, predictions, targets)
        resamples = min(resamples, max(_FEWEST_RESAMPLES, _EXAMPLES_JUDGED // len(targets)))
    return _between(value, _resampled(units, resamples, seed), confidence)


def bootstrap_difference(
    metric: _Metric,
    first: Sequence[Any],
    second: Sequence[Any],
    targets: Sequence[Any],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How much better `first` is than `second` by a metric, two systems' answers to the same examples, with its paired
    interval: each resample has the same examples of both.

    Where it leaves out 0 the systems differ; it is narrower than what two separate intervals say.

    >>> from mixtura.platform.evaluation.metrics import accuracy
    >>> bootstrap_difference(accuracy, ["a", "a", "b"], ["b", "b", "b"], ["a", "a", "a"]).value
    66.66666666666667
    """
    value = metric(first, targets) - metric(second, targets)
    if np.isnan(value):
        return Interval(value, value, value, confidence)
    resamples, units = _units_of_both(metric, (first, targets), (second, targets), resamples)
    differences = [units[0].values(drawn) - units[1].values(drawn) for drawn in _drawn(units[0].count, resamples, seed)]
    return _between(value, np.concatenate(differences), confidence)


def independent_difference(
    metric: _Metric,
    first: tuple[Sequence[Any], Sequence[Any]],
    second: tuple[Sequence[Any], Sequence[Any]],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The same for systems that answered other examples, each (predictions, targets): wider, as nothing is paired."""
    value = metric(*first) - metric(*second)
    if np.isnan(value):
        return Interval(value, value, value, confidence)
    resamples, units = _units_of_both(metric, first, second, resamples)
    ours, theirs = (_resampled(one, resamples, seed + place) for place, one in enumerate(units))
    return _between(value, ours - theirs, confidence)


def _units_of_both(
    metric: _Metric,
    first: tuple[Sequence[Any], Sequence[Any]],
    second: tuple[Sequence[Any], Sequence[Any]],
    resamples: int,
) -> tuple[int, list[Units]]:
    """How often to draw, fewer times where the metric is computed each time, and what."""
    units = [_units(metric, *one) for one in (first, second)]
    found = [one for one in units if one is not None]
    if len(found) == len(units):
        return resamples, found
    fewer = min(resamples, max(_FEWEST_RESAMPLES, _EXAMPLES_JUDGED // max(len(first[1]), len(second[1]))))
    return fewer, [_computed_each_time(metric, *one) for one in (first, second)]


def resampled_means(
    scores: Sequence[float] | npt.NDArray[np.float64], resamples: int, seed: int = 0
) -> npt.NDArray[np.float64]:
    """The mean of each resample: [resamples]."""
    return _resampled(units_of_mean(scores), resamples, seed)


def _units(metric: _Metric, predictions: Sequence[Any], targets: Sequence[Any]) -> Units | None:
    """What to draw; metrics from elsewhere may know nothing of units."""
    of_metric: Callable[..., Units | None] | None = getattr(metric, "units", None)
    if of_metric is not None:
        return of_metric(predictions, targets)
    scores = metric.scores(predictions, targets)
    return None if scores is None else units_of_mean(scores)


def _computed_each_time(metric: _Metric, predictions: Sequence[Any], targets: Sequence[Any]) -> Units:
    def values(drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        places = [np.repeat(np.arange(len(targets)), row.astype(np.int64)).tolist() for row in drawn]
        return np.array([metric([predictions[p] for p in row], [targets[p] for p in row]) for row in places])

    return Units(len(targets), values)


def _resampled(units: Units, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    return np.concatenate([units.values(drawn) for drawn in _drawn(units.count, resamples, seed)])


def _drawn(count: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    """How often each unit is drawn, [some resamples, count] at a time, so that memory stays bounded."""
    rows = max(1, _DRAWS_AT_ONCE // count)
    for start in range(0, resamples, rows):
        draws = np.arange(start * count, min(resamples, start + rows) * count)
        places = integers(key("bootstrap", seed), draws, count).astype(np.int64)
        places += draws // count * count - start * count
        many = np.bincount(places, minlength=len(draws)).reshape(-1, count)
        yield many.astype(np.float64)


def _between(value: float, resampled: npt.NDArray[np.float64], confidence: float) -> Interval:
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"), confidence)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), confidence)
