"""The packaged recipes: each describes runs that can be had, and says in a line what it is."""

from __future__ import annotations

import pytest

from mixtura.platform.orchestration.assemble import model_config
from mixtura.platform.orchestration.phases import refuse_differing
from mixtura.platform.orchestration.tasks import expanded
from mixtura.platform.recipe_files import Phase, description, load, load_phases, recipe_names
from mixtura.tasks.mixtures import MIXTURES


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_describes_runs_of_known_tasks_and_models(name: str) -> None:
    runs = [Phase(run.name, expanded(run.config)) for run in load_phases(name)]
    for run in runs:
        assert run.config.mixture.tasks
        assert model_config(run.config.model, embedding_rows=128)
    refuse_differing(runs)


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_says_in_a_line_what_it_is(name: str) -> None:
    said = description(name)
    assert 10 < len(said) <= 120
    assert said.endswith(".")


def test_descriptions_tell_recipes_apart() -> None:
    said = [description(name) for name in recipe_names()]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("name", [mixture.name for mixture in MIXTURES if mixture.name.startswith("leave_one_out")])
def test_named_mixtures_are_an_override(name: str) -> None:
    found = load("paper/multitask", [f"mixture.tasks=[{name}]"])
    assert list(found.mixture.tasks) == [name]
    assert found.mixture.rates == "paper"


def test_a_size_can_be_said_of_a_task_inside_a_mixture() -> None:
    given = ["mixture.tasks=[paper_multitask]", "mixture.tasks.c4={weight: 0, size: 2620000}"]
    found = load("paper/multitask", given)
    assert list(found.mixture.tasks) == ["paper_multitask", "c4"]
    assert found.mixture.tasks["c4"].size == 2_620_000
