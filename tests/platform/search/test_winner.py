"""The winner as a recipe: what `mixtura train` makes of it is what the search measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mixtura.platform import recipe_files
from mixtura.platform.recipe_files import load
from mixtura.platform.search.space import Candidate, Space, own_mixture, plain_baselines
from mixtura.platform.search.winner import winner_file, write_winner


def winner_of(recipe: str, overrides: list[str]) -> Candidate:
    space = Space.of(load(recipe, overrides))
    return space.candidate({name: low * 1.37 for name, (low, _) in space.parameters().items()}, "searched")


def written(folder: Path, recipe: str, overrides: list[str], winner: Candidate) -> Path:
    path = winner_file(folder, recipe)
    write_winner(path, recipe, overrides, load(recipe, overrides), winner, "first line\nsecond line")
    return path


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.global_batch_size=6", "data.inputs_length=64", "run.seed=7"],
        ["mixture.temperature=3", "mixture.maximum=500"],
        ["mixture.tasks={python_docs_module: {}, python_docs_span_corruption: {weight: 2}}"],
        ["mixture.tasks=[python_docs_module, python_docs_span_corruption]"],
    ],
)
def test_the_winner_trains_what_was_searched(tmp_path: Path, overrides: list[str]) -> None:
    winner = winner_of("quickstart", overrides)
    tree = load(str(written(tmp_path, "quickstart", overrides, winner)))
    assert tree.identity() == winner.applied(load("quickstart", overrides)).identity()
    assert own_mixture(tree).same_mixture(winner)


def test_a_plain_winner_is_a_recipe_too(tmp_path: Path) -> None:
    for winner in plain_baselines(load("quickstart")):
        tree = load(str(written(tmp_path, "quickstart", [], winner)))
        assert own_mixture(tree).same_mixture(winner)


def test_the_winner_is_a_variant_and_says_where_it_is_from(tmp_path: Path) -> None:
    winner = winner_of("quickstart", [])
    overrides = ["training.steps=500", "search.trials=3", "run.name=my-search", "run.root=/data/runs"]
    path = written(tmp_path, "quickstart", overrides, winner)
    assert path.name == "quickstart-winner.yaml"
    assert path.read_text().startswith("# first line\n# second line\nextends: quickstart\n")
    assert yaml.safe_load(path.read_text()) == {
        "extends": "quickstart",
        "run": {"root": "/data/runs"},
        "training": {"steps": 500},
        "mixture": winner.mixture(),
    }


def test_the_winner_of_a_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("extends: quickstart\ntraining: {steps: 77}\nrun: {name: mine}\n")
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "runs", "recipes/mine.yaml", [], winner_of("recipes/mine.yaml", []))
    monkeypatch.chdir("/")
    tree = load(str(path))
    assert tree.training.steps == 77
    assert recipe_files.recipe_name(str(path)) == tree.run.name == "mine-winner"


def test_a_submitted_jobs_winner_needs_no_file_of_the_jobs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: quickstart\ntraining: {steps: 77}\n")
    recipe = str(tmp_path / "mine.yaml")
    winner = winner_of(recipe, [])
    monkeypatch.setattr("mixtura.platform.search.winner.in_submitted_job", lambda: True)
    path = written(tmp_path / "runs", recipe, [], winner)
    wanted = winner.applied(load(recipe)).identity()
    (tmp_path / "mine.yaml").unlink()
    assert load(str(path)).identity() == wanted
