"""`mixtura recipes`, and recipes of several phases on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Ask = Callable[..., Any]

TWO = "extends: quickstart\nphases: {first: {}, second: {training: {steps: 5}, data: {targets_length: 16}}}\n"


def test_packaged_recipes_are_listed_with_their_steps_rows_and_tokens(ask: Ask) -> None:
    rows = {(row["recipe"], row["phase"]): row for row in json.loads(ask("recipes", "list", "--json").output)}
    baseline = rows["paper/baseline", None]
    assert (baseline["steps"], baseline["batch"], baseline["tokens a step"]) == (2**19, 128, 2**16)
    assert baseline["tokens"] == 2**35
    assert baseline["description"].startswith("Pre-training of the study's baseline")
    assert rows["paper/final/11B", None]["tokens a step"] == 2**20
    assert rows["paper/multitask_then_finetune", "finetune"]["steps"] == 2**18
    assert rows["paper/architectures/lm_denoising", None]["tokens a step"] == 128 * (512 + 192)
    assert ("quickstart", None) in rows


def test_the_list_can_be_read_and_narrowed(ask: Ask) -> None:
    output = ask("recipes", "list", "paper/span_lengths").output
    assert "paper/span_lengths/10" in output
    assert "quickstart" not in output


def test_what_show_prints_is_the_recipe_itself(ask: Ask, tmp_path: Path) -> None:
    shown = ask("recipes", "show", "paper/span_lengths/3", "training.steps=7").output
    values = yaml.safe_load(shown)
    assert (values["training"]["steps"], values["data"]["mean_noise_span_length"]) == (7, 3)
    assert values["data"]["packing"] == "greedy"
    (tmp_path / "again.yaml").write_text(shown)
    assert ask("recipes", "show", str(tmp_path / "again.yaml")).output == shown


def test_phases_are_shown_all_or_one(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO)
    both = json.loads(ask("recipes", "show", str(tmp_path / "two.yaml"), "--json").output)
    assert list(both["phases"]) == ["first", "second"]
    one = json.loads(ask("recipes", "show", str(tmp_path / "two.yaml"), "--phase", "second", "--json").output)
    assert one == both["phases"]["second"]
    answer = ask("recipes", "show", str(tmp_path / "two.yaml"), "--phase", "secnd")
    assert answer.code == 2
    assert "no phase 'secnd'" in answer.message
    assert "nearest: 'second'" in answer.message


def test_a_plan_is_made_of_all_phases_or_one(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO)
    both = json.loads(ask("plan", str(tmp_path / "two.yaml"), "--json").output)["phases"]
    assert [plan["run"]["steps"] for plan in both.values()] == [1100, 5]
    one = json.loads(ask("plan", str(tmp_path / "two.yaml"), "--phase", "second", "--json").output)
    assert one == both["second"]
    text = ask("plan", str(tmp_path / "two.yaml")).output
    assert text.index("Phase first") < text.index("Phase second")


def test_a_search_takes_no_phases(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO)
    answer = ask("search", str(tmp_path / "two.yaml"), f"run.root={tmp_path / 'runs'}")
    assert answer.code == 2
    assert "take a recipe without phases" in answer.message


def test_help_says_when_a_name_is_a_file(ask: Ask) -> None:
    assert "paper/baseline" in ask("train", "--help").output
