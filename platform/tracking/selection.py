"""Which checkpoint is best: for each task, on average, and which are not beaten on all tasks at once.

A task counts with its headline metric, the one reported first. The order is the one in MLflow: by the average over
tasks on the validation split; of equals the earlier step is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mixtura.platform.tracking.records import EvaluationResult, EvaluationSkipped, Record

AVERAGE = "average"


@dataclass(frozen=True)
class CheckpointScores:
    """The headline results of one checkpoint, by task.

    `average` is over the tasks whose headline is better when higher; it is None where a task was not measured.
    """

    step: int
    results: Mapping[str, EvaluationResult]
    average: float | None = None

    def value(self, task: str) -> float | None:
        """The headline value of a task."""
        return self.results[task].value if task in self.results else None

    def goodness(self, task: str) -> float:
        """The headline value of a task with the sign that makes more better; what is not a number is worst."""
        result = self.results[task]
        if math.isnan(result.value):
            return -math.inf
        return result.value if result.higher_is_better else -result.value


def scores(records: Iterable[Record], split: str = "validation", tasks: Sequence[str] = ()) -> list[CheckpointScores]:
    """The evaluated checkpoints of a run, the best average first; those without one at the end, by step.

    `tasks` are those that an average needs, beside all that occur with a headline that is better when higher. A later
    result for the same checkpoint, task and metric replaces the earlier one. A result that is not a number (the
    correlation of a model that always answers the same) counts as 0 in the average, which is what it is worth.
    """
    headlines: dict[str, str] = {}
    found: dict[int, dict[str, EvaluationResult]] = {}
    for record in records:
        if not isinstance(record, EvaluationResult) or record.split != split:
            continue
        if headlines.setdefault(record.task, record.metric) == record.metric:
            found.setdefault(record.step, {})[record.task] = record
    averaged = {task for own in found.values() for task, result in own.items() if result.higher_is_better}
    needed = averaged | set(tasks)
    everyone = [CheckpointScores(step, by_task, _average(by_task, needed)) for step, by_task in sorted(found.items())]
    # Python's sort is stable, so that equal averages stay in the order of their steps.
    return sorted(everyone, key=lambda one: math.inf if one.average is None else -one.average)


def _average(results: Mapping[str, EvaluationResult], needed: Iterable[str]) -> float | None:
    if not set(needed) <= results.keys():
        return None
    found = [results[task].value for task in sorted(results) if results[task].higher_is_better]
    values = [0.0 if math.isnan(value) else value for value in found]
    return sum(values) / len(values) if values else None


def settled_steps(records: Iterable[Record], split: str = "validation") -> set[int]:
    """The steps whose checkpoints wait for no evaluation: they were evaluated, or skipped."""
    return {
        record.step
        for record in records
        if isinstance(record, EvaluationSkipped) or (isinstance(record, EvaluationResult) and record.split == split)
    }


def best_on_average(found: Iterable[CheckpointScores]) -> CheckpointScores | None:
    """The checkpoint with the highest average.

    >>> def reached(step, **values):
    ...     return [EvaluationResult(step, task, "validation", "accuracy", value) for task, value in values.items()]
    >>> best_on_average(scores(reached(10, a=1, b=3) + reached(20, a=2, b=2) + reached(30, a=9))).step
    10
    """
    averaged = [one for one in found if one.average is not None]
    return max(averaged, key=lambda one: (one.average or 0.0, -one.step), default=None)


def best_per_task(found: Iterable[CheckpointScores]) -> dict[str, CheckpointScores]:
    """For each task, in alphabetical order, its best checkpoint.

    >>> def reached(step, **values):
    ...     return [EvaluationResult(step, task, "validation", "accuracy", value) for task, value in values.items()]
    >>> best = best_per_task(scores(reached(10, a=1, b=3) + reached(20, a=2, b=3)))
    >>> {task: one.step for task, one in best.items()}
    {'a': 20, 'b': 10}
    """
    everyone = sorted(found, key=lambda one: one.step)
    tasks = sorted({task for one in everyone for task in one.results})
    return {
        task: max((one for one in everyone if task in one.results), key=lambda one: one.goodness(task))
        for task in tasks
    }


def pareto_front(found: Iterable[CheckpointScores]) -> list[CheckpointScores]:
    """Checkpoints, measured on all tasks, that no other one matches on every task and beats on one.

    Of checkpoints that are equal on every task the earliest stands for all.

    >>> def reached(step, **values):
    ...     return [EvaluationResult(step, task, "validation", "accuracy", value) for task, value in values.items()]
    >>> front = pareto_front(scores(reached(10, a=1, b=1) + reached(20, a=2, b=1) + reached(30, a=0, b=4)))
    >>> [one.step for one in front]
    [30, 20]
    """
    everyone = list(found)
    tasks = {task for one in everyone for task in one.results}
    whole = [one for one in everyone if one.results.keys() == tasks]
    return [one for one in whole if not any(_stands_before(other, one) for other in whole if other is not one)]


def _stands_before(other: CheckpointScores, one: CheckpointScores) -> bool:
    pairs = [(other.goodness(task), one.goodness(task)) for task in one.results]
    if not all(theirs >= ours for theirs, ours in pairs):
        return False
    return other.step < one.step or any(theirs > ours for theirs, ours in pairs)


def best_for(found: Sequence[CheckpointScores]) -> dict[int, tuple[str, ...]]:
    """What each step is the best checkpoint for: "average" and names of tasks.

    >>> def reached(step, **values):
    ...     return [EvaluationResult(step, task, "validation", "accuracy", value) for task, value in values.items()]
    >>> best_for(scores(reached(10, a=1, b=3) + reached(20, a=2, b=3)))
    {20: ('average', 'a'), 10: ('b',)}
    """
    average = best_on_average(found)
    best = {**({AVERAGE: average} if average is not None else {}), **best_per_task(found)}
    return {one.step: tuple(what for what, winner in best.items() if winner.step == one.step) for one in found}
