"""The config tree: what is refused, and which keys make a run what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform import config
from mixtura.platform.errors import ConfigError, RunError
from mixtura.platform.recipe_files import load
from mixtura.platform.workspace import refuse_changed_identity


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("trainin.steps=3", "trainin: no such key; nearest: training"),
        ("model={attention: flex}", "model.attention is flex, which needs a GPU to train on"),
        ("training.stepps=3", "training.stepps: no such key; nearest: training.steps"),
        ("steps=3", "steps: no such key; nearest: schedule.steps, training.steps, search.steps"),
        ("mixture.tasks.python_docs_name.wieght=2", "nearest: mixture.tasks.python_docs_name.weight"),
        ("training.steps=many", "training.steps: 'many' was given"),
        ("training.precision=fp16", "fp16 is refused"),
        ("data.lanes=7", "does not divide training.global_batch_size"),
        ("executor.workers=700", "lanes to share"),
        ("run.name=a/b", "run.name: a run's name is letters"),
        ("run.stop_after=soon", "run.stop_after: 'soon' is not a duration"),
        ("training.steps", "has no value: write key=value"),
    ],
)
def test_a_wrong_override_is_answered_with_what_would_be_right(override: str, answer: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load("quickstart", [override])
    assert answer in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (["model.compile=true", "training.zero_stage=3"], "model.compile is for training.zero_stage 0 to 2"),
        (["training.gradient_norms_every=5", "training.zero_stage=3"], "needs whole weights on every worker"),
        (["model.adapter_size=32", "training.unfreeze_every=5"], "both say what trains"),
        (["data.loss_on=all"], "data.loss_on is for models of one stack"),
        (["schedule.name=cosine"], "cosine comes down over schedule.steps, which is not given"),
        (["training.normalizer=constant"], "training.normalizer=constant and its number go together"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], answer: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load("quickstart", overrides)
    assert answer in str(refusal.value)


def test_every_key_says_what_changing_it_means() -> None:
    found = load("quickstart")
    assert {effect for _, effect, _ in config.leaves(found)} == set(config.Effect)


def test_free_keys_leave_the_identity_alone_and_others_do_not() -> None:
    base = load("quickstart")
    assert load("quickstart", ["executor.workers=1", "training.microbatch_size=4"]).identity() == base.identity()
    for override in ("run.seed=1", "mixture.temperature=3", "schedule.factor=0.5", "data.block_size=64"):
        assert load("quickstart", [override]).identity() != base.identity()


def test_a_changed_identity_is_refused_with_the_difference_and_two_ways_out() -> None:
    old, new = load("quickstart"), load("quickstart", ["mixture.temperature=3", "executor.workers=1"])
    with pytest.raises(RunError) as refusal:
        refuse_changed_identity("mine", old, new)
    message = str(refusal.value)
    assert "mixture.temperature (stream): 2.0 -> 3.0" in message
    assert "workers" not in message
    assert "run.name=NAME" in message
    assert "run.from=mine@last" in message


def test_the_stored_tree_loads_to_the_same_tree() -> None:
    import yaml

    found = load("quickstart", ["run.from=other@5", "run.stop_after=3h30m"])
    assert config.validated(yaml.safe_load(found.to_yaml()), "stored") == found


def test_where_files_lie_may_change_and_what_is_read_may_not(tmp_path: Path) -> None:
    base = load("quickstart", ["mixture.tasks=[rte]"])
    files = "mixture.tasks.rte.files.train=other/train.tsv"
    moved = load("quickstart", ["mixture.tasks=[rte]", files])
    assert moved.identity() == base.identity()
    assert [change[:2] for change in config.changes(base, moved)] == [("mixture.tasks.rte.files", config.FREE)]
    for other in ("mixture.tasks.rte.options.order=given", "mixture.tasks.rte.size=5", "mixture.tasks=[sst2]"):
        changed = load("quickstart", ["mixture.tasks=[rte]", other])
        assert changed.identity() != base.identity()
    assert (path_of := {change[0] for change in config.changes(base, changed)})
    assert {"mixture.tasks.rte.weight", "mixture.tasks.sst2.weight"} <= path_of
