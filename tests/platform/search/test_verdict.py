"""Rankings and verdicts: the statistics are scipy's, and nothing is claimed that the runs do not show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mixtura.platform.search.verdict import (
    Estimate,
    best_plain,
    mean_interval,
    paired_difference,
    ranking,
    t_quantile,
    verdict,
)

PLAIN = ["T = 1", "T = 2", "equal"]


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 100, 1001])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantiles_are_students(confidence: float, degrees: int) -> None:
    assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_interval_of_a_mean_is_students(count: int) -> None:
    values = np.random.default_rng(count).normal(30, 2, count)
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    found = mean_interval(values.tolist())
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-9)


def test_one_run_has_no_interval() -> None:
    assert mean_interval([3.0]) == Estimate(3.0, None, None, 1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    intervals = [mean_interval(row.tolist()) for row in draws]
    held = np.mean([one.low <= 0 <= one.high for one in intervals if one.low is not None and one.high is not None])
    assert held == pytest.approx(0.95, abs=0.015)


def test_differences_are_taken_seed_by_seed() -> None:
    first, second = {1: 10.0, 2: 20.0, 3: 31.0}, {3: 30.0, 2: 18.0, 1: 9.0, 4: 99.0}
    found = paired_difference(first, second)
    paired = stats.ttest_rel([10.0, 20.0, 31.0], [9.0, 18.0, 30.0]).confidence_interval(0.95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.runs) == pytest.approx((4 / 3, paired.low, paired.high, 3))
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_better_worse_and_no_difference() -> None:
    plain = {"T = 1": {1: 10.0, 2: 11.0, 3: 12.0}, "T = 2": {1: 20.0, 2: 21.0, 3: 22.0}}
    cases = {
        "better": ({1: 21.0, 2: 22.1, 3: 22.9}, "better than T = 2 by 1.0 (0.8 to 1.2)"),
        "worse": ({1: 19.0, 2: 19.9, 3: 21.1}, "worse than T = 2 by 1.0 (0.8 to 1.2)"),
        "no difference": ({1: 19.0, 2: 22.0, 3: 23.0}, "no difference from T = 2: +0.3 (-2.5 to +3.2)"),
    }
    for outcome, (searched, sentence) in cases.items():
        found = verdict({"searched": searched, **plain}, "searched", PLAIN)
        assert found is not None
        assert (found.outcome, found.sentence()) == (outcome, sentence)


def test_equal_runs_are_no_difference() -> None:
    same = {1: 5.0, 2: 6.0}
    found = verdict({"searched": same, "T = 1": same}, "searched", PLAIN)
    assert found is not None
    assert found.outcome == "no difference"
    assert found.sentence() == "no difference from T = 1: 0.0 (0.0 to 0.0)"


def test_a_mixture_of_pure_chance_is_seldom_called_better() -> None:
    draws = np.random.default_rng(1).normal(size=(2000, 2, 3))
    found = [
        verdict({"searched": dict(enumerate(one)), "T = 1": dict(enumerate(other))}, "searched", ["T = 1"])
        for one, other in draws.tolist()
    ]
    assert np.mean([one is not None and one.outcome == "better" for one in found]) == pytest.approx(0.025, abs=0.01)


def test_without_two_seeds_in_common_there_is_no_verdict() -> None:
    assert verdict({"searched": {1: 1.0}, "T = 1": {1: 1.0, 2: 2.0}}, "searched", PLAIN) is None
    assert verdict({"searched": {1: 1.0, 2: 2.0}}, "searched", PLAIN) is None
    assert verdict({"T = 1": {1: 1.0, 2: 2.0}}, "searched", PLAIN) is None


def test_the_candidate_has_to_beat_the_best_plain_mixture() -> None:
    scores = {name: {1: value, 2: value} for name, value in (("searched", 5.0), ("T = 1", 3.0), ("T = 2", 4.0))}
    assert best_plain({**scores, "equal": scores["T = 2"]}, "searched", PLAIN) == "T = 2"
    assert best_plain({"searched": {1: 5.0, 2: 5.0}, "T = 1": {}}, "searched", PLAIN) is None


def test_a_single_lucky_run_is_no_baseline_and_no_winner() -> None:
    scores = {"searched": {1: 5.0, 2: 5.0}, "T = 1": {1: 3.0, 2: 3.0}, "T = 2": {1: 9.0}}
    assert best_plain(scores, "searched", PLAIN) == "T = 1"
    assert [one.name for one in ranking(scores, PLAIN, "T = 1")] == ["searched", "T = 1", "T = 2"]


def test_the_ranking_is_by_mean_and_a_plain_mixture_goes_before_an_equal_one() -> None:
    scores = {
        "searched": {1: 4.0, 2: 6.0},
        "T = 1": {1: 5.0, 2: 5.0},
        "T = 2": {1: 7.0, 2: 7.0},
        "equal": {1: 1.0, 2: 3.0},
    }
    ranked = ranking(scores, PLAIN, "T = 2")
    assert [one.name for one in ranked] == ["T = 2", "T = 1", "searched", "equal"]
    assert ranked[0].difference is None
    assert [one.difference.mean for one in ranked[1:] if one.difference is not None] == [-2.0, -2.0, -5.0]
    assert ranked[0].estimate == Estimate(7.0, 7.0, 7.0, 2)


def test_the_ranking_depends_on_no_order() -> None:
    scores = {"searched": {1: 4.0, 2: 6.0}, "T = 1": {1: 5.0, 2: 5.5}, "equal": {1: 1.0, 2: 3.0}}
    backwards = {name: dict(reversed(by_seed.items())) for name, by_seed in reversed(scores.items())}
    assert ranking(scores, PLAIN, "T = 1") == ranking(backwards, PLAIN, "T = 1")
    assert math.isclose(ranking(scores, PLAIN, "T = 1")[0].estimate.mean, 5.25)
