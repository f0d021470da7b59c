"""A tracker takes what a run reports to a place where people look at it; the tailer feeds it while the run goes on.

Workers, evaluators and trials write JSON lines. One process per run, the driver, follows them, so that a store with
one writer (SQLite) is enough, and a tracking server that is away for an hour loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from mixtura.platform.errors import MixturaError
from mixtura.platform.tracking.records import EventReader, Record


class Tracker(Protocol):
    """Where records go."""

    def positions(self) -> Mapping[str, int]:
        """How far the events were taken: bytes by file name. Empty for a run that the tracker does not know."""
        ...

    def log(self, records: Sequence[Record], positions: Mapping[str, int]) -> None:
        """Take records over and remember the positions after them. Taking a record twice changes nothing."""
        ...


AnyTracker = TypeVar("AnyTracker", bound=Tracker)


class Tailer(Generic[AnyTracker]):
    """Follows a run's events in the background and hands them to a tracker. Use as a context manager.

    The tracker is made in the background too, since connecting takes seconds. If the store fails, records wait on
    disk and the next round tries again; leaving the context does a last round, whose failure is raised.

        with Tailer(run.events, lambda: MlflowTracker(...)):
            train()
    """

    def __init__(self, folder: Path, make_tracker: Callable[[], AnyTracker], interval_s: float = 5.0) -> None:
        self.folder, self.interval_s = folder, interval_s
        self.tracker: AnyTracker | None = None
        self.last_error: Exception | None = None
        self._make_tracker = make_tracker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def pump(self) -> int:
        """Hand over what is new; returns the number of records."""
        if self.tracker is None:
            self.tracker = self._make_tracker()
        reader = EventReader(self.folder, self.tracker.positions())
        records = reader.read()
        if records:
            self.tracker.log(records, reader.positions)
        return len(records)

    def _follow(self) -> None:
        while not self._stop.wait(self.interval_s):
            try:
                self.pump()
            except Exception as error:  # noqa: BLE001  training goes on without its store; the last round raises
                self.last_error = error
            else:
                self.last_error = None

    def __enter__(self) -> Tailer[AnyTracker]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.pump()
        except Exception as failure:
            # What ended the run is more important than that its last numbers wait on disk for the next attempt.
            if error is None:
                raise MixturaError(
                    f"the tracking store did not take the last records of {self.folder} ({failure}); "
                    "they are safe on disk: run the same command again to send them"
                ) from failure
