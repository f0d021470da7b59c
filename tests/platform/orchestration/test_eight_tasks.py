"""Five checkpoints over eight real tasks and held-out text: every number is there, and the same wherever it stands."""

from __future__ import annotations

import json
import math
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixtura.platform.cli.main import app
from mixtura.platform.orchestration.report import write_report
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.pages import shown
from mixtura.platform.tracking.records import EvaluationResult, evaluation_results, read_events
from mixtura.platform.workspace import Run, Workspace, workspace

pytestmark = pytest.mark.slow

TASKS = (
    *("glue_cola", "glue_mrpc", "glue_stsb", "glue_rte", "glue_sst2"),
    *("super_glue_boolq", "super_glue_wsc", "squad"),
)
STEPS = [3, 6, 9, 12, 15]


@pytest.fixture(scope="module")
def space(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("eight") / "runs"
    text = shared / "data/web/c4/c4-train.sample-1000.json.gz"
    given = {
        "mixture.tasks": f"[{','.join(TASKS)}, c4]",
        "mixture.tasks.c4.files": f"{{train: {text}, validation: {text}}}",
        "data.root": shared / "data",
        "vocabulary.path": shared / "data/vocab/t5/spiece.model",
        "data.inputs_length": 128,
        "data.targets_length": 32,
        "model.d_model": 32,
        "model.d_ff": 64,
        "run.root": root,
        "run.name": "eight",
        "executor.kind": "inline",
        "training.steps": STEPS[-1],
        "checkpoints.every": STEPS[0],
        "schedule.warmup_steps": 2,
        "evaluation.examples": 30,
        "evaluation.text_pieces": 20,
        "evaluation.decode_length": 8,
        "evaluation.test": "false",
    }
    train_recipe(
        "twelve_tasks",
        load_recipe("twelve_tasks", [f"{key}={value}" for key, value in given.items()]),
        SilentReporter(),
    )
    return workspace(str(root))


@pytest.fixture(scope="module")
def run(space: Workspace) -> Run:
    return space.run("eight")


@pytest.fixture(scope="module")
def results(run: Run) -> dict[tuple[int, str], EvaluationResult]:
    """The headline of each step and task: what the run itself reported first."""
    found: dict[tuple[int, str], EvaluationResult] = {}
    for one in evaluation_results(read_events(run.events)):
        found.setdefault((one.step, one.task), one)
    return found


@pytest.fixture(scope="module")
def listed(space: Workspace) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["checkpoints", "list", "eight", "--root", str(space.root), "--json"])
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def mlflow(space: Workspace, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(space.root / "mlflow.db") as store:
        return store.execute(query, values).fetchall()


def test_every_task_was_measured_on_every_checkpoint(results: dict[tuple[int, str], EvaluationResult]) -> None:
    assert set(results) == {(step, task) for step in STEPS for task in (*TASKS, "c4")}


def test_the_command_line_has_every_cell(
    results: dict[tuple[int, str], EvaluationResult], listed: list[dict[str, Any]]
) -> None:
    assert sorted(row["step"] for row in listed) == STEPS
    for row in listed:
        for task in (*TASKS, "c4"):
            result = results[row["step"], task]
            # The correlation of equal answers is no number, which JSON has no word for.
            assert row[f"{task} {result.metric}"] == (None if math.isnan(result.value) else result.value)
        values = [results[row["step"], task].value for task in TASKS]
        assert row["average"] == pytest.approx(sum(0.0 if value != value else value for value in values) / len(values))
    averages = [row["average"] for row in listed]
    assert averages == sorted(averages, reverse=True)


def test_mlflow_has_every_cell_at_the_model_and_in_its_row(
    space: Workspace, run: Run, results: dict[tuple[int, str], EvaluationResult]
) -> None:
    known = json.loads((run.path / "mlflow.json").read_text())["checkpoints"]
    assert sorted(map(int, known)) == STEPS
    for step in STEPS:
        checkpoint = known[str(step)]
        rows = mlflow(space, "select key, value, is_nan from latest_metrics where run_uuid = ?", checkpoint["run_id"])
        row = {key: float("nan") if is_nan else value for key, value, is_nan in rows}
        models = mlflow(
            space,
            "select metric_name, metric_value from logged_model_metrics where model_id = ?",
            checkpoint["model_id"],
        )
        model = dict(models)
        for task in (*TASKS, "c4"):
            result = results[step, task]
            name = f"{task}/{result.metric}"
            assert row[name] == pytest.approx(result.value, rel=1e-4, nan_ok=True)
            # MLflow's table of models has no word for it either, and says 0.
            assert model[name] == pytest.approx(0.0 if math.isnan(result.value) else result.value, rel=1e-4)
        assert len(model) <= 30


def test_tags_say_which_checkpoint_is_best_for_each_task(
    space: Workspace, run: Run, results: dict[tuple[int, str], EvaluationResult], listed: list[dict[str, Any]]
) -> None:
    known = json.loads((run.path / "mlflow.json").read_text())["checkpoints"]

    def goodness(step: int, task: str) -> float:
        result = results[step, task]
        return float("-inf") if result.value != result.value else result.value * (1 if result.higher_is_better else -1)

    best = {task: max(STEPS, key=lambda step, task=task: (goodness(step, task), -step)) for task in (*TASKS, "c4")}
    best["average"] = listed[0]["step"]
    for step in STEPS:
        tags = dict(mlflow(space, "select key, value from tags where run_uuid = ?", known[str(step)]["run_id"]))
        said = {name for name in tags.get("best", "").split(", ") if name}
        assert said == {what for what, winner in best.items() if winner == step}
        (row,) = [row for row in listed if row["step"] == step]
        assert {name for name in row["best for"].split(", ") if name} == said
    aliases = dict(mlflow(space, "select alias, version from registered_model_aliases where name = ?", "eight"))
    assert set(aliases) == {"champion", *(f"best-{task}" for task in (*TASKS, "c4"))}


class _Cells(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += f"{data.strip()} "


def test_the_report_has_every_cell(
    space: Workspace,
    results: dict[tuple[int, str], EvaluationResult],
    listed: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    page = write_report(space, "eight", tmp_path / "report.html", None).read_text()
    rows = _Cells(page).rows
    (head,) = [row for row in rows if row and row[0].strip() == "checkpoint" and "average" in row[1]]
    tasks = [cell.split()[0] for cell in head[2:-1]]
    assert sorted(tasks) == sorted((*TASKS, "c4"))
    table = {row[0].strip(): row for row in rows if row and row[0].startswith("eight@")}
    assert list(table) == [row["checkpoint"] for row in listed]
    for step in STEPS:
        cells = table[f"eight@{step}"]
        for place, task in enumerate(tasks, start=2):
            assert cells[place].split()[0] == shown(results[step, task].value)


def test_all_answers_are_kept_beside_the_numbers(run: Run, results: dict[tuple[int, str], EvaluationResult]) -> None:
    for (step, task), result in results.items():
        path = run.predictions / f"step-{step:06d}/{task}.validation.jsonl"
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        assert len(records) == result.examples
        assert sum(one["target_tokens"] for one in records) == result.target_tokens
