"""What a run came to: the table on whole splits, the benchmarks' averages, and the commands that come next."""

from __future__ import annotations

from typing import Any

from mixtura.platform.evaluation.benchmarks import averages
from mixtura.platform.evaluation.intervals import bounds_shown
from mixtura.platform.orchestration.evaluate import WHOLE_VALIDATION
from mixtura.platform.orchestration.select import best_checkpoint
from mixtura.platform.tracking.records import LOSS, EvaluationResult, read_events
from mixtura.platform.training.checkpoint import list_checkpoints
from mixtura.platform.workspace import Run, Workspace

FINAL_SPLITS = {"test": "test", WHOLE_VALIDATION: "validation"}
"""Splits of the final measurement, and what they are called in the table."""


def summary_line(run: Run) -> str:
    """How far the run is."""
    saved = list_checkpoints(run.checkpoints)
    steps = run.config().training.steps
    if not saved:
        return f"0 of {steps} steps, no checkpoint yet"
    return f"{saved[-1].step} of {steps} steps, {len(saved)} checkpoints"


def result_table(run: Run) -> list[dict[str, Any]]:
    """A row for each task and metric on its test split, or on its whole validation split where test answers are not
    public: the newest measurement of each, beside its trivial baseline."""
    results = _final_results(run)
    losses = {record.task: record.value for record in results if record.metric == LOSS}
    return [_row(record, losses.get(record.task)) for record in results if record.metric != LOSS]


def _final_results(run: Run) -> list[EvaluationResult]:
    newest: dict[tuple[str, str], EvaluationResult] = {}
    for record in read_events(run.events):
        if isinstance(record, EvaluationResult) and record.split in FINAL_SPLITS:
            newest[record.task, record.metric] = record
    return list(newest.values())


def benchmark_lines(run: Run) -> list[str]:
    """The average of each benchmark that the run has tasks of, with the tasks that are missing."""
    results = {(record.task, record.metric): record.value for record in _final_results(run)}
    return [str(one) for one in averages(results)]


def _row(record: EvaluationResult, loss: float | None) -> dict[str, Any]:
    beaten = record.baseline is not None and record.low is not None and record.low > record.baseline
    return {
        "task": record.task,
        "split": FINAL_SPLITS[record.split],
        "metric": record.metric,
        "baseline": record.baseline,
        "baseline's rule": record.baseline_rule,
        "result": record.value,
        "95 % interval": None if record.low is None or record.high is None else bounds_shown(record.low, record.high),
        "loss": loss,
        "rows": record.examples,
        "step": record.step,
        "beats the baseline": "yes" if beaten else "no",
    }


def next_commands(space: Workspace, run: Run) -> list[str]:
    """Commands that a person may want now; they can be pasted as they stand."""
    root = "" if space.root.name == "runs" and space.root.parent.samefile(".") else f" --root {space.root}"
    best = best_checkpoint(run)
    return [
        f"mixtura ui{root}   # pick a checkpoint in MLflow",
        f"mixtura checkpoints list {run.name}{root}",
        f'mixtura predict {run.name}@{best.step}{root} "{_example(run, best.step)}"',
    ]


def _example(run: Run, step: int) -> str:
    """An input that the run was asked in its evaluation, short enough to paste."""
    import json

    for path in sorted((run.predictions / f"step-{step:06d}").glob("*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                text = str(json.loads(line)["inputs"])
                if len(text) < 90 and not set(text) & set("\"'`$\\!\n"):
                    return text
    return "a text"
