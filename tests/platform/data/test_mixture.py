from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.mixture import (
    ONE,
    equal_rates,
    examples_proportional_rates,
    examples_rate,
    fixed_rates,
    integer_rates,
    proportions,
    summary,
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


def test_the_cap_comes_after_the_scale_and_before_the_temperature() -> None:
    assert examples_rate(100, maximum=400, temperature=2, scale=9) == 20.0


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
