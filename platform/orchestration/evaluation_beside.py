"""Evaluation beside training: each checkpoint as soon as it is committed, on resources of its own.

Who waits is not written down anywhere: a checkpoint waits if it is listed, and the run's events know neither results
of it nor why it was skipped. So a run that was killed goes on with those that waited, and retention leaves them alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from mixtura.platform.orchestration.evaluate import evaluation_events
from mixtura.platform.orchestration.evaluation_job import EvaluationJob
from mixtura.platform.orchestration.helper_thread import HelperThread
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.tracking.records import EvaluationSkipped, EventReader, EventWriter
from mixtura.platform.tracking.selection import settled_steps
from mixtura.platform.training.checkpoint import MANIFEST, CheckpointInfo, list_checkpoints
from mixtura.platform.workspace import Run

_EVERY_S = 0.5
_PATIENCE_S = 2.0


class EvaluationBeside(HelperThread):
    """Evaluates checkpoints of a run while it trains, the oldest first; `waiting` of them may wait, and of more the
    oldest is skipped.

    Leaving the context abandons what is under way; after `finish` nothing is.
    """

    def __init__(
        self,
        run: Run,
        jobs: Sequence[EvaluationJob],
        evaluate: Callable[[Sequence[EvaluationJob]], list[dict[str, Any]]],
        waiting: int,
        reporter: Reporter,
    ) -> None:
        super().__init__(run, "evaluation", _EVERY_S)
        self.jobs, self.waiting, self.reporter = jobs, waiting, reporter
        self._evaluate = evaluate
        self._events = EventReader(run.events)
        self._settled: set[int] = set()
        self._finishing = self._abandoned = False

    def look(self) -> None:
        """Evaluate the oldest checkpoint that waits, if any does."""
        if not (infos := self._waiting_infos()):
            return
        if not self._finishing:
            for info in infos[: -self.waiting]:
                self._skip(info, f"more than {self.waiting} checkpoints waited (evaluation.waiting)")
            infos = infos[-self.waiting :]
        info = infos[0]
        try:
            evaluation_events(self.run.path, info.path, info.step, self.jobs, self._evaluate)
        except Exception as error:  # noqa: BLE001  training goes on; the checkpoint is named
            if self._abandoned:
                return  # its evaluators ended with the executor
            gone = not (info.path / MANIFEST).is_file()
            self._skip(info, "its files are gone" if gone else f"{type(error).__name__}: {error}")
        self._settled.add(info.step)

    def finish(self) -> None:
        """Evaluate all that wait, now that training is over and makes no more."""
        if infos := self._waiting_infos():
            steps = ", ".join(str(info.step) for info in infos)
            self.reporter.line(f"training is over; checkpoints that wait for evaluation: {steps}")
        self._finishing = True
        self._over.set()
        self._thread.join()
        while self._waiting_infos():
            self.look()

    def _waiting_infos(self) -> list[CheckpointInfo]:
        self._settled |= settled_steps(self._events.read())
        return [info for info in list_checkpoints(self.run.checkpoints) if info.step not in self._settled]

    def _skip(self, info: CheckpointInfo, reason: str) -> None:
        path = self.run.events / f"evaluate-{info.step:06d}-skipped-{time.time_ns()}.jsonl"
        with EventWriter(path) as events:
            events.write(EvaluationSkipped(info.step, reason))
        self._settled.add(info.step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._abandoned = True
        self._over.set()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            self.reporter.line("a checkpoint is still being evaluated: it waits for the next attempt")
        else:
            super().__exit__(kind, error, traceback)
