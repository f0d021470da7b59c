"""Long work on a terminal: a bar with rate and time left, or plain lines every few seconds without a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mixtura.platform.cli.output import console, print_lines, print_table

_PLAIN_EVERY_S = 10.0


class TerminalReporter:
    """A `Reporter` that shows everything to a person."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, float]] = {}
        self._printed_at: dict[str, float] = {}

    def line(self, text: str = "") -> None:
        """Print a line; above the bar if there is one."""
        print_lines(text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], notes: str = "") -> None:
        """Print a table."""
        print_table(title, rows, notes=notes)

    def progress(self, name: str, done: float, total: float, detail: str = "") -> None:
        """Move the bar of this name, or print a line now and then."""
        started_at, first = self._started.setdefault(name, (time.monotonic(), done))
        left = _time_left(time.monotonic() - started_at, done - first, total - done)
        if console.is_terminal:
            self._move_bar(name, done, total, f"{detail}  {left}".strip())
            return
        now = time.monotonic()
        if done >= total or now - self._printed_at.get(name, -_PLAIN_EVERY_S) >= _PLAIN_EVERY_S:
            self._printed_at[name] = now
            print_lines(f"{name} {done:g}/{total:g}  {detail}  {left}".rstrip())

    def settle(self) -> None:
        """Leave the bars as they are and go on below."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._bars.clear()
        self._started.clear()

    def _move_bar(self, name: str, done: float, total: float, detail: str) -> None:
        if self._progress is None:
            columns = ("{task.description}", BarColumn(bar_width=24), "{task.completed:g}/{task.total:g}")
            text = [column if isinstance(column, BarColumn) else TextColumn(column) for column in columns]
            self._progress = Progress(*text, TextColumn("{task.fields[detail]}"), console=console)
            self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=total, detail="")
        self._progress.update(self._bars[name], completed=done, total=total, detail=detail)


@contextlib.contextmanager
def answering_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, since answers go to standard output; nothing where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("predict", total=total)
        yield lambda done: bar.update(task, completed=done)


def _time_left(elapsed_s: float, done: float, remaining: float) -> str:
    """`ETA 1:05`, once there is a rate to go by."""
    if done <= 0 or remaining <= 0:
        return ""
    seconds = int(elapsed_s / done * remaining)
    hours, minutes = divmod(seconds // 60, 60)
    return f"ETA {hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"ETA {minutes}:{seconds % 60:02d}"
