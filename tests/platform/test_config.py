"""The config tree: what is refused, what is merged, and which keys make a run what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform import config
from mixtura.platform.errors import ConfigError, RequestError, RunError, UnknownNameError
from mixtura.platform.workspace import refuse_changed_identity


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("trainin.steps=3", "trainin: no such key; nearest: training"),
        ("training.stepps=3", "training.stepps: no such key; nearest: training.steps"),
        ("steps=3", "steps: no such key; nearest: training.steps"),
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
        config.load("quickstart", [override])
    assert answer in str(refusal.value)


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="nearest: 'quickstart'"):
        config.load("quickstrat")
    with pytest.raises(ConfigError, match="is not there"):
        config.load("./nowhere.yaml")


def test_a_recipe_that_extends_changes_only_what_it_names(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("mixture: {tasks: [a, b], temperature: 2}\ntraining: {steps: 10}\n")
    child.write_text("extends: ./base.yaml\nmixture: {tasks: {b: {weight: 3}}}\n")
    found = config.load(str(child))
    assert {name: task.weight for name, task in found.mixture.tasks.items()} == {"a": 1.0, "b": 3.0}
    assert (found.mixture.temperature, found.training.steps) == (2.0, 10)


def test_recipes_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        config.load(str(tmp_path / "a.yaml"))


def test_every_key_says_what_changing_it_means() -> None:
    found = config.load("quickstart")
    assert {effect for _, effect, _ in config.leaves(found)} == set(config.Effect)


def test_free_keys_leave_the_identity_alone_and_others_do_not() -> None:
    base = config.load("quickstart")
    assert config.load("quickstart", ["executor.workers=1", "training.microbatch_size=4"]).identity() == base.identity()
    for override in ("run.seed=1", "mixture.temperature=3", "schedule.factor=0.5", "data.block_size=64"):
        assert config.load("quickstart", [override]).identity() != base.identity()


def test_a_changed_identity_is_refused_with_the_difference_and_two_ways_out() -> None:
    old, new = config.load("quickstart"), config.load("quickstart", ["mixture.temperature=3", "executor.workers=1"])
    with pytest.raises(RunError) as refusal:
        refuse_changed_identity("mine", old, new)
    message = str(refusal.value)
    assert "mixture.temperature (stream): 2.0 -> 3.0" in message
    assert "workers" not in message
    assert "run.name=NAME" in message
    assert "run.from=mine@last" in message


def test_the_stored_tree_loads_to_the_same_tree() -> None:
    import yaml

    found = config.load("quickstart", ["run.from=other@5", "run.stop_after=3h30m"])
    assert config.validated(yaml.safe_load(found.to_yaml()), "stored") == found


def test_a_list_of_tasks_replaces_those_of_the_recipe_that_is_extended(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("mixture: {tasks: {a: {weight: 2}, b: {}}}\ntraining: {steps: 10}\n")
    child.write_text("extends: ./base.yaml\nmixture: {tasks: [b, c]}\n")
    assert list(config.load(str(child)).mixture.tasks) == ["b", "c"]
    assert list(config.load(str(child), ["mixture.tasks=[a]", "mixture.tasks.d.weight=2"]).mixture.tasks) == ["a", "d"]


TASK_FILE = """
name: reviews
source: {train: train.csv, validation: [dev-1.csv, "s3://bucket/dev-2.csv"]}
inputs: "review: {text}"
targets: "{label}"
"""


def test_the_path_of_a_task_file_becomes_the_task_with_its_definition(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/reviews.yaml").write_text(TASK_FILE)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("mixture: {tasks: {tasks/reviews.yaml: {weight: 2}, rte: {}}}\ntraining: {steps: 10}\n")
    found = config.load(str(recipe), ["mixture.tasks.reviews.scale=3"]).mixture.tasks
    assert list(found) == ["reviews", "rte"]
    reviews = found["reviews"]
    assert (reviews.weight, reviews.scale) == (2.0, 3.0)
    assert reviews.definition == {"name": "reviews", "inputs": "review: {text}", "targets": "{label}"}
    folder = tmp_path / "tasks"
    assert reviews.files == {
        "train": [str(folder / "train.csv")],
        "validation": [str(folder / "dev-1.csv"), "s3://bucket/dev-2.csv"],
    }


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (None, "is not there"),
        ("name: [", "is not YAML"),
        ("inputs: a", "must be a mapping with a name"),
        ("name: a\ninputs: b", "source must name files by split"),
        ("name: a\nsource: {train: 5}", "source.train is 5: name a file, or a list of files"),
        ("name: a\nsource: {train: null}", "name a file, or a list of files"),
        ("name: a\nsource: {tarin: a.csv}", "no split 'tarin'"),
        ("name: a\nname: b\nsource: {train: a.csv}", "'name' is written twice"),
        ("name: caf\udce9\nsource: {train: a.csv}", "is not UTF-8 text"),
    ],
)
def test_a_wrong_task_file_is_answered(tmp_path: Path, text: str | None, answer: str) -> None:
    if text is not None:
        (tmp_path / "wrong.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RequestError, match=answer):
        config.load("quickstart", [f"mixture.tasks=[{tmp_path}/wrong.yaml]"])


def test_where_files_lie_may_change_and_what_is_read_may_not(tmp_path: Path) -> None:
    base = config.load("quickstart", ["mixture.tasks=[rte]"])
    files = "mixture.tasks.rte.files.train=other/train.tsv"
    moved = config.load("quickstart", ["mixture.tasks=[rte]", files])
    assert moved.identity() == base.identity()
    assert [change[:2] for change in config.changes(base, moved)] == [("mixture.tasks.rte.files", config.FREE)]
    for other in ("mixture.tasks.rte.options.order=given", "mixture.tasks.rte.size=5", "mixture.tasks=[sst2]"):
        changed = config.load("quickstart", ["mixture.tasks=[rte]", other])
        assert changed.identity() != base.identity()
    assert (path_of := {change[0] for change in config.changes(base, changed)})
    assert {"mixture.tasks.rte.weight", "mixture.tasks.sst2.weight"} <= path_of


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(TASK_FILE)
    with pytest.raises(ConfigError, match="mixture.tasks has 'reviews' twice"):
        config.load("quickstart", [f"mixture.tasks=[{tmp_path}/a.yaml, {tmp_path}/b.yaml]"])
    with pytest.raises(ConfigError, match="write keys below it"):
        config.load("quickstart", [f"mixture.tasks={{{tmp_path}/a.yaml: 2}}"])
