"""Which checkpoints stay: the settings say how many, and nothing that somebody named or needs is deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.platform.config import Config
from mixtura.platform.orchestration.retention import delete_superseded
from mixtura.platform.tracking.aliases import read_aliases, set_alias, set_aliases
from mixtura.platform.tracking.records import EvaluationResult, EvaluationSkipped, EventWriter
from mixtura.platform.training.checkpoint import MANIFEST, folder_name, list_checkpoints
from mixtura.platform.workspace import Run, workspace

STEPS = range(100, 1100, 100)
SKIPPED = "skipped.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with ten checkpoints; of nobody's interest, not even to be evaluated."""
    run = workspace(str(tmp_path / "runs")).run("base")
    for step in STEPS:
        folder = run.checkpoints / folder_name(step)
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("{}")
    with EventWriter(run.events / SKIPPED) as events:
        events.write(*(EvaluationSkipped(step, "of no interest") for step in STEPS))
    return run


@pytest.fixture
def keep(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    return lambda *given: tiny_config(tmp_path / "runs", "base", *given)


def steps(run: Run) -> list[int]:
    return [info.step for info in list_checkpoints(run.checkpoints)]


def reached(run: Run, step: int, **values: float) -> None:
    with EventWriter(run.events / f"evaluate-{step}.jsonl") as events:
        events.write(*(EvaluationResult(step, task, "validation", "accuracy", value) for task, value in values.items()))


def begun_by(run: Run, name: str, tree: Config) -> None:
    (run.path.parent / name).mkdir()
    (run.path.parent / name / "config.yaml").write_text(tree.to_yaml())


def test_all_stay_unless_a_number_is_given(run: Run, keep: Callable[..., Config]) -> None:
    assert delete_superseded(run, keep(), evaluated=True) == []
    assert steps(run) == list(STEPS)


def test_those_that_wait_for_evaluation_stay(run: Run, keep: Callable[..., Config]) -> None:
    (run.events / SKIPPED).unlink()
    for step in (100, 200, 400, 500, 600, 700, 900, 1000):
        reached(run, step, python_docs_module=50.0)
    with EventWriter(run.events / SKIPPED) as events:
        events.write(EvaluationSkipped(800, "too many"))
    delete_superseded(run, keep("checkpoints.keep=1"), evaluated=True)
    assert steps(run) == [100, 300, 1000]  # the best, the one that waits, the newest
    delete_superseded(run, keep("checkpoints.keep=1"), evaluated=False)
    assert steps(run) == [100, 1000]


def test_the_newest_and_those_of_every_so_many_steps_stay(run: Run, keep: Callable[..., Config]) -> None:
    delete_superseded(run, keep("checkpoints.keep=2", "checkpoints.keep_every=400"), evaluated=True)
    assert steps(run) == [400, 800, 900, 1000]


def test_the_best_for_a_task_the_best_on_average_and_the_unbeaten_stay(run: Run, keep: Callable[..., Config]) -> None:
    reached(run, 100, rte=90, cola=10)  # best for rte
    reached(run, 200, rte=60, cola=60)  # best on average
    reached(run, 300, rte=30, cola=70)  # best for nothing, beaten by nobody on both
    reached(run, 400, rte=50, cola=50)  # beaten by 200
    reached(run, 500, rte=10, cola=80)  # best for cola
    delete_superseded(run, keep("checkpoints.keep=1"), evaluated=True)
    assert steps(run) == [100, 200, 300, 500, 1000]


def test_what_an_alias_names_stays_and_no_registry_is_asked(
    run: Run, keep: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    set_alias(run.path, "answers", "production", 300)
    set_aliases(run.path, "base", {"champion": 500, "best-rte": 300})
    delete_superseded(run, keep("checkpoints.keep=1"), evaluated=True)
    assert steps(run) == [300, 500, 1000]
    assert read_aliases(run.path) == {"answers@production": 300, "base@champion": 500, "base@best-rte": 300}


def test_an_alias_that_moves_on_lets_go_of_its_checkpoint(run: Run, keep: Callable[..., Config]) -> None:
    set_aliases(run.path, "base", {"champion": 300, "best-rte": 200})
    set_alias(run.path, "base", "champion", 400)
    set_alias(run.path, "base", "best-rte", None)
    delete_superseded(run, keep("checkpoints.keep=1"), evaluated=True)
    assert steps(run) == [400, 1000]


def test_what_another_run_begins_with_stays(run: Run, keep: Callable[..., Config]) -> None:
    begun_by(run, "fork", keep("run.from=base@200"))
    begun_by(run, "fine-tuned", keep(f"model.from={run.checkpoints / folder_name(300)}"))
    begun_by(run, "other", keep("run.from=another@400"))
    begun_by(run, "foreign", keep("model.from=someone/t5-base"))
    (run.path / "config.yaml").write_text(keep("run.from=base@600").to_yaml())
    delete_superseded(run, keep("checkpoints.keep=1"), evaluated=True)
    assert steps(run) == [200, 300, 1000]


def test_a_file_of_aliases_is_whole_and_nothing_of_another_model_is_lost(run: Run) -> None:
    set_alias(run.path, "answers", "production", 300)
    set_aliases(run.path, "base", {"champion": 500})
    set_aliases(run.path, "base", {})
    assert json.loads((run.path / "aliases.json").read_text()) == {"answers@production": 300}
