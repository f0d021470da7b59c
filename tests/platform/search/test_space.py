"""The box of mixtures that a search tries, and the plain ones beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.config import Config, validated
from mixtura.platform.data.mixture import examples_proportional_rates, proportions, weighted_rates
from mixtura.platform.errors import ConfigError
from mixtura.platform.search.space import Candidate, Space, own_mixture, plain_baselines

SIZES = {"a": 900, "b": 100, "c": 16}


def recipe(**mixture: Any) -> Config:
    values = {"tasks": ["a", "b", "c"], **mixture}
    if isinstance(values["tasks"], list):
        values["tasks"] = {name: {} for name in values["tasks"]}
    return validated({"mixture": values, "training": {"steps": 10}}, where="a test")


def shares(candidate: Candidate) -> dict[str, float]:
    rates = (
        dict.fromkeys(SIZES, 1.0)
        if candidate.rates == "equal"
        else examples_proportional_rates(SIZES, temperature=candidate.temperature)
    )
    return proportions(weighted_rates(rates, candidate.weights))


def test_the_plain_mixtures_are_proportional_tempered_and_equal() -> None:
    found = {one.name: shares(one) for one in plain_baselines(recipe())}
    total = sum(math.sqrt(size) for size in SIZES.values())
    assert found["T = 1"] == pytest.approx({name: size / 1016 for name, size in SIZES.items()})
    assert found["T = 2"] == pytest.approx({name: math.sqrt(size) / total for name, size in SIZES.items()})
    assert found["equal"] == pytest.approx(dict.fromkeys(SIZES, 1 / 3))
    assert list(found) == ["T = 1", "T = 2", "equal"]


@pytest.mark.parametrize(
    "mixture",
    [
        {"temperature": 1},
        {"temperature": 2},
        {"temperature": 2, "tasks": {name: {"weight": 3.0} for name in SIZES}},
        {"rates": "equal", "temperature": 5},
    ],
)
def test_a_recipe_whose_mixture_is_a_plain_one_is_not_run_twice(mixture: dict[str, Any]) -> None:
    assert [one.name for one in plain_baselines(recipe(**mixture))] == ["T = 1", "T = 2", "equal"]


@pytest.mark.parametrize(
    "mixture",
    [
        {"temperature": 3},
        {"temperature": 2, "tasks": {"a": {"weight": 0.5}, "b": {}, "c": {}}},
        {"rates": "fixed"},
    ],
)
def test_a_recipe_with_a_mixture_of_its_own_has_to_be_beaten_too(mixture: dict[str, Any]) -> None:
    tree = recipe(**mixture)
    found = plain_baselines(tree)
    assert [one.name for one in found] == ["T = 1", "T = 2", "equal", "the recipe's"]
    assert found[-1].applied(tree).identity() == tree.identity()


def test_a_mixture_applied_to_a_recipe_changes_nothing_else() -> None:
    tree = recipe(temperature=3, maximum=500)
    applied = Candidate("x", "proportional", 1.5, {"a": 0.5, "b": 2.0, "c": 1.0}).applied(tree)
    assert applied.mixture.maximum == 500
    assert own_mixture(applied) == Candidate("the recipe's", "proportional", 1.5, {"a": 0.5, "b": 2.0, "c": 1.0})
    assert applied.model_copy(update={"mixture": tree.mixture}) == tree


def test_a_task_that_is_not_drawn_stays_so_everywhere() -> None:
    tree = recipe(tasks={"a": {}, "b": {"weight": 0}, "c": {}})
    space = Space.of(tree)
    assert list(space.parameters()) == ["temperature", "weight_0", "weight_2"]
    point = {"temperature": 1.0, "weight_0": 1.0, "weight_2": 2.0}
    assert space.candidate(point, "x").weights == {"a": 1.0, "b": 0.0, "c": 2.0}
    assert all(one.weights["b"] == 0 for one in plain_baselines(tree))


def test_a_mixture_of_one_task_has_nothing_to_search() -> None:
    with pytest.raises(ConfigError, match="a mixture of 1 task has no proportions to search"):
        Space.of(recipe(tasks={"a": {}, "b": {"weight": 0}}))


def test_ranges_that_are_points_leave_nothing_to_search() -> None:
    tree = recipe()
    pinned = tree.search.model_copy(update={"temperature": (2.0, 2.0), "weight": (1.0, 1.0)})
    with pytest.raises(ConfigError, match="nothing to search"):
        Space.of(tree.model_copy(update={"search": pinned}))


@pytest.mark.parametrize("bounds", [[0, 1], [2, 1], [-1, 1], [1, math.inf]])
def test_a_range_that_has_no_logarithm_is_refused(bounds: list[float]) -> None:
    values = {"mixture": {"tasks": ["a"]}, "training": {"steps": 10}, "search": {"weight": bounds}}
    with pytest.raises(ConfigError, match="no range on a logarithmic scale"):
        validated(values, where="a test")


@given(temperature=st.floats(0.5, 8.0), weights=st.tuples(*[st.floats(0.25, 4.0)] * 3))
def test_a_candidate_is_a_point_of_its_space_again(temperature: float, weights: tuple[float, ...]) -> None:
    space = Space.of(recipe())
    point = {"temperature": temperature, **{f"weight_{place}": weight for place, weight in enumerate(weights)}}
    candidate = space.candidate(point, "x")
    again = space.point(candidate)
    assert again is not None
    assert again == pytest.approx(point, rel=5e-4)
    assert space.candidate(again, "x") == candidate
    assert Candidate.from_dict(candidate.to_dict()) == candidate


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("x", "equal", 1.0, dict.fromkeys("abc", 1.0)),
        Candidate("x", "proportional", 9.0, dict.fromkeys("abc", 1.0)),
        Candidate("x", "proportional", 1.0, {"a": 5.0, "b": 1.0, "c": 1.0}),
        Candidate("x", "proportional", 1.0, dict.fromkeys("ab", 1.0)),
        Candidate("x", "proportional", 1.0, dict.fromkeys("abcd", 1.0)),
    ],
)
def test_a_mixture_outside_the_space_has_no_point_in_it(candidate: Candidate) -> None:
    assert Space.of(recipe()).point(candidate) is None
