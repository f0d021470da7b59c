"""A tracker takes what a run reports to a place where people look at it; the tailer feeds it while the run goes on.

Workers, evaluators and trials write JSON lines. One process per run, the driver, follows them, so that a store with
one writer (SQLite) is enough, and a tracking server that is away for an hour loses nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from mixtura.platform.errors import MixturaError, first_line
from mixtura.platform.tracking.records import EventReader, Record

_NICENESS = 10
"""Nothing waits for what is sent, so that whoever trains goes first."""


class Tracker(Protocol):
    """Where records go."""

    def positions(self) -> Mapping[str, int]:
        """How far the events were taken: bytes by file name. Empty for a run that the tracker does not know."""
        ...

    def log(self, records: Sequence[Record], positions: Mapping[str, int]) -> None:
        """Take records over and remember the positions after them. Taking a record twice changes nothing."""
        ...


AnyTracker = TypeVar("AnyTracker", bound=Tracker)


class Sender(ABC):
    """Hands over what is new in the background, every so often, while its context lasts.

    If the store fails, the work goes on and records wait on disk until it is back: `say` is told once that it is away,
    and once that it is back. Leaving the context does a last round, whose failure is raised.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], interval_s: float) -> None:
        self.folder, self.interval_s = folder, interval_s
        self._say, self._away = say, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    @abstractmethod
    def pump(self) -> object:
        """Hand over what is new."""

    def _follow(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # only Linux has priorities of threads
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._stop.wait(self.interval_s):
            try:
                self.pump()
            except Exception as error:  # noqa: BLE001  the work goes on without its store; the last round raises
                self._note(error)
            else:
                self._note(None)

    def _note(self, error: Exception | None) -> None:
        """Say what changed: what failed is tried again in every round, so that a round that works has sent it."""
        if error is not None and not self._away:
            self._say(
                f"{first_line(error)}. The work goes on: what is reported waits on disk, and is sent when the tracking "
                "store takes it again"
            )
        if error is None and self._away:
            self._say("the tracking store is back, and has all that was reported")
        self._away = error is not None

    def __enter__(self) -> Self:
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
                    f"{first_line(failure)}. The last records of {self.folder} are safe on disk: "
                    "run the same command again to send them"
                ) from failure
        else:
            self._note(None)


class Tailer(Sender, Generic[AnyTracker]):
    """Follows a run's events and hands them to a tracker.

    The tracker is made in the background too, since connecting takes seconds.

        with Tailer(run.events, lambda: MlflowTracker(...), print):
            train()
    """

    def __init__(
        self,
        folder: Path,
        make_tracker: Callable[[], AnyTracker],
        say: Callable[[str], None] = lambda _: None,
        interval_s: float = 5.0,
    ) -> None:
        super().__init__(folder, say, interval_s)
        self.tracker: AnyTracker | None = None
        self._make_tracker = make_tracker

    def pump(self) -> int:
        """Hand over what is new; returns the number of records."""
        if self.tracker is None:
            self.tracker = self._make_tracker()
        reader = EventReader(self.folder, self.tracker.positions())
        records = reader.read()
        if records:
            self.tracker.log(records, reader.positions)
        return len(records)
