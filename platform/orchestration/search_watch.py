"""The driver's eye on a search: reads what trials write in their folders, shows it, and sends it to MLflow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from mixtura.platform.config import Config
from mixtura.platform.orchestration.helper_thread import HelperThread
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.track import tracker_of
from mixtura.platform.orchestration.trial import trial_config
from mixtura.platform.search.trials import TrialFolder, TrialResult, trial_folders
from mixtura.platform.tracking.mlflow_tracker import MlflowTracker
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
    EventReader,
    Record,
    TrainPoint,
)
from mixtura.platform.tracking.tracker import Sender, Tailer
from mixtura.platform.workspace import Run, Workspace

_LOOK_EVERY_S = 0.5
_SEND_EVERY_S = 5.0


class SearchWatch(HelperThread):
    """Follows the trials of a search on a thread of its own: progress in steps, a call for each that ends.

    A search that was asked to stop hands the wish on to the trials that run, which save and end after their step.
    """

    def __init__(
        self,
        run: Run,
        planned: int,
        done: int,
        steps: int,
        reporter: Reporter,
        on_result: Callable[[TrialResult], None],
        on_failure: Callable[[str, str], None],
    ) -> None:
        super().__init__(run, "search-watch", _LOOK_EVERY_S)
        self.root = run.path / "trials"
        self.planned, self.done, self.steps = planned, done, steps
        self.reporter, self._on_result, self._on_failure = reporter, on_result, on_failure
        self._before = {folder.path: _begun_at(folder) for folder in trial_folders(self.root)}
        self._finished = {folder.path for folder in trial_folders(self.root) if folder.result() is not None}
        self._events: dict[Path, EventReader] = {}
        self._at: dict[Path, int] = {}
        self._shown: tuple[int, int, int] | None = None
        self._looking = threading.Lock()

    def look(self) -> None:
        """Show what was written until now."""
        with self._looking:
            running = [folder for folder in self._begun() if not self._settled(folder)]
            for folder in running:
                self._follow_steps(folder)
                if self.run.stop_sign.exists():
                    (folder.path / "stop").touch()
            at = sum(self._at[folder.path] for folder in running)
            if self._shown == (shown := (self.done, at, len(running))):
                return
            self._shown = shown
            detail = f"steps; {self.done} of {self.planned} trials done, {len(running)} running"
            self.reporter.progress("search", self.done * self.steps + at, self.planned * self.steps, detail)

    def _begun(self) -> Iterator[TrialFolder]:
        """Trials of this attempt that were not over when they were last looked at."""
        for folder in trial_folders(self.root):
            if folder.path not in self._finished and _begun_at(folder) != self._before.get(folder.path):
                yield folder

    def _settled(self, folder: TrialFolder) -> bool:
        result, failure = folder.result(), folder.failure()
        if result is None and failure is None:
            return False
        if result is not None:
            self._finished.add(folder.path)
            self.done += 1
            self._on_result(result)
        else:
            self._before[folder.path] = _begun_at(folder)
            trial = folder.trial()
            self._on_failure(trial.label if trial else folder.path.name, failure or "")
        return True

    def _follow_steps(self, folder: TrialFolder) -> None:
        reader = self._events.setdefault(folder.path, EventReader(folder.path / "events"))
        self._at.setdefault(folder.path, 0)
        for record in reader.read():
            if isinstance(record, TrainPoint):
                self._at[folder.path] = min(record.step, self.steps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
            self.look()
        finally:
            self.reporter.settle()


def _begun_at(folder: TrialFolder) -> int:
    return (folder.path / "trial.json").stat().st_mtime_ns


class SearchTracking(Sender):
    """Sends a search and its trials to MLflow from one thread: the search is a run, each trial a run nested in it."""

    def __init__(self, space: Workspace, run: Run, config: Config, say: Callable[[str], None]) -> None:
        super().__init__(run.events, say, _SEND_EVERY_S)
        self.space, self.run, self.config = space, run, config
        self._search = Tailer(run.events, lambda: tracker_of(space, run, config))
        self._trials: dict[Path, Tailer[TrialTracker]] = {}
        self._sent: set[Path] = set()

    def pump(self) -> None:
        """Hand over what is new."""
        self._search.pump()
        if self._search.tracker is None or not self._search.tracker.run_id:
            return
        for folder in trial_folders(self.run.path / "trials"):
            if folder.path in self._sent:
                continue
            is_over = folder.result() is not None
            self._tailer(folder, self._search.tracker.run_id).pump()
            if is_over:
                self._sent.add(folder.path)
                self._trials.pop(folder.path)

    def _tailer(self, folder: TrialFolder, parent: str) -> Tailer[TrialTracker]:
        def tracker() -> TrialTracker:
            trial = folder.trial()
            config = self.config if trial is None else trial_config(self.config, trial)
            inner = tracker_of(self.space, Run(folder.path), config, parent)
            return TrialTracker(inner, config.tracking.log_every, config.training.steps)

        return self._trials.setdefault(folder.path, Tailer(folder.path / "events", tracker))


class TrialTracker:
    """A trial in MLflow: curves and results as plain metrics. Its checkpoint is not kept, so nothing can be picked."""

    def __init__(self, inner: MlflowTracker, log_every: int, steps: int) -> None:
        self.inner, self.log_every, self.steps = inner, log_every, steps

    def positions(self) -> Mapping[str, int]:
        """How far the events were taken."""
        return self.inner.positions()

    def log(self, records: Sequence[Record], positions: Mapping[str, int]) -> None:
        """Take records over, without the checkpoint and with some of the steps."""
        self.inner.log([kept for record in records if (kept := self._kept(record)) is not None], positions)

    def _kept(self, record: Record) -> Record | None:
        match record:
            case CheckpointCommitted():
                return None
            case EvaluationResult():
                name = f"{record.split}/{record.task}/{record.metric}"
                return TrainPoint(record.step, {name: record.value}, time_s=record.time_s)
            case TrainPoint() if record.step % self.log_every and record.step not in (1, self.steps):
                return None
        return record
