"""Phases: one run after the other, each beginning with what the one before ended with, from wherever they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.platform.config import Config
from mixtura.platform.errors import ConfigError, MixturaError
from mixtura.platform.orchestration import phases as phases_module
from mixtura.platform.orchestration.phases import refuse_differing, train_phases
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_runs
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.recipe_files import Phase
from mixtura.platform.tracking.records import TrainPoint, read_events
from mixtura.platform.training.checkpoint import list_checkpoints, read_optimizer, read_state
from mixtura.platform.workspace import Run

FIRST, SECOND = 4, 3
RECIPE = f"""
extends: quickstart
training: {{steps: {FIRST}}}
checkpoints: {{every: 2}}
phases:
  pretrain: {{}}
  finetune:
    mixture: {{tasks: [python_docs_module]}}
    schedule: {{name: constant, factor: 0.001}}
    training: {{steps: {SECOND}}}
"""


@dataclass
class Lines(SilentReporter):
    """Keeps the lines that a person would see."""

    lines: list[str] = field(default_factory=list)

    def line(self, text: str = "") -> None:
        self.lines.append(text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], notes: str = "") -> None:
        self.lines += [title, notes]


@pytest.fixture
def given(tiny: list[str], new_workspace: Path) -> list[str]:
    """Overrides that hold in both phases."""
    own = [one for one in tiny if not one.startswith(("training.steps", "checkpoints.every"))]
    return [*own, f"run.root={new_workspace}", "executor.kind=inline", "evaluation.when=after", "evaluation.test=false"]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "two.yaml").write_text(RECIPE)
    return str(tmp_path / "two.yaml")


def train(recipe: str, given: Sequence[str]) -> list[str]:
    said = Lines()
    train_phases(recipe, load_runs(recipe, given), said)
    return said.lines


def learning_rates(run: Path) -> list[float]:
    points = [one for one in read_events(run / "events") if isinstance(one, TrainPoint)]
    return [one.metrics["learning_rate"] for one in sorted(points, key=lambda one: one.step)]


@pytest.mark.slow
def test_a_recipe_killed_between_its_phases_goes_on_and_the_optimizer_counts_on(
    recipe: str, given: list[str], new_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(name: str, config: Config, reporter: Any) -> bool:
        if str(config.run.name).endswith("finetune"):
            raise KeyboardInterrupt
        return train_recipe(name, config, reporter)

    monkeypatch.setattr(phases_module, "train_recipe", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, given)
    monkeypatch.undo()
    before, after = new_workspace / "two-pretrain", new_workspace / "two-finetune"
    assert Run(before).facts()["status"] == "done"
    assert not Run(after).exists()

    said = train(recipe, given)
    assert f"phase 'pretrain', 1 of 2: run 'two-pretrain' is done, {FIRST} of {FIRST} steps, 2 checkpoints" in said
    assert f"phase 'finetune', 2 of 2: run 'two-finetune', {SECOND} steps, begins with two-pretrain@{FIRST}" in said
    assert Run(before).facts()["attempts"] == 1
    saved = list_checkpoints(after / "checkpoints")
    assert [info.step for info in saved] == [2, SECOND]
    assert [read_state(info.path)["optimizer_step"] for info in saved] == [FIRST + 2, FIRST + SECOND]
    assert learning_rates(after) == pytest.approx([0.001] * SECOND)
    vocabularies = [
        info.path / "spiece.model" for run in (before, after) for info in list_checkpoints(run / "checkpoints")
    ]
    assert len({path.read_bytes() for path in vocabularies}) == 1

    again = train(recipe, given)
    assert any(line.startswith("run 'two-finetune' is done") for line in again)
    assert Run(after).facts()["attempts"] == 1


@pytest.mark.slow
def test_the_second_phase_is_what_a_run_from_the_first_is_and_needs_it_no_more_once_begun(
    recipe: str, given: list[str], new_workspace: Path, steps_of: Callable[[Path], Any]
) -> None:
    train(recipe, given)
    own = [
        "run.from=two-pretrain@last",
        "run.name=alone",
        "mixture.tasks=[python_docs_module]",
        "schedule.name=constant",
        "schedule.factor=0.001",
        "checkpoints.every=2",
    ]
    (alone,) = load_runs("quickstart", [*given, *own, f"training.steps={SECOND}"])
    assert train_recipe("quickstart", alone.config, SilentReporter())
    assert steps_of(new_workspace / "alone") == steps_of(new_workspace / "two-finetune")
    kept = [
        read_optimizer(list_checkpoints(new_workspace / name / "checkpoints")[-1].path)
        for name in ("alone", "two-finetune")
    ]
    for name in kept[0]:
        for kind in kept[0][name]:
            assert torch.equal(kept[0][name][kind], kept[1][name][kind])

    (new_workspace / "two-pretrain").rename(new_workspace / "gone")
    (longer,) = load_runs("quickstart", [*given, *own, f"training.steps={SECOND + 1}"])
    assert train_recipe("quickstart", longer.config, SilentReporter())


@pytest.mark.slow
def test_a_first_phase_that_is_stopped_keeps_the_second_waiting(
    recipe: str, given: list[str], new_workspace: Path
) -> None:
    said = train(recipe, [*given, "phases.pretrain.run.stop_after=0s"])
    assert any("was stopped and is resumable" in line for line in said)
    assert not any("phase 'finetune'" in line for line in said)
    assert not (new_workspace / "two-finetune").exists()


def test_a_mistake_in_a_later_phase_is_told_before_the_first_begins(
    recipe: str, given: list[str], new_workspace: Path
) -> None:
    for wrong, answer in (
        ("phases.finetune.mixture.tasks=[python_docs_modul]", "nearest: 'python_docs_module'"),
        (
            "phases.finetune.vocabulary.path=nowhere.model",
            "goes on with the weights .* vocabulary.path is 'nowhere.model'",
        ),
        ("phases.finetune.model.num_heads=2", "goes on with the weights .* model.num_heads is 2, and there it is 4"),
        ("phases.finetune.optimizer.name=adamw", "optimizer.name is 'adamw', and there it is 'adafactor'"),
        ("phases.finetune.mixture.tasks={squad: {files: {train: /nowhere.json}}}", "/nowhere.json"),
    ):
        with pytest.raises(MixturaError, match=answer):
            train(recipe, [*given, wrong])
    assert not list(new_workspace.glob("*/run.json"))


def test_dropout_may_differ_between_phases(recipe: str, given: list[str]) -> None:
    runs = load_runs(recipe, [*given, "phases.finetune.model.dropout_rate=0.2"])
    refuse_differing(runs)
    with pytest.raises(ConfigError, match="adapter_size"):
        refuse_differing(load_runs(recipe, [*given, "phases.finetune.model.adapter_size=8"]))


def test_more_steps_of_the_first_phase_are_another_beginning_of_the_second(recipe: str, given: list[str]) -> None:
    def second(*more: str) -> Phase:
        return load_runs(recipe, [*given, *more])[1]

    assert second().config.run.fork == f"two-pretrain@{FIRST}"
    longer = second("phases.pretrain.training.steps=9").config
    assert longer.run.fork == "two-pretrain@9"
    assert longer.identity() != second().config.identity()


@pytest.mark.slow
def test_a_starting_model_is_the_first_phase_s_and_its_shape_and_vocabulary_are_both_s(
    recipe: str, given: list[str], new_workspace: Path
) -> None:
    train(recipe, given)
    shapeless = [one for one in given if not one.startswith(("model.", "vocabulary."))]
    (new_workspace.parent / "mine.yaml").write_text(
        RECIPE.replace("extends: quickstart", "extends: ./bare.yaml\nmodel: {from: two-pretrain@last}")
    )
    (new_workspace.parent / "bare.yaml").write_text(
        "mixture: {tasks: [python_docs_returns]}\ndata: {lanes: 6, segment_rows: 1}\nschedule: {warmup_steps: 10}\n"
    )
    mine = str(new_workspace.parent / "mine.yaml")
    train(mine, shapeless)
    first, second = (Run(new_workspace / f"mine-{phase}").config() for phase in ("pretrain", "finetune"))
    assert (first.model.start, second.model.start) == ("two-pretrain@last", None)
    assert first.model.d_model == second.model.d_model == 32
    saved = list_checkpoints(new_workspace / "mine-finetune/checkpoints")[-1].path
    assert read_state(saved)["optimizer_step"] == FIRST + SECOND
    source = list_checkpoints(new_workspace / "two-pretrain/checkpoints")[-1].path
    assert (saved / "spiece.model").read_bytes() == (source / "spiece.model").read_bytes()
