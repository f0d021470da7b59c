"""The packaged recipes of the paper's mixtures."""

from __future__ import annotations

import pytest

from mixtura.platform import config
from mixtura.platform.config import recipe_names
from mixtura.tasks.mixtures import MIXTURES


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_describes_a_run(name: str) -> None:
    assert config.load(name).mixture.tasks


def test_paper_multitask_is_the_papers_regime() -> None:
    found = config.load("paper_multitask")
    assert list(found.mixture.tasks) == ["paper_multitask"]
    assert (found.mixture.rates, found.mixture.maximum, found.mixture.temperature) == ("paper", 2**19, 1.0)
    assert found.training.steps == 2**19 + 2**18
    assert (found.training.global_batch_size, found.data.inputs_length, found.checkpoints.every) == (128, 512, 5000)
    assert (found.model.size, found.schedule.name, found.schedule.warmup_steps) == (
        "base",
        "inverse_square_root",
        10_000,
    )


def test_supervised_training_has_no_c4_and_the_same_regime() -> None:
    multitask, supervised = config.load("paper_multitask"), config.load("paper_supervised")
    changed = {path.split(".")[1] for path, _, _, _ in config.changes(multitask, supervised)}
    assert list(supervised.mixture.tasks) == ["paper_supervised"]
    assert supervised.training.steps == 2**19
    assert changed == {"tasks", "steps"}


@pytest.mark.parametrize("name", [mixture.name for mixture in MIXTURES if mixture.name.startswith("leave_one_out")])
def test_leave_one_out_is_an_override(name: str) -> None:
    found = config.load("paper_supervised", [f"mixture.tasks=[{name}]"])
    assert list(found.mixture.tasks) == [name]
    assert found.mixture.rates == "paper"


def test_a_size_can_be_said_of_a_task_inside_a_mixture() -> None:
    found = config.load("paper_multitask", ["mixture.maximum=null", "mixture.tasks.c4={weight: 0, size: 2620000}"])
    assert list(found.mixture.tasks) == ["paper_multitask", "c4"]
    assert found.mixture.tasks["c4"].size == 2_620_000
    assert found.mixture.maximum is None
