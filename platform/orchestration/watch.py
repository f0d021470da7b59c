"""The driver's eye on a run: reads the events that workers and evaluators write, and shows them to a person."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

from mixtura.platform.orchestration.helper_thread import HelperThread
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
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
            for record in self._events.read():
                self._show(record)

    def _show(self, record: Record) -> None:
        match record:
            case TrainPoint():
                self._show_step(record)
            case CheckpointCommitted():
                self.reporter.line(f"checkpoint of step {record.step}: {record.path}")
            case EvaluationResult():
                interval = "" if record.low is None else f" ({record.low:.1f} to {record.high:.1f})"
                value = f"{record.value:.1f}{interval}"
                where = f"{record.split}, step {record.step}, {record.examples} rows"
                self.reporter.line(
                    f"  {record.task} {record.metric} {value}, {where}; evaluation took {record.seconds:.1f} s"
                )
            case Note():
                self.reporter.line(record.text)

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
