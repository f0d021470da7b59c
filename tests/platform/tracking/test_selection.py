"""Which checkpoint is best, on literal tables."""

from __future__ import annotations

import math

from mixtura.platform.tracking.records import EvaluationResult, Note, Record
from mixtura.platform.tracking.selection import best_for, best_on_average, best_per_task, pareto_front, scores


def reached(step: int, split: str = "validation", **values: float) -> list[Record]:
    return [EvaluationResult(step, task, split, "accuracy", value) for task, value in values.items()]


TABLE: list[Record] = [
    *reached(100, rte=50.0, squad=60.0),
    *reached(200, rte=70.0, squad=40.0),
    *reached(300, rte=40.0, squad=80.0),
    *reached(400, rte=45.0, squad=59.0),
]


def test_the_best_average_stands_first_and_equals_stay_in_the_order_of_their_steps() -> None:
    found = scores(TABLE)
    assert [(one.step, one.average) for one in found] == [(300, 60.0), (100, 55.0), (200, 55.0), (400, 52.0)]


def test_ties_go_to_the_earlier_step() -> None:
    found = scores([*reached(10, a=1, b=3), *reached(20, a=3, b=1), *reached(30, a=3, b=1)])
    average = best_on_average(found)
    assert average is not None
    assert average.step == 10
    assert {task: one.step for task, one in best_per_task(found).items()} == {"a": 20, "b": 10}
    assert [one.step for one in pareto_front(found)] == [10, 20]


def test_best_per_task_and_on_average() -> None:
    assert best_for(scores(TABLE)) == {300: ("average", "squad"), 200: ("rte",), 100: (), 400: ()}


def test_the_pareto_front_has_what_nothing_beats_everywhere() -> None:
    assert [one.step for one in pareto_front(scores(TABLE))] == [300, 100, 200]


def test_a_checkpoint_without_all_tasks_has_no_average_and_stands_last() -> None:
    found = scores([*TABLE, *reached(500, rte=99.0)])
    assert [one.step for one in found] == [300, 100, 200, 400, 500]
    assert found[-1].average is None
    assert best_per_task(found)["rte"].step == 500
    assert 500 not in [one.step for one in pareto_front(found)]
    assert best_on_average(scores(TABLE, tasks=("rte", "squad", "wmt"))) is None


def test_the_first_metric_of_a_task_is_its_headline() -> None:
    records: list[Record] = [
        EvaluationResult(10, "squad", "validation", "exact_match", 50.0),
        EvaluationResult(10, "squad", "validation", "f1", 90.0),
        EvaluationResult(20, "squad", "validation", "f1", 95.0),
        EvaluationResult(20, "squad", "validation", "exact_match", 40.0),
    ]
    assert {one.step: one.value("squad") for one in scores(records)} == {10: 50.0, 20: 40.0}


def test_lower_is_better_where_the_result_says_so_and_stays_out_of_the_average() -> None:
    def loss(step: int, value: float) -> EvaluationResult:
        return EvaluationResult(step, "lm", "validation", "loss", value, higher_is_better=False)

    found = scores([*reached(10, rte=50.0), loss(10, 3.0), *reached(20, rte=40.0), loss(20, 2.0)])
    assert {one.step: one.average for one in found} == {10: 50.0, 20: 40.0}
    assert best_per_task(found)["lm"].step == 20
    assert {one.step for one in pareto_front(found)} == {10, 20}
    assert best_on_average(scores([loss(10, 3.0)])) is None


def test_splits_do_not_mix_and_a_later_measurement_replaces_an_earlier_one() -> None:
    found = scores([*reached(10, rte=50.0), *reached(10, "test", rte=99.0), *reached(10, rte=55.0), Note("x")])
    assert [one.average for one in found] == [55.0]
    assert [one.average for one in scores([*reached(10, "test", rte=99.0)], split="test")] == [99.0]


def test_what_is_not_a_number_counts_as_nothing_in_the_average_and_is_the_worst_of_its_task() -> None:
    found = scores([*reached(10, a=1.0, b=math.nan), *reached(20, a=0.0, b=-3.0)])
    assert [(one.step, one.average) for one in found] == [(10, 0.5), (20, -1.5)]
    assert best_per_task(found)["b"].step == 20


def test_nothing_evaluated_means_nothing_best() -> None:
    assert scores([]) == []
    assert best_on_average([]) is None
    assert best_per_task([]) == {}
    assert pareto_front([]) == []


def test_an_average_does_not_wait_for_what_it_leaves_out() -> None:
    """A run that went on when held-out text came to be measured has checkpoints without it."""
    text = EvaluationResult(20, "c4", "validation", "bits_per_byte", 1.2, higher_is_better=False)
    found = scores([*reached(10, a=5.0), *reached(20, a=4.0), text])
    assert {one.step: one.average for one in found} == {10: 5.0, 20: 4.0}
    best = best_on_average(found)
    assert best is not None
    assert best.step == 10
