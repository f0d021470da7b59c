"""Averages as the benchmarks define them: tasks with two metrics average those first, then every task counts the same.

GLUE (Wang et al. 2018) without WNLI, whose validation set is made to mislead and which T5 is not judged on there; and
SuperGLUE (Wang et al. 2019). An average over fewer tasks than a benchmark has is no number of that benchmark, so it is
never shown without the tasks that are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Score = tuple[str, str]
"""A task and one of its metrics, by their names."""


@dataclass(frozen=True)
class Part:
    """What counts as one in an average: the mean of one or more scores."""

    name: str
    scores: tuple[Score, ...]


def _part(task: str, *metrics: str) -> Part:
    return Part(task, tuple((task, metric) for metric in metrics or ("accuracy",)))


@dataclass(frozen=True)
class Benchmark:
    """A named collection of tasks and how its average is made."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Average:
    """A benchmark's average, from what there was."""

    benchmark: str
    value: float | None
    """Mean of `parts`, unrounded; None where there are none."""
    parts: Mapping[str, float]
    """The tasks that count, with their scores."""
    missing: tuple[str, ...]
    """The tasks that do not, or the half of one that is missing."""
    undefined: tuple[str, ...] = ()
    """The tasks with a score that is NaN, which counts as 0."""

    @property
    def complete(self) -> bool:
        """Whether this is the benchmark's number."""
        return not self.missing

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.benchmark} - (none of {len(self.missing)} tasks)"
        notes = [f"{len(self.parts)} of {len(self.parts) + len(self.missing)}"]
        if self.missing:
            notes.append(f"missing: {', '.join(self.missing)}")
        if self.undefined:
            notes.append(f"undefined, counted as 0: {', '.join(self.undefined)}")
        return f"{self.benchmark} {self.value:.1f} ({'; '.join(notes)})"


GLUE = Benchmark(
    "GLUE",
    (
        _part("glue_cola", "matthews_corrcoef"),
        _part("glue_sst2"),
        _part("glue_mrpc", "f1", "accuracy"),
        _part("glue_stsb", "pearson_corrcoef", "spearman_corrcoef"),
        _part("glue_qqp", "f1", "accuracy"),
        Part("glue_mnli", (("glue_mnli_matched", "accuracy"), ("glue_mnli_mismatched", "accuracy"))),
        _part("glue_qnli"),
        _part("glue_rte"),
    ),
)
SUPER_GLUE = Benchmark(
    "SuperGLUE",
    (
        _part("super_glue_boolq"),
        _part("super_glue_cb", "mean_3class_f1", "accuracy"),
        _part("super_glue_copa"),
        _part("super_glue_multirc", "f1", "exact_match"),
        _part("super_glue_record", "em", "f1"),
        _part("super_glue_rte"),
        _part("super_glue_wic"),
        _part("super_glue_wsc"),
    ),
)
BENCHMARKS = (GLUE, SUPER_GLUE)


def average(benchmark: Benchmark, results: Mapping[Score, float]) -> Average:
    """The average of a benchmark over those of its tasks that `results` has whole.

    A task of two scores with one of them missing is missing: half of it is another, mostly easier, number. A score of
    NaN (the correlation of a model that always answers the same) counts as 0, which is what such answers are worth;
    otherwise one such task early in training would hide all the others.

    >>> halves = Benchmark("Two", (Part("a", (("a", "f1"), ("a", "em"))), Part("b", (("b", "em"),))))
    >>> str(average(halves, {("a", "f1"): 80.0, ("a", "em"): 70.0, ("b", "em"): 50.06}))
    'Two 62.5 (2 of 2)'
    >>> str(average(halves, {("a", "f1"): 80.0, ("b", "em"): 50.06}))
    'Two 50.1 (1 of 2; missing: a em)'
    """
    parts: dict[str, float] = {}
    missing: list[str] = []
    undefined: list[str] = []
    for part in benchmark.parts:
        lacking = [score for score in part.scores if score not in results]
        if lacking:
            missing.append(_named(part, lacking))
            continue
        values = [results[score] for score in part.scores]
        if any(map(math.isnan, values)):
            undefined.append(part.name)
        parts[part.name] = math.fsum(0.0 if math.isnan(value) else value for value in values) / len(values)
    value = math.fsum(parts.values()) / len(parts) if parts else None
    return Average(benchmark.name, value, parts, tuple(missing), tuple(undefined))


def averages(results: Mapping[Score, float]) -> list[Average]:
    """Those of all benchmarks of which there is at least one score."""
    scored = [
        benchmark
        for benchmark in BENCHMARKS
        if any(score in results for part in benchmark.parts for score in part.scores)
    ]
    return [average(benchmark, results) for benchmark in scored]


def _named(part: Part, lacking: list[Score]) -> str:
    """The task alone where nothing of it is there, otherwise what exactly is not."""
    if len(lacking) == len(part.scores):
        return part.name
    return " and ".join(f"{task} {metric}" if task == part.name else task for task, metric in lacking)
