"""Runs side by side: how their settings differ, how good they became, and which differences are larger than noise.

Two checkpoints that answered the same examples are compared pair by pair: each resample of the bootstrap has the same
examples of both, so that what makes an example hard for both does not count as noise. Where the examples differ, each
is resampled by itself, which says less.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.platform import config as configuration
from mixtura.platform.config import Config
from mixtura.platform.data.task import Metric
from mixtura.platform.errors import RequestError
from mixtura.platform.evaluation.evaluator import read_answers
from mixtura.platform.evaluation.intervals import Interval, bootstrap_difference, bounds_shown, independent_difference
from mixtura.platform.evaluation.losses import bits_per_byte, loss, perplexity
from mixtura.platform.orchestration.report import mixture_rows
from mixtura.platform.orchestration.result import FINAL_SPLITS
from mixtura.platform.orchestration.select import best_checkpoint, run_and_checkpoint
from mixtura.platform.orchestration.tasks import tasks_of
from mixtura.platform.tracking.html import write_page
from mixtura.platform.tracking.plot import LOSS_AXIS, as_svg, curve_of
from mixtura.platform.tracking.records import EvaluationResult, Record, TrainPoint, read_events
from mixtura.platform.workspace import Run, Workspace

_NOT_COMPARED = ("run.name", "run.root")
_UNPAIRED = "other examples: not paired"
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Side:
    """A checkpoint of a run, with all that is known of it."""

    run: Run
    step: int
    records: Sequence[Record]
    config: Config

    @property
    def name(self) -> str:
        """As it can be given again."""
        return f"{self.run.name}@{self.step}"

    def results(self) -> dict[tuple[str, str, str], EvaluationResult]:
        """The newest by task, split and metric."""
        return {
            (one.task, one.split, one.metric): one
            for one in self.records
            if isinstance(one, EvaluationResult) and one.step == self.step
        }

    def answers(self, task: str, split: str) -> list[dict[str, Any]] | None:
        """What it answered, if that is kept."""
        path = self.run.predictions / f"step-{self.step:06d}" / f"{task}.{split}.jsonl"
        return read_answers(path) if path.is_file() else None


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between the first and the others."""

    sides: Sequence[Side]
    results: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    mixture: list[dict[str, Any]]

    def notes(self) -> list[str]:
        """What a reader of the results should know."""
        if not self.results:
            return ["no task was measured on both: `mixtura evaluate` measures what is missing"]
        compared = sum(row["difference"] is not None for row in self.results)
        lines = ["difference: to the first one, with its 95 % bootstrap interval over examples"]
        if compared > 1:
            by_chance = max(1, round(compared * 0.05))
            lines.append(
                f"of {compared} comparisons about {by_chance} would look larger than noise by chance; the choice of "
                "examples is all that is resampled, not the seeds of training"
            )
        if any(_UNPAIRED in row["verdict"] for row in self.results):
            lines.append("where the examples differ, the two were resampled independently, which says less")
        if any(row["verdict"] == _UNKNOWN for row in self.results):
            lines.append("unknown: too little of the answers is kept to judge them again; `mixtura evaluate` does that")
        return lines


def compare(space: Workspace, names: Sequence[str]) -> Comparison:
    """Compare checkpoints of runs; of a run's name alone its best one on average."""
    if len(names) < 2:
        raise RequestError(f"compare takes two runs or more, for example: mixtura compare {names[0]} OTHER")
    sides = [_side(space, name) for name in names]
    if len({side.name for side in sides}) < len(sides):
        raise RequestError(f"{', '.join(side.name for side in sides)}: the same checkpoint is given twice")
    first, *others = sides
    return Comparison(
        sides,
        [row for other in others for row in _results(first, other)],
        _settings(sides),
        _mixtures(sides),
    )


def write_comparison(comparison: Comparison, path: Path) -> None:
    """The same as a page that opens offline."""
    names = [side.name for side in comparison.sides]
    losses = {side.run.name: curve_of(side.records, "loss") for side in comparison.sides}
    values = {
        "title": " and ".join(names) if len(names) == 2 else ", ".join(names),
        "what": "; ".join(f"{side.name}: recipe {side.run.facts().get('recipe', '')}" for side in comparison.sides),
        "reading": comparison.notes()[0],
        "notes": comparison.notes()[1:],
        "first": names[0],
        "results": [{**row, "first": row[names[0]]} for row in comparison.results],
        "settings": comparison.settings,
        "mixture": comparison.mixture,
        "loss_curve": as_svg({name: one for name, one in losses.items() if one[0]}, "", LOSS_AXIS, smooth=True),
        "made": f"Made by Mixtura on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
    }
    write_page("compare.html", values, path)


def _side(space: Workspace, name: str) -> Side:
    run, info = run_and_checkpoint(space, name)
    step = best_checkpoint(run).step if info is None else info.step
    side = Side(run, step, read_events(run.events), run.config())
    if not side.results():
        raise RequestError(
            f"{side.name} was not evaluated: run `mixtura evaluate {side.name}` first, or name another checkpoint"
        )
    return side


def _results(first: Side, other: Side) -> Iterator[dict[str, Any]]:
    """A row for each task, split and metric that both were measured by."""
    ours, theirs = first.results(), other.results()
    metrics = _metrics(first.config) | _metrics(other.config)
    for key in [key for key in ours if key in theirs]:
        task, split, metric = key
        interval, paired = _difference(first, other, task, split, metrics.get((task, metric)))
        yield {
            "task": task,
            "split": FINAL_SPLITS.get(split, split) + (" (whole)" if split in FINAL_SPLITS else ""),
            "metric": metric,
            "of": other.name,
            "value": theirs[key].value,
            first.name: ours[key].value,
            "difference": None if interval is None else interval.value,
            "95 % interval": None if interval is None else bounds_shown(interval.low, interval.high),
            "verdict": _verdict(interval, higher_is_better=ours[key].higher_is_better)
            + ("" if paired or interval is None else f" ({_UNPAIRED})"),
        }


def _metrics(config: Config) -> dict[tuple[str, str], Metric]:
    of_tasks = {(name, metric.name): metric for name, task in tasks_of(config).items() for metric in task.metrics}
    losses: Sequence[Metric] = (loss, perplexity, bits_per_byte)
    return of_tasks | {(name, metric.name): metric for name in tasks_of(config) for metric in losses}


def _difference(first: Side, other: Side, task: str, split: str, metric: Metric | None) -> tuple[Interval | None, bool]:
    """How much better the other one is, and whether that was found pair by pair; None where answers are not kept."""
    answers = [side.answers(task, split) for side in (other, first)]
    theirs, ours = answers
    if metric is None or theirs is None or ours is None:
        return None, False
    given = [_as_metric_takes_them(metric, one) for one in (theirs, ours)]
    if given[0] is None or given[1] is None:
        return None, False
    if _asked(theirs) == _asked(ours):
        return bootstrap_difference(metric, given[0][0], given[1][0], given[0][1]), True
    return independent_difference(metric, given[0], given[1]), False


def _asked(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(one["inputs"], one["targets"]) for one in records]


def _as_metric_takes_them(metric: Metric, records: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]] | None:
    """Predictions and targets of kept answers; None where too little was kept of them to judge them again."""
    names = ("answer", "right_answer")
    if metric in (loss, perplexity, bits_per_byte):
        size = "target_bytes" if metric is bits_per_byte else "target_tokens"
        names = ("target_log_probability", size)
    if not all(name in one for name in names for one in records):
        return None
    predictions, targets = ([one[name] for one in records] for name in names)
    return ([-value for value in predictions] if names[0] == "target_log_probability" else predictions), targets


def _verdict(interval: Interval | None, *, higher_is_better: bool) -> str:
    if interval is None:
        return _UNKNOWN
    if math.isnan(interval.low) or interval.low <= 0 <= interval.high:
        return "within noise"
    return "better" if (interval.value > 0) == higher_is_better else "worse"


def _settings(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """The settings in which any differs from the first."""
    first, *others = sides
    paths: dict[str, dict[str, Any]] = {}
    for other in others:
        for path, _, was, now in configuration.changes(first.config, other.config):
            if path not in _NOT_COMPARED:
                paths.setdefault(path, {first.name: was})[other.name] = now
    return [
        {"setting": path, **{side.name: _plain(values.get(side.name, values[first.name])) for side in sides}}
        for path, values in sorted(paths.items())
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _mixtures(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """What share of the examples each task had, by the time of the compared checkpoint."""
    shares = []
    for side in sides:
        points = [one for one in side.records if isinstance(one, TrainPoint) and one.step <= side.step]
        shares.append({row["task"]: row["drawn"] for row in mixture_rows(side.run, points)})
    tasks = dict.fromkeys(task for one in shares for task in one)
    return [
        {
            "task": task,
            **{side.name: f"{of.get(task, 0.0):.2%}" for side, of in zip(sides, shares, strict=True)},
        }
        for task in tasks
    ]
