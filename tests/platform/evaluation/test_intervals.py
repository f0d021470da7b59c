"""Intervals are the same everywhere, cover what they promise, and agree with the formula for a mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mixtura.platform.evaluation.intervals import (
    bootstrap_difference,
    bootstrap_interval,
    independent_difference,
    resampled_means,
)
from mixtura.platform.evaluation.metrics import (
    CorpusMetric,
    accuracy,
    all_match,
    binary_f1,
    matthews,
    pearson,
    spearman,
)
from mixtura.platform.random_bits import integers, key, uniform


def answers(right: int, count: int) -> tuple[list[int], list[int]]:
    return [1] * right + [0] * (count - right), [1] * count


def test_the_same_answers_give_the_same_interval() -> None:
    first, again = (bootstrap_interval(accuracy, *answers(60, 200)) for _ in range(2))
    assert first == again
    other = resampled_means(accuracy.scores(*answers(60, 200)), 50, seed=1)
    assert not np.array_equal(resampled_means(accuracy.scores(*answers(60, 200)), 50), other)


def test_a_known_interval() -> None:
    interval = bootstrap_interval(accuracy, *answers(60, 200))
    assert (interval.value, interval.low, interval.high) == (30.0, 23.5, 36.5)


def test_the_half_width_is_that_of_the_normal_approximation_for_many_examples() -> None:
    interval = bootstrap_interval(accuracy, *answers(300, 1000), resamples=4000)
    expected = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.05)


def test_the_interval_holds_the_truth_about_95_times_in_a_hundred() -> None:
    holds = 0
    for trial in range(200):
        predictions = (uniform(key("trial", trial), np.arange(150)) < 0.4).astype(int).tolist()
        interval = bootstrap_interval(accuracy, predictions, [1] * 150, resamples=400)
        holds += interval.low <= 40.0 <= interval.high
    assert 180 <= holds <= 198


def test_any_metric_is_resampled_like_a_mean() -> None:
    slow = CorpusMetric("same", lambda predictions, targets: accuracy(predictions, targets) / 100)
    one_by_one = bootstrap_interval(slow, *answers(30, 80), resamples=200)
    at_once = bootstrap_interval(accuracy, *answers(30, 80), resamples=200)
    assert (one_by_one.low, one_by_one.high) == pytest.approx((at_once.low, at_once.high))


def test_resamples_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = integers(key("scores"), np.arange(97), 100).astype(float)
    whole = resampled_means(scores, 50)
    monkeypatch.setattr("mixtura.platform.evaluation.intervals._DRAWS_AT_ONCE", 300)
    np.testing.assert_array_equal(resampled_means(scores, 50), whole)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    predictions, targets = answers(300, 600)
    better = [1] * 330 + [0] * 270
    difference = bootstrap_difference(accuracy, better, predictions, targets)
    assert difference.value == pytest.approx(5.0)
    assert 0 < difference.low < 5 < difference.high
    assert difference.high - difference.low < bootstrap_interval(accuracy, better, targets).high - 50


def test_a_difference_of_numbers_that_are_no_means_is_that_of_each_resample() -> None:
    chance = np.random.default_rng(1)
    targets = chance.integers(0, 2, 300).tolist()
    first, second = ([t if chance.random() < right else 1 - t for t in targets] for right in (0.9, 0.7))
    assert binary_f1.scores(first, targets) is None
    difference = bootstrap_difference(binary_f1, first, second, targets)
    assert difference.value == pytest.approx(binary_f1(first, targets) - binary_f1(second, targets))
    assert 0 < difference.low < difference.value < difference.high
    same = bootstrap_difference(binary_f1, first, first, targets)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_metric_that_is_computed_each_time_gives_the_same_difference() -> None:
    predictions, targets = answers(30, 60)
    other, _ = answers(40, 60)
    plain = CorpusMetric("share", lambda p, t: sum(a == b for a, b in zip(p, t, strict=True)) / len(t))
    slow = bootstrap_difference(plain, other, predictions, targets)
    fast = bootstrap_difference(accuracy, other, predictions, targets)
    assert (slow.value, slow.low, slow.high) == pytest.approx((fast.value, fast.low, fast.high))


def test_unpaired_examples_say_less() -> None:
    predictions, targets = answers(300, 600)
    better = [1] * 330 + [0] * 270
    paired = bootstrap_difference(accuracy, better, predictions, targets)
    apart = independent_difference(accuracy, (better, targets), (predictions, targets))
    assert apart.value == paired.value
    assert apart.high - apart.low > 2 * (paired.high - paired.low)
    shorter = independent_difference(accuracy, (better, targets), (predictions[:100], targets[:100]))
    assert shorter.value == pytest.approx(accuracy(better, targets) - accuracy(predictions[:100], targets[:100]))


def test_one_example_has_no_width() -> None:
    interval = bootstrap_interval(accuracy, [1], [1])
    assert (interval.low, interval.high) == (100.0, 100.0)


def test_an_undefined_metric_has_an_undefined_interval_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    for metric in (pearson, spearman):
        for predictions in ([2.0, 2.0, 2.0], [1.0, math.nan, 2.0]):
            interval = bootstrap_interval(metric, predictions, [1.0, 2.0, 3.0])
            assert all(map(math.isnan, (interval.value, interval.low, interval.high)))
    assert not recwarn.list


def test_draws_that_leave_a_metric_undefined_are_left_out(recwarn: pytest.WarningsRecorder) -> None:
    interval = bootstrap_interval(pearson, [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert interval.value == pytest.approx(32.73268, abs=1e-5)
    assert (interval.low, interval.high) == pytest.approx((-100, 100))
    assert not recwarn.list


def test_a_metric_of_nothing_is_its_own_interval() -> None:
    interval = bootstrap_interval(all_match, [], [])
    assert (interval.value, interval.low, interval.high) == (100.0, 100.0, 100.0)


def test_a_metric_that_must_be_computed_each_time_is_drawn_less_often_for_large_splits() -> None:
    calls = []

    def of_all(predictions: list[int], targets: list[int]) -> float:
        calls.append(len(targets))
        return 1.0

    bootstrap_interval(CorpusMetric("slow", of_all), *answers(1, 10_000))
    assert calls == [10_000] * 201


def test_a_metric_from_elsewhere_needs_only_its_number_and_scores() -> None:
    class Elsewhere:
        name, higher_is_better = "right", True

        def __call__(self, predictions: list[int], targets: list[int]) -> float:
            return accuracy(predictions, targets)

        def scores(self, predictions: list[int], targets: list[int]) -> list[float]:
            return accuracy.scores(predictions, targets)

    assert bootstrap_interval(Elsewhere(), *answers(60, 200)) == bootstrap_interval(accuracy, *answers(60, 200))


def test_a_correlation_of_classes_has_an_interval_about_it() -> None:
    predictions, targets = [1] * 40 + [0] * 30 + [-1] * 30, [1] * 30 + [0] * 40 + [1] * 30
    interval = bootstrap_interval(matthews, predictions, targets)
    assert interval.low < interval.value < interval.high
