"""Which of several equal things stays: pages of one address, and lines that occur on several pages.

Who stays follows from hashes alone, so that any order of files and any number of workers gives the same: of a line the
page whose address has the smallest MD5, and there the first place; of an address the newest page.

Each function works on a partition that holds all occurrences of its keys: partitions are made by the keys' own bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Dated(Protocol):
    """A page with the time when it was fetched."""

    @property
    def timestamp(self) -> str:
        """ISO 8601, so that later times are larger texts."""


APage = TypeVar("APage", bound=Dated)


def newest(pages: Iterable[APage]) -> APage:
    """The newest of the pages of one address; of equally new ones the first, so they have to come in a fixed order."""
    first, *others = pages
    for page in others:
        if page.timestamp > first.timestamp:
            first = page
    return first


def line_key(line: str) -> bytes:
    """Equal lines have equal keys, whatever their case and the blanks around them: 16 bytes.

    >>> line_key(" The Harbour\\t") == line_key("the harbour")
    True
    """
    return _md5(line.strip().lower())


def page_key(url: str) -> bytes:
    """By which pages are ranked: the smallest keeps a line. Of the address as it was given, 16 bytes."""
    return _md5(url)


@dataclass(frozen=True, order=True)
class Place:
    """Where a line occurs; the smallest place is the one where it stays."""

    page: bytes
    """`page_key` of its address"""
    line: int
    """from 0"""


def places(url: str, text: str) -> Iterator[tuple[bytes, Place]]:
    """The lines of a page with their places."""
    page = page_key(url)
    for number, line in enumerate(text.split("\n")):
        yield line_key(line), Place(page, number)


def kept_places(occurrences: Iterable[tuple[bytes, Place]]) -> dict[bytes, Place]:
    """Where each line stays, by its key.

    >>> near, far = Place(b"a", 3), Place(b"b", 0)
    >>> kept_places([(b"line", far), (b"line", near), (b"other", far)]) == {b"line": near, b"other": far}
    True
    """
    kept: dict[bytes, Place] = {}
    for key, place in occurrences:
        if key not in kept or place < kept[key]:
            kept[key] = place
    return kept


def with_lines(text: str, numbers: Collection[int]) -> str:
    """A text with some of its lines alone.

    >>> with_lines("a\\nb\\nc", {0, 2})
    'a\\nc'
    """
    return "\n".join(line for number, line in enumerate(text.split("\n")) if number in numbers)


def without_repeated_lines(pages: Mapping[str, str]) -> dict[str, str]:
    """Texts by address, each line only where it stays; pages of which nothing stays have an empty text.

    All at once, in memory: what the partitions must add up to.
    """
    everywhere = kept_places(pair for url, text in pages.items() for pair in places(url, text))
    return {
        url: with_lines(text, {place.line for key, place in places(url, text) if everywhere[key] == place})
        for url, text in pages.items()
    }


def _md5(text: str) -> bytes:
    return hashlib.md5(text.encode(errors="surrogatepass"), usedforsecurity=False).digest()
