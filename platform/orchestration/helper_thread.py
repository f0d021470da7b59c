"""Work that goes on beside a run's training, on a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from mixtura.platform.errors import TrainingError
from mixtura.platform.workspace import Run


class HelperThread(ABC):
    """Looks at something every so often while its context lasts.

    If that fails, nobody would notice that it is not done any more: the run is asked to save and end, and leaving the
    context raises TrainingError with the reason.
    """

    def __init__(self, run: Run, name: str, every_s: float) -> None:
        self.run = run
        self._name, self._every_s = name, every_s
        self._over = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """What is done each time."""

    def _follow(self) -> None:
        try:
            while not self._over.wait(self._every_s):
                self.look()
        except Exception as error:  # noqa: BLE001  raised when the context is left
            self._error = error
            with contextlib.suppress(OSError):
                self.run.ask_to_stop(self._reason(error))

    def _reason(self, error: Exception) -> str:
        return f"the thread {self._name!r}, which works beside training, failed: {type(error).__name__}: {error}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise TrainingError(
                f"{self._reason(self._error)}. Everything committed is kept, and the same command goes on from there"
            ) from self._error
