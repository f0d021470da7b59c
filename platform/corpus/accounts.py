"""What became of every record, page, byte and line: numbers that add up, of a file and of all.

records   read = pages + left out by each reason
pages     in = left out by each reason + out in each split; the same for bytes, with what was cut inside pages
lines     seen = left out by each reason + repeated + on pages that are left out + out
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3
"""Of each reason, from each file."""


@dataclass
class Account:
    """The numbers of one file, or of several together."""

    files: int = 0
    set_aside: int = 0
    """Files that could not be read."""
    bytes_read: int = 0
    """Of the files as they lie, compressed."""
    records: int = 0
    records_left_out: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    page_bytes: int = 0
    """Text, in UTF-8."""
    pages_left_out: Counter[str] = field(default_factory=Counter)
    bytes_left_out: Counter[str] = field(default_factory=Counter)
    """Of pages that are left out."""
    bytes_cut: int = 0
    """Inside pages that stay: lines, citation marks, blanks."""
    pages_out: Counter[str] = field(default_factory=Counter)
    """By split."""
    bytes_out: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    """That the rules looked at."""
    lines_left_out: Counter[str] = field(default_factory=Counter)
    lines_repeated: int = 0
    lines_of_pages_left_out: int = 0
    lines_out: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    """Pages of each language, before any is left out for it."""

    def add(self, other: Account) -> None:
        """Count what the other one counts, too."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def leave_out(self, reason: str, size: int) -> None:
        """A page with so many bytes of text."""
        self.pages_left_out[reason] += 1
        self.bytes_left_out[reason] += size

    def keep(self, split: str, size: int, out: int) -> None:
        """A page, with its bytes before and after."""
        self.pages_out[split] += 1
        self.bytes_out[split] += out
        self.bytes_cut += size - out

    def to_json(self) -> dict[str, Any]:
        """Plain values; reasons by how often, then by name."""
        return {name: _ordered(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Account:
        """The same from plain values."""
        found: dict[str, Any] = {
            name: Counter(value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
        return cls(**found)

    def gaps(self) -> dict[str, int]:
        """What the sums miss, by name: nothing, unless something is lost or counted twice.

        >>> Account(records=3, pages=2).gaps()
        {'records': 1, 'pages': 2}
        """
        found = {
            "records": self.records - self.pages - self.records_left_out.total(),
            "pages": self.pages - self.pages_left_out.total() - self.pages_out.total(),
            "bytes": self.page_bytes - self.bytes_left_out.total() - self.bytes_cut - self.bytes_out.total(),
            "lines": self.lines
            - (self.lines_left_out.total() + self.lines_repeated + self.lines_of_pages_left_out + self.lines_out),
        }
        return {name: gap for name, gap in found.items() if gap}


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def total(accounts: Iterable[Account]) -> Account:
    """All together."""
    whole = Account()
    for account in accounts:
        whole.add(account)
    return whole


class Samples:
    """A few of what is left out under each reason, the first that come."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, reason: str, sample: str) -> None:
        """Keep it while there are few."""
        kept = self.found.setdefault(reason, [])
        if len(kept) < SAMPLES and sample not in kept:
            kept.append(sample)
