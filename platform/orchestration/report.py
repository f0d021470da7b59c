"""A run as one page that opens offline: what was trained on what, how good it became, and what it cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.data.mixture import ONE
from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.errors import ConfigError, RequestError
from mixtura.platform.evaluation.evaluator import read_answers
from mixtura.platform.evaluation.intervals import bounds_shown
from mixtura.platform.orchestration.memory import Planned
from mixtura.platform.orchestration.provenance import provenance
from mixtura.platform.orchestration.reporter import duration
from mixtura.platform.orchestration.result import FINAL_SPLITS, benchmark_lines, result_table
from mixtura.platform.tracking.html import write_page
from mixtura.platform.tracking.plot import LOSS_AXIS, Curve, as_svg, curve_of, loss_curves
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
    EvaluationSkipped,
    Note,
    Record,
    RunFinished,
    RunStarted,
    TrainPoint,
    read_events,
)
from mixtura.platform.tracking.selection import (
    AVERAGE,
    CheckpointScores,
    best_for,
    best_on_average,
    best_per_task,
    scores,
)
from mixtura.platform.training.checkpoint import list_checkpoints
from mixtura.platform.workspace import Run, Workspace

_RIGHT_SHOWN, _WRONG_SHOWN, _TEXTS_SHOWN = 2, 3, 2
_EVENTS_SHOWN = 200
_FULL = 100.0


def write_report(space: Workspace, name: str, path: Path | None, price: float | None) -> Path:
    """Write the page of a run, by default into its folder, and return where it is.

    `price` is of an hour of one worker. Raises RequestError for a search, which has a report of its own.
    """
    run = space.existing_run(name)
    if (kind := run.facts().get("kind", "train")) != "train":
        raise RequestError(f"{name!r} is no training run, but a {kind}: `mixtura {kind}` prints its report")
    where = path or run.path / "report.html"
    write_page("report.html", report_values(run, price), where)
    return where


def report_values(run: Run, price: float | None = None) -> dict[str, Any]:
    """Everything that stands on the page, ready to be shown."""
    records, config, facts = read_events(run.events), run.config(), run.facts()
    found, kept = scores(records), {info.step for info in list_checkpoints(run.checkpoints)}
    tasks = list(best_per_task(found))
    points = list({one.step: one for one in records if isinstance(one, TrainPoint)}.values())
    spending = spent(records, config.executor.workers)
    answers_of = answered_step(run, found)
    losses = loss_curves(records)
    return {
        "run": {
            "name": run.name,
            "what": f"recipe {facts.get('recipe', '')}, {facts.get('status', '')}; {_model_line(config)}",
            "numbers": list(_numbers(config, found, points, spending)),
            "notes": [] if points else ["No step of this run has ended yet."],
        },
        "tasks": [{"name": task, "metric": _metric_of(found, task)} for task in tasks],
        "results": [_result_row(run, one, found, tasks, kept) for one in found],
        "checkpoints": ", ".join(f"{run.name}@{step}" for step in sorted(kept)),
        "metric_curves": list(_metric_curves(found, tasks)),
        "final": result_table(run),
        "benchmarks": benchmark_lines(run),
        "loss_curve": as_svg(losses, "", LOSS_AXIS, smooth=True) if losses else "",
        "mixture": mixture_rows(run, points),
        "rates_change": (spec := _stream(run)) is not None and bool(spec.changes),
        "examples": [] if answers_of is None else list(example_answers(run, answers_of)),
        "examples_of": "" if answers_of is None else f"{run.name}@{answers_of}",
        "cost": _cost(spending, price),
        "curves": list(_step_curves(records)),
        "events": list(_events(records))[-_EVENTS_SHOWN:],
        "provenance": [{"what": name, "value": value} for name, value in provenance(run).items()],
        "config": config.to_yaml(),
        "made": f"Made by Mixtura on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())} of {run.path}",
    }


@dataclass(frozen=True)
class Spending:
    """Where the time of a run went, in seconds, and what was trained on for it."""

    wall_s: float
    steps_s: float
    waited_s: float
    saved_s: float
    evaluated_s: float
    workers: int
    steps: int
    steps_done_again: int
    """After restarts from an earlier checkpoint."""
    input_tokens: int
    target_tokens: int
    attempts: int


def spent(records: Sequence[Record], workers: int) -> Spending:
    """What a run took until now; time between attempts does not count.

    >>> attempts = RunStarted(1, time_s=0.0), Note("a", time_s=5.0), RunStarted(2, time_s=60.0), Note("b", time_s=61.0)
    >>> spent(attempts, workers=2).wall_s
    6.0
    """
    points = [one for one in records if isinstance(one, TrainPoint)]
    evaluations = {(one.step, one.split, one.seconds) for one in records if isinstance(one, EvaluationResult)}
    last = points[-1].metrics if points else {}
    return Spending(
        wall_s=sum(end - start for start, end in _attempts(records)),
        steps_s=sum(one.metrics["step_s"] for one in points),
        waited_s=sum(one.metrics["data_wait_s"] for one in points),
        saved_s=sum(one.metrics.get("save_s", 0.0) for one in points),
        evaluated_s=sum(seconds or 0.0 for _, _, seconds in evaluations),
        workers=workers,
        steps=len({one.step for one in points}),
        steps_done_again=len(points) - len({one.step for one in points}),
        input_tokens=int(sum(value for name, value in last.items() if name.startswith("input_tokens/"))),
        target_tokens=int(sum(value for name, value in last.items() if name.startswith("target_tokens/"))),
        attempts=sum(isinstance(one, RunStarted) for one in records),
    )


def _attempts(records: Sequence[Record]) -> Iterator[tuple[float, float]]:
    """When each attempt began, and when it was last heard of."""
    start = end = None
    for record in records:
        if isinstance(record, RunStarted):
            if start is not None and end is not None:
                yield start, end
            start = record.time_s
        end = record.time_s
        if isinstance(record, RunFinished) and start is not None:
            yield start, end
            start = None
    if start is not None and end is not None:
        yield start, end


def mixture_rows(run: Run, points: Sequence[TrainPoint]) -> list[dict[str, Any]]:
    """Of each task its rate, and what of it was trained on."""
    spec, last = _stream(run), points[-1].metrics if points else {}
    if spec is None:
        return []
    total = sum(value for name, value in last.items() if name.startswith("examples/"))
    return [
        {
            "task": task.name,
            "rate": task.rate_bits / ONE,
            "drawn": last.get(f"examples/{task.name}", 0.0) / total if total else 0.0,
            "examples": int(last.get(f"examples/{task.name}", 0)),
            "passes": last.get(f"epochs/{task.name}"),
            "input_tokens": int(last.get(f"input_tokens/{task.name}", 0)),
            "target_tokens": int(last.get(f"target_tokens/{task.name}", 0)),
        }
        for task in sorted(spec.tasks, key=lambda task: -task.rate_bits)
    ]


def answered_step(run: Run, found: Sequence[CheckpointScores]) -> int | None:
    """The checkpoint whose answers are shown: the best on average, or else the newest whose answers are kept."""
    best = best_on_average(found)
    steps = sorted(int(path.name.rpartition("-")[2]) for path in run.predictions.glob("step-*"))
    if best is not None and best.step in steps:
        return best.step
    return steps[-1] if steps else None


def example_answers(run: Run, step: int) -> Iterator[dict[str, Any]]:
    """Of each task some answers of a checkpoint: right ones, and of the wrong ones those that it is surest of."""
    by_task: dict[str, Path] = {}
    for path in sorted((run.predictions / f"step-{step:06d}").glob("*.jsonl")):
        task, _, split = path.stem.rpartition(".")
        if task not in by_task or split in FINAL_SPLITS:
            by_task[task] = path
    for task, path in by_task.items():
        records = read_answers(path)
        if records:
            yield _answers_of_task(task, records) if "prediction" in records[0] else _pieces_of_text(task, records)


def _answers_of_task(task: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    right = [one for one in records if is_right(one)]
    wrong = sorted((one for one in records if not is_right(one)), key=lambda one: -one["log_probability"])
    chosen = [*((one, "good") for one in right[:_RIGHT_SHOWN]), *((one, "bad") for one in wrong[:_WRONG_SHOWN])]
    return {
        "name": task,
        "count": f"{len(right)} of {len(records)} right",
        "shown": [
            {
                "inputs": one["inputs"],
                "targets": one["targets"],
                "prediction": one["prediction"],
                "scores": ", ".join(
                    [
                        *(f"{name} {value:.4g}" for name, value in one["scores"].items()),
                        f"log-probability {one['log_probability']:.3g}",
                    ]
                ),
                "mark": mark,
            }
            for one, mark in chosen
        ],
    }


def _pieces_of_text(task: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def nats(one: Mapping[str, Any]) -> float:
        return -float(one["target_log_probability"]) / max(1, int(one["target_tokens"]))

    ordered = sorted(records, key=nats)
    shown = [*ordered[:_TEXTS_SHOWN], *ordered[_TEXTS_SHOWN:][-_TEXTS_SHOWN:]]
    return {
        "name": task,
        "count": f"{len(records)} pieces of held-out text: the best and the worst known",
        "shown": [
            {
                "inputs": one["inputs"],
                "targets": one["targets"],
                "prediction": None,
                "scores": f"{nats(one):.3g} nats per token, {one['target_tokens']} tokens",
                "mark": "",
            }
            for one in shown
        ],
    }


def is_right(record: Mapping[str, Any]) -> bool:
    """Whether a kept answer is right: by its first score where it has one, otherwise by its text."""
    if record["scores"]:
        return float(next(iter(record["scores"].values()))) >= _FULL
    return bool(record["prediction"] == record["targets"])


def _stream(run: Run) -> StreamSpec | None:
    path = run.path / "stream.json"
    return StreamSpec.from_dict(json.loads(path.read_text())) if path.is_file() else None


def _model_line(config: Config) -> str:
    try:
        weights = Planned.of(config).weights
    except ConfigError:
        return "a model"
    elements = weights.trained_elements + weights.frozen_elements
    size = f"{elements / 1e9:.2f} B" if elements >= 1e9 else f"{elements / 1e6:.1f} M"
    training = config.training
    return (
        f"{config.model.architecture or 'encoder_decoder'} of {size} parameters in {training.precision}, "
        f"{config.optimizer.name}, ZeRO stage {training.zero_stage}, {config.executor.workers} worker(s)"
    )


def _numbers(
    config: Config, found: Sequence[CheckpointScores], points: Sequence[TrainPoint], spending: Spending
) -> Iterator[tuple[str, str]]:
    """The large numbers at the top, each with what it is."""
    step = points[-1].step if points else 0
    yield f"{step:,}", f"of {config.training.steps:,} steps"
    best = best_on_average(found)
    if best is not None and best.average is not None:
        yield f"{best.average:.4g}", f"best average, at step {best.step:,}"
    if points:
        yield f"{points[-1].metrics['loss']:.3g}", "last training loss"
    yield f"{spending.target_tokens:,}", "target tokens trained on"
    yield duration(spending.wall_s), "of work"


def _metric_of(found: Sequence[CheckpointScores], task: str) -> str:
    return next(one.results[task].metric for one in found if task in one.results)


def _result_row(
    run: Run, one: CheckpointScores, found: Sequence[CheckpointScores], tasks: Sequence[str], kept: set[int]
) -> dict[str, Any]:
    best = best_for(found).get(one.step, ())
    return {
        "name": f"{run.name}@{one.step}",
        "average": one.average,
        "best_average": AVERAGE in best,
        "cells": [
            {"value": one.value(task), "interval": _interval(one.results.get(task)), "best": task in best}
            for task in tasks
        ],
        "files": "kept" if one.step in kept else "deleted",
    }


def _interval(result: EvaluationResult | None) -> str:
    if result is None or result.low is None or result.high is None:
        return ""
    return bounds_shown(result.low, result.high)


def _metric_curves(found: Sequence[CheckpointScores], tasks: Sequence[str]) -> Iterator[str]:
    """The headline metrics over the steps: those up to 100 in one picture, each other one in its own."""
    ordered = sorted(found, key=lambda one: one.step)
    if len(ordered) < 2:
        return
    curves: dict[str, dict[str, Curve]] = {}
    for task in tasks:
        measured = [one for one in ordered if task in one.results]
        metric = measured[0].results[task]
        group = "validation metrics" if metric.higher_is_better else f"{task}: {metric.metric}"
        name = f"{task} {metric.metric}"
        curves.setdefault(group, {})[name] = (
            [one.step for one in measured],
            [one.results[task].value for one in measured],
        )
    for group, ones in curves.items():
        yield as_svg(ones, "", group)


def _step_curves(records: Sequence[Record]) -> Iterator[str]:
    for name, what in (("learning_rate", "learning rate"), ("step_s", "seconds a step"), ("mfu", "MFU")):
        curve = curve_of(records, name)
        if curve[0]:
            yield as_svg({name: curve}, "", what)


def _cost(spending: Spending, price: float | None) -> list[dict[str, Any]]:
    hours = spending.wall_s * spending.workers / 3600
    rows = [
        ("work, all attempts", duration(spending.wall_s)),
        ("attempts", f"{spending.attempts}"),
        ("worker hours", f"{hours:,.2f} of {spending.workers} worker(s)"),
        ("steps", f"{spending.steps:,}" + _again(spending)),
        ("in steps", _share(spending.steps_s, spending.wall_s)),
        ("of these, waiting for data", _share(spending.waited_s, spending.steps_s)),
        ("standing still to save", _share(spending.saved_s, spending.wall_s)),
        ("evaluation", _share(spending.evaluated_s, spending.wall_s)),
        ("input tokens", f"{spending.input_tokens:,}"),
        ("target tokens", f"{spending.target_tokens:,}"),
    ]
    if price is not None:
        rows.append(("money", f"{hours * price:,.2f} at {price:g} for an hour of a worker"))
    return [{"what": what, "how much": value} for what, value in rows]


def _again(spending: Spending) -> str:
    return f", {spending.steps_done_again:,} done again after restarts" if spending.steps_done_again else ""


def _share(part: float, whole: float) -> str:
    return duration(part) + (f", {part / whole:.1%}" if whole else "")


def _events(records: Iterable[Record]) -> Iterator[dict[str, str]]:
    """What happened, without steps and results."""
    for record in records:
        match record:
            case RunStarted():
                text = f"attempt {record.attempt} began"
            case RunFinished():
                text = f"the attempt ended: {record.status}. {record.message}".strip()
            case CheckpointCommitted():
                text = f"checkpoint of step {record.step}"
            case EvaluationSkipped():
                text = f"checkpoint of step {record.step} is not evaluated: {record.reason}"
            case Note():
                text = record.text
            case _:
                continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.time_s))
        yield {"when (UTC)": when, "what": text}
