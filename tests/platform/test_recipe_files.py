"""Recipes as files: what they extend, what replaces what, their tasks, their names and their phases."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.config import Config
from mixtura.platform.errors import ConfigError, RequestError, UnknownNameError
from mixtura.platform.recipe_files import description, is_file, load, load_phases, recipe_name


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="nearest: 'quickstart'"):
        load("quickstrat")
    with pytest.raises(ConfigError, match="is not there"):
        load("./nowhere.yaml")


def test_a_recipe_that_extends_changes_only_what_it_names(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("mixture: {tasks: [a, b], temperature: 2}\ntraining: {steps: 10}\n")
    child.write_text("extends: ./base.yaml\nmixture: {tasks: {b: {weight: 3}}}\n")
    found = load(str(child))
    assert {name: task.weight for name, task in found.mixture.tasks.items()} == {"a": 1.0, "b": 3.0}
    assert (found.mixture.temperature, found.training.steps) == (2.0, 10)


def test_recipes_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load(str(tmp_path / "a.yaml"))


def test_a_list_of_tasks_replaces_those_of_the_recipe_that_is_extended(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("mixture: {tasks: {a: {weight: 2}, b: {}}}\ntraining: {steps: 10}\n")
    child.write_text("extends: ./base.yaml\nmixture: {tasks: [b, c]}\n")
    assert list(load(str(child)).mixture.tasks) == ["b", "c"]
    assert list(load(str(child), ["mixture.tasks=[a]", "mixture.tasks.d.weight=2"]).mixture.tasks) == ["a", "d"]


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
    found = load(str(recipe), ["mixture.tasks.reviews.scale=3"]).mixture.tasks
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
        load("quickstart", [f"mixture.tasks=[{tmp_path}/wrong.yaml]"])


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(TASK_FILE)
    with pytest.raises(ConfigError, match="mixture.tasks has 'reviews' twice"):
        load("quickstart", [f"mixture.tasks=[{tmp_path}/a.yaml, {tmp_path}/b.yaml]"])
    with pytest.raises(ConfigError, match="write keys below it"):
        load("quickstart", [f"mixture.tasks={{{tmp_path}/a.yaml: 2}}"])


def test_a_list_may_say_keys_of_its_tasks_and_replaces_those_of_the_recipe_too(tmp_path: Path) -> None:
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text("mixture: {tasks: [a, b]}\ntraining: {steps: 10}\n")
    child.write_text("extends: ./base.yaml\nmixture: {tasks: [c, d: {weight: 2}]}\n")
    tasks = load(str(child)).mixture.tasks
    assert {name: task.weight for name, task in tasks.items()} == {"c": 1.0, "d": 2.0}


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_packaged_recipe_with_a_slash_gives_way_to_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_file("paper/baseline")
    assert load("paper/baseline").training.steps == 2**19
    assert recipe_name("paper/baseline") == "paper-baseline"
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/baseline").write_text("extends: quickstart\ntraining: {steps: 3}\n")
    assert is_file("paper/baseline")
    assert load("paper/baseline").training.steps == 3
    assert recipe_name("paper/baseline") == "baseline"
    # what packaged recipes extend is packaged
    assert load("paper/objectives/drop_tokens").training.steps == 2**19


def test_a_file_extends_packaged_recipes_and_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: paper/objectives/drop_tokens\ntraining: {steps: 3}\n")
    (tmp_path / "other.yaml").write_text("extends: ./mine.yaml\n")
    assert load(str(tmp_path / "other.yaml")).data.targets_length == 104


def test_a_file_that_is_not_there_is_answered_with_the_packaged_recipe_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="is not there; the nearest packaged recipe is 'paper/baseline'"):
        load("paper/baselin")


def test_the_description_is_the_first_line_of_the_comment(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# Mine.\n#\n# More.\nextends: quickstart\n")
    assert description(str(path)) == "Mine."
    path.write_text("extends: quickstart  # no\n")
    assert description(str(path)) == ""


# ---- phases ----------------------------------------------------------------------------------------------------------

PHASES = """
extends: quickstart
training: {steps: 10}
phases:
  first: {}
  second: {mixture: {tasks: [python_docs_module]}, schedule: {name: constant, factor: 0.001}, training: {steps: 5}}
"""


def phases(folder: Path, *overrides: str, text: str = PHASES) -> dict[str | None, Config]:
    (folder / "two.yaml").write_text(text)
    return {phase.name: phase.config for phase in load_phases(str(folder / "two.yaml"), overrides)}


def test_a_later_phase_begins_with_what_the_one_before_ended_with(tmp_path: Path) -> None:
    first, second = phases(tmp_path).values()
    assert (first.run.name, first.run.fork, first.training.steps) == ("two-first", None, 10)
    assert (second.run.name, second.run.fork, second.training.steps) == ("two-second", "two-first@10", 5)
    assert (first.schedule.name, second.schedule.name) == ("inverse_square_root", "constant")
    assert list(second.mixture.tasks) == ["python_docs_module"]
    assert second.model == first.model
    named = phases(tmp_path, "run.name=mine", "phases.first.training.steps=7")
    assert (named["first"].run.name, named["second"].run.fork) == ("mine-first", "mine-first@7")


def test_overrides_hold_in_all_phases_or_in_the_one_that_they_name(tmp_path: Path) -> None:
    first, second = phases(tmp_path, "data.inputs_length=64", "training.steps=3", "phases.second.run.seed=4").values()
    assert (first.data.inputs_length, second.data.inputs_length) == (64, 64)
    assert (first.training.steps, second.training.steps) == (3, 3)
    assert (first.run.seed, second.run.seed) == (0, 4)
    _, second = phases(
        tmp_path, "phases.second.mixture.tasks=[a, b]", "phases.second.mixture.tasks.b.weight=2"
    ).values()
    assert {name: task.weight for name, task in second.mixture.tasks.items()} == {"a": 1.0, "b": 2.0}


def test_what_the_recipe_begins_with_is_for_the_first_phase(tmp_path: Path) -> None:
    first, second = phases(tmp_path, "model.from=google-t5/t5-small").values()
    assert (first.model.start, second.model.start) == ("google-t5/t5-small", None)
    first, second = phases(tmp_path, "run.from=other@5").values()
    assert (first.run.fork, second.run.fork) == ("other@5", "two-first@10")


def test_a_recipe_that_extends_one_with_phases_changes_single_keys_of_them(tmp_path: Path) -> None:
    phases(tmp_path)
    (tmp_path / "child.yaml").write_text("extends: ./two.yaml\nphases: {second: {mixture: {tasks: [x]}}}\n")
    _, second = (phase.config for phase in load_phases(str(tmp_path / "child.yaml")))
    assert (list(second.mixture.tasks), second.training.steps, second.run.name) == (["x"], 5, "child-second")


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("phases.third.training.steps=3", "no phase 'third'.*known: first, second"),
        ("phases.second.run.name=x", "phases.second.run.name: a phase is called NAME-second"),
        ("phases.second.run.from=x@1", "phases.second.run.from: phase 'second' begins with what 'first' ended with"),
        ("phases.second.training.step=3", r"phase 'second' of recipe .*\n.*training.step: no such key"),
        ("phases.second=5", "phases.second is 5; write keys below it"),
        ("phases=5", "phases is 5; name them"),
        ("run=5", "run is 5; write keys below it"),
        ("phases.second.model=5", "model is 5; write keys below it"),
        ("phases={a b: {}}", "phase 'a b' is part of a run's name"),
    ],
)
def test_a_wrong_phase_is_answered(tmp_path: Path, override: str, answer: str) -> None:
    with pytest.raises(RequestError, match=answer):
        phases(tmp_path, override)


def test_phases_of_a_recipe_that_has_none_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no phase 'second'"):
        load_phases("quickstart", ["phases.second.training.steps=3"])


def test_several_runs_are_no_single_one(tmp_path: Path) -> None:
    phases(tmp_path)
    with pytest.raises(RequestError, match="describes several runs, its phases first, second: choose one with --phase"):
        load(str(tmp_path / "two.yaml"))
