from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.mixture import (
    ONE,
    RATE_KINDS,
    equal_rates,
    examples_proportional_rates,
    examples_rate,
    fixed_rates,
    integer_rates,
    nested_rates,
    nested_weights,
    paper_rates,
    proportions,
    released_rates,
    summary,
    task_rates,
    unimax_rates,
    weighted_rates,
)
from mixtura.platform.errors import ConfigError, UnknownNameError

RATES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.floats(0, 1e12, allow_nan=False), min_size=1, max_size=12
).filter(lambda rates: sum(rates.values()) > 0)


def golden(shared: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (shared / "golden/mixing.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_rates_are_those_of_the_original(shared: Path) -> None:
    for row in golden(shared, "rate"):
        # the original's 0 is our None: no cap
        rate = examples_rate(row["examples"], row["maximum"] or None, row["temperature"], row["scale"])
        assert rate == pytest.approx(row["result"], rel=1e-9)


def test_mixtures_have_the_shares_of_the_original(shared: Path) -> None:
    for row in golden(shared, "mixture"):
        rates = examples_proportional_rates(row["tasks"], row["maximum"] or None, row["temperature"], row["scale"])
        assert rates == pytest.approx(row["result"]["rates"], rel=1e-9)
        assert proportions(rates) == pytest.approx(row["result"]["proportions"], rel=1e-9)
        whole = integer_rates(rates)
        assert {name: rate / ONE for name, rate in whole.items()} == pytest.approx(
            row["result"]["proportions"], rel=1e-9
        )


def test_nested_mixtures_have_the_rates_of_the_original(shared: Path) -> None:
    rows = golden(shared, "nested")
    assert rows
    for row in rows:
        parts = {name: part["rate"] if isinstance(part, dict) else part for name, part in row["parts"].items()}
        mixtures = {name: part["tasks"] for name, part in row["parts"].items() if isinstance(part, dict)}
        rates = nested_rates(parts, mixtures)
        assert rates == pytest.approx(row["result"]["rates"], rel=1e-9)
        assert sum(rates.values()) == pytest.approx(row["result"]["total_rate"], rel=1e-9)


def test_shares_are_what_the_original_draws(shared: Path) -> None:
    for row in golden(shared, "sample"):
        shares = proportions({str(task): float(rate) for task, rate in enumerate(row["rates"])})
        for share, drawn in zip(shares.values(), row["result"]["shares"], strict=True):
            assert abs(share - drawn) < 3 * math.sqrt(share * (1 - share) / row["draws"])


def test_the_cap_comes_after_the_scale_and_before_the_temperature() -> None:
    assert examples_rate(100, maximum=400, temperature=2, scale=9) == 20.0


def test_the_size_is_divided_among_copies_before_the_temperature() -> None:
    sizes, copies = {"a": 32, "b": 32, "c": 900}, [{"a", "b", "elsewhere"}]
    assert paper_rates(sizes, maximum=256, temperature=2, shared=copies) == {"a": 4.0, "b": 4.0, "c": 16.0}
    assert paper_rates({"a": 36, "c": 900}, temperature=2, shared=copies) == {"a": 6.0, "c": 30.0}


def test_scale_comes_before_the_cap_and_may_be_one_tasks_own() -> None:
    assert paper_rates({"a": 100, "b": 100}, maximum=150, scales={"a": 2.0}) == {"a": 150.0, "b": 100.0}


def test_written_rates_know_no_cap_and_no_temperature_but_copies_share_them() -> None:
    rates = released_rates({"a": 400, "b": 400, "c": 90}, {"a": 400.0, "b": 400.0}, 81, 2, shared=[{"a", "b"}])
    assert rates == {"a": 200.0, "b": 200.0, "c": 9.0}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("proportional", {"a": 8.0, "b": 4.0, "c": 20.0, "look": 0.0}),
        ("paper", {"a": 8.0 / math.sqrt(2), "b": 4.0 / math.sqrt(2), "c": 20.0, "look": 0.0}),
        ("released", {"a": 25.0, "b": 4.0 / math.sqrt(2), "c": 20.0, "look": 0.0}),
        ("equal", {"a": 1.0, "b": 1.0, "c": 2.0, "look": 0.0}),
        ("fixed", {"a": 1.0, "b": 1.0, "c": 2.0, "look": 0.0}),
        ("unimax", {"a": 128.0, "b": 128.0, "c": 488.0, "look": 0.0}),
    ],
)
def test_each_kind_of_rates_by_its_name(kind: str, expected: dict[str, float]) -> None:
    rates = task_rates(
        kind,
        {"a": 64, "b": 64, "c": 900, "look": 0},
        maximum=100,
        temperature=2,
        weights={"a": 1, "b": 1, "c": 2, "look": 0},
        scales={"b": 0.25},
        shared=[{"a", "b"}],
        fixed={"a": 50.0},
        budget=500,
        repeats={"a": 2, "b": 2, "c": 2},
    )
    assert rates == pytest.approx(expected)


def test_a_copy_that_is_not_drawn_takes_no_share() -> None:
    rates = task_rates("paper", {"a": 64, "b": 64}, weights={"b": 0.0}, shared=[{"a", "b"}])
    assert rates == {"a": 64.0, "b": 0.0}


@pytest.mark.parametrize("kind", RATE_KINDS)
def test_a_task_that_is_drawn_needs_examples(kind: str) -> None:
    given = {"budget": 1, "repeats": {"a": 4, "b": 4}}
    with pytest.raises(ConfigError, match="'b' has no training examples"):
        task_rates(kind, {"a": 1, "b": 0}, weights={"a": 1.0, "b": 2.0}, **given)
    assert task_rates(kind, {"a": 1, "b": 0}, weights={"a": 1.0, "b": 0.0}, **given) == {"a": 1.0, "b": 0.0}


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**6), min_size=1),
    st.integers(1, 10**7),
    st.floats(0.5, 20),
)
def test_unimax_is_even_but_for_the_tasks_that_have_reached_their_repeats(
    sizes: dict[str, int], budget: int, repeats: float
) -> None:
    draws = unimax_rates(sizes, budget, dict.fromkeys(sizes, repeats))
    capped = {name for name, size in sizes.items() if draws[name] >= size * repeats * (1 - 1e-9)}
    assert all(draws[name] <= sizes[name] * repeats * (1 + 1e-9) for name in sizes)
    assert sum(draws.values()) == pytest.approx(min(budget, repeats * sum(sizes.values())))
    even = [draws[name] for name in sizes if name not in capped]
    assert even == pytest.approx([max(even, default=0)] * len(even))
    assert all(draws[name] <= max(even, default=math.inf) * (1 + 1e-9) for name in capped)


def test_unimax_without_its_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs a budget, found None, and repeats, missing for \['a'\]"):
        task_rates("unimax", {"a": 1})


def test_requests_for_rates_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="nearest: 'paper'"):
        task_rates("papr", {"a": 1})
    with pytest.raises(UnknownNameError, match="it is given a weight"):
        task_rates("paper", {"squad": 1}, weights={"squat": 1.0})
    with pytest.raises(UnknownNameError, match="it is given a scale"):
        task_rates("paper", {"squad": 1}, scales={"squat": 2.0})


def test_weights_multiply_on_the_way_down_and_add_up_where_ways_meet() -> None:
    mixtures = {"all": {"glue": 0.5, "squad": 3.0}, "glue": {"cola": 2.0, "rte": 1.0}}
    assert nested_weights({"all": 4.0, "rte": 1.0}, mixtures) == {"cola": 4.0, "rte": 3.0, "squad": 12.0}


def test_a_mixtures_fixed_rate_is_divided_on_every_level() -> None:
    mixtures = {"all": {"glue": 1.0, "squad": 3.0}, "glue": {"cola": 2.0, "rte": 2.0}}
    assert nested_rates({"all": 8.0, "rte": 1.0}, mixtures) == {"cola": 1.0, "rte": 2.0, "squad": 6.0}


def test_a_rate_over_tasks_that_are_never_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sub' has rate 2, but all its tasks have rate 0"):
        nested_rates({"sub": 2.0}, {"sub": {"x": 0.0}})
    assert nested_rates({"sub": 0.0, "y": 1.0}, {"sub": {"x": 0.0}}) == {"x": 0.0, "y": 1.0}


@pytest.mark.parametrize("flatten", [nested_rates, nested_weights])
def test_mixtures_in_a_circle_are_refused(flatten: Callable[..., dict[str, float]]) -> None:
    with pytest.raises(ConfigError, match="a -> b -> a"):
        flatten({"a": 1.0}, {"a": {"b": 1.0}, "b": {"a": 1.0}})


@given(RATES)
def test_integer_rates_sum_to_one_exactly_and_are_off_by_less_than_one(rates: dict[str, float]) -> None:
    whole = integer_rates(rates)
    total = sum(Fraction(rate) for rate in rates.values())
    assert sum(whole.values()) == ONE
    for name, rate in rates.items():
        assert abs(whole[name] - Fraction(rate) / total * ONE) < 1
        assert rate > 0 or whole[name] == 0


@given(RATES)
def test_integer_rates_do_not_depend_on_the_order_of_tasks(rates: dict[str, float]) -> None:
    assert integer_rates(rates) == integer_rates(dict(reversed(rates.items())))


def test_weights_multiply_and_unknown_names_are_refused() -> None:
    assert weighted_rates(equal_rates(["squad", "rte"]), {"rte": 0.0}) == {"squad": 1.0, "rte": 0.0}
    assert fixed_rates(["squad", "rte"], {"rte": 2.0}) == {"squad": 0.0, "rte": 2.0}
    with pytest.raises(UnknownNameError, match="nearest: 'rte'"):
        weighted_rates({"rte": 1.0}, {"rtee": 2.0})
    with pytest.raises(UnknownNameError, match="nearest: 'rte'"):
        fixed_rates(["rte"], {"rtee": 2.0})


@pytest.mark.parametrize("rates", [{"a": 0.0}, {}, {"a": -1.0}, {"a": float("nan")}, {"a": float("inf")}])
def test_rates_that_mean_nothing_are_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        integer_rates(rates)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="None for no cap"):
        examples_rate(10, maximum=0)
    with pytest.raises(ConfigError, match="temperature"):
        examples_rate(10, temperature=0)


def test_summary_says_draws_and_epochs() -> None:
    squad, c4 = summary({"squad": 1.0, "c4": 3.0}, {"squad": 50, "c4": None}, draws=400)
    assert (squad.share, squad.draws, squad.epochs) == (0.25, 100.0, 2.0)
    assert (c4.share, c4.draws, c4.epochs) == (0.75, 300.0, None)
