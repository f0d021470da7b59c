"""What the driver of a long piece of work says while it works; the command line shows it, tests collect it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Reporter(Protocol):
    """Receives lines, tables and progress."""

    def line(self, text: str = "") -> None:
        """One line of plain text."""

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], notes: str = "") -> None:
        """Rows of named cells."""

    def progress(self, name: str, done: float, total: float, detail: str = "") -> None:
        """How far a named piece of work is; called often."""

    def settle(self) -> None:
        """End the progress shown, so that lines follow below it."""


class SilentReporter:
    """Says nothing."""

    def line(self, text: str = "") -> None:
        """Drop a line."""

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], notes: str = "") -> None:
        """Drop a table."""

    def progress(self, name: str, done: float, total: float, detail: str = "") -> None:
        """Drop progress."""

    def settle(self) -> None:
        """Nothing to end."""


def duration(seconds: float) -> str:
    """A time for a person.

    >>> duration(42.3), duration(330), duration(9000), duration(400000)
    ('42 s', '5.5 min', '2.5 h', '4.6 days')
    """
    for length, unit in ((86_400 * 2, "days"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / min(length, 86_400):.1f} {unit}"
    return f"{seconds:.0f} s"
