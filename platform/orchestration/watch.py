"""The driver's eye on a run: reads the events that workers and evaluators write, and shows them to a person."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from types import TracebackType

from mixtura.platform.evaluation.intervals import bounds_shown
from mixtura.platform.orchestration.helper_thread import HelperThread
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.tracking.records import (
    LOSS,
    CheckpointCommitted,
    EvaluationResult,
    EvaluationSkipped,
    EventReader,
    Note,
    Record,
    TrainPoint,
)
from mixtura.platform.workspace import Run

_EVERY_S = 0.5
_RECENT_STEPS = 20


class Watcher(HelperThread):
    """Follows a run's events from now on, and reports them."""

    def __init__(self, run: Run, steps: int, reporter: Reporter) -> None:
        super().__init__(run, "watcher", _EVERY_S)
        self.steps, self.reporter = steps, reporter
        self._events = EventReader(run.events)
        self._events.read()
        self._looking = threading.Lock()
        self._waited_s = self._stepped_s = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT_STEPS)

    def look(self) -> None:
        """Show what was written until now."""
        with self._looking:
            for _, same in groupby(self._events.read(), key=_subject):
                first, *more = same
                if isinstance(first, EvaluationResult):
                    self._show_results([first, *(one for one in more if isinstance(one, EvaluationResult))])
                else:
                    for record in (first, *more):
                        self._show(record)

    def _show(self, record: Record) -> None:
        match record:
            case TrainPoint():
                self._show_step(record)
            case CheckpointCommitted():
                self.reporter.line(f"checkpoint of step {record.step}: {record.path}")
            case EvaluationSkipped():
                self.reporter.line(f"checkpoint of step {record.step} is not evaluated: {record.reason}")
            case Note():
                self.reporter.line(record.text)

    def _show_results(self, results: Sequence[EvaluationResult]) -> None:
        """All of a checkpoint on one split of one task in one line."""
        first = results[0]
        values = ", ".join(f"{one.metric} {_with_interval(one)}" for one in results)
        where = f"{first.split}, step {first.step}, {first.examples} rows"
        self.reporter.line(f"  {first.task} {values}; {where}; evaluation took {first.seconds:.1f} s")

    def _show_step(self, point: TrainPoint) -> None:
        metrics = point.metrics
        self._waited_s += metrics["data_wait_s"]
        self._stepped_s += metrics["step_s"]
        self._recent.append((metrics["step_s"], metrics["target_tokens"]))
        seconds, tokens = (sum(column) for column in zip(*self._recent, strict=True))
        detail = (
            f"loss {metrics['loss']:.3f}  {len(self._recent) / seconds:.1f} steps/s  "
            f"{tokens / seconds:,.0f} target tokens/s  "
            f"data wait {self._waited_s / self._stepped_s:.1%}"
        )
        self.reporter.progress("train", point.step, self.steps, detail)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        self.look()


def _subject(record: Record) -> object:
    """What is told together: the results on one split of one task."""
    return (record.step, record.task, record.split) if isinstance(record, EvaluationResult) else record.kind


def _with_interval(result: EvaluationResult) -> str:
    value = f"{result.value:.1f}" if result.value >= 10 else f"{result.value:.3g}"
    if result.low is None or result.high is None or result.metric == LOSS:
        return value
    return f"{value} ({bounds_shown(result.low, result.high)})"
