"""What a metric is: a name, a number for all answers of a split, and how that number changes with the examples drawn.

An interval draws a split again a thousand times. To compute each number anew from the texts would take hours, and
there is no need: nearly every number is made from sums over examples, so it follows from how often each was drawn.
`units(predictions, targets)` gives that function. Units are what is drawn: examples, or the groups that they belong to
(all answers to one question), since answers of one group are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtura.platform.errors import DataError

SCALE = 100.0

Floats = npt.NDArray[np.float64]
Answers = Sequence[Any]


@dataclass(frozen=True)
class Units:
    """What can be drawn again, and the metric's value for any draw.

    >>> scores = np.array([100.0, 0.0])
    >>> Units(2, lambda drawn: drawn @ scores / 2).values(np.array([[1, 1], [2, 0], [0, 2]])).tolist()
    [50.0, 100.0, 0.0]
    """

    count: int
    values: Callable[[Floats], Floats]
    """How often each unit is drawn, [draws, count], to the values, [draws]; drawn once each, the metric's own value."""


def units_from_sums(statistics: Floats, value: Callable[[Floats], Floats], scale: float = SCALE) -> Units:
    """Units whose number is made from sums: `statistics` is [units, k], `value` takes their sums, [draws, k]."""
    return Units(len(statistics), lambda drawn: scale * value(drawn @ statistics))


def units_of_mean(scores: Sequence[float] | Floats) -> Units:
    """Units whose number is the mean of their scores, whatever the scores' scale."""
    values = np.asarray(scores, dtype=np.float64)
    return Units(len(values), lambda drawn: drawn @ values / len(values))


@dataclass(frozen=True)
class MeanMetric:
    """100 times the mean of `of_example(prediction, target)`, a number in [0, 1].

    >>> MeanMetric("accuracy", lambda prediction, target: float(prediction == target))(["cat", "dog"], ["cat", "cat"])
    50.0
    """

    name: str
    of_example: Callable[[Any, Any], float]
    higher_is_better: bool = True
    description: str = ""
    scale: float = SCALE

    def scores(self, predictions: Answers, targets: Answers) -> list[float]:
        """What each example scored, on the same scale as their mean."""
        check_lengths(self.name, predictions, targets)
        return [
            self.scale * self.of_example(prediction, target)
            for prediction, target in zip(predictions, targets, strict=True)
        ]

    def units(self, predictions: Answers, targets: Answers) -> Units:
        """Single examples."""
        return units_of_mean(self.scores(predictions, targets))

    def __call__(self, predictions: Answers, targets: Answers) -> float:
        """The mean over all examples."""
        scores = self.scores(predictions, targets)
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class CorpusMetric:
    """100 times `of_all(predictions, targets)`, for numbers that are no mean over examples.

    With `units_of` its interval takes a moment; without, `of_all` runs once for each draw.
    """

    name: str
    of_all: Callable[[Answers, Answers], float]
    higher_is_better: bool = True
    description: str = ""
    scale: float = SCALE
    units_of: Callable[[Answers, Answers], Units | None] | None = None
    of_nothing: float | None = None
    """The number where there is no example, if it has one."""

    def scores(self, predictions: Answers, targets: Answers) -> None:
        """None: there is nothing to say about single examples."""

    def units(self, predictions: Answers, targets: Answers) -> Units | None:
        """What can be drawn again, or None where only `of_all` knows the number."""
        return self.units_of(predictions, targets) if self.units_of else None

    def __call__(self, predictions: Answers, targets: Answers) -> float:
        """The number for all examples together."""
        if self.of_nothing is not None and len(targets) == len(predictions) == 0:
            return self.of_nothing
        check_lengths(self.name, predictions, targets)
        return self.scale * self.of_all(predictions, targets)


def check_lengths(name: str, predictions: Answers, targets: Answers) -> None:
    """Refuse what no number can be made of: nothing, or predictions that do not pair with targets."""
    if len(predictions) != len(targets) or not len(targets):
        raise DataError(
            f"{name} needs one prediction for each target and at least one: "
            f"got {len(predictions)} predictions for {len(targets)} targets"
        )


def values_of(answers: Answers) -> list[Any]:
    """The answers of records `{"value": ..., "group": ...}`.

    >>> values_of([{"group": 1, "value": 0}, {"value": 1}])
    [0, 1]
    """
    try:
        return [answer["value"] for answer in answers]
    except (KeyError, TypeError) as error:
        raise DataError(
            "metrics of grouped examples take records with a 'value' (and targets with a 'group'), "
            f"as a task's postprocess makes them: got {str(answers[0])[:100]!r}"
        ) from error


def groups_of(targets: Answers) -> npt.NDArray[np.int64]:
    """The number of each example's group, counted from 0 in the order of their first examples.

    >>> groups_of([{"group": [7, 1]}, {"group": [7, 2]}, {"group": [7, 1]}]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    try:
        found = [numbers.setdefault(_hashable(target["group"]), len(numbers)) for target in targets]
    except (KeyError, TypeError) as error:
        raise DataError(
            "metrics of grouped examples take targets that name their 'group': "
            f"got {str(targets[len(numbers)])[:100]!r}"
        ) from error
    return np.array(found, dtype=np.int64)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_hashable(part) for part in value)
    return value  # type: ignore[no-any-return]
