"""By what pages and lines are equal, and which of several equal ones stays: of a line the one on the page whose address
has the smallest MD5, there the first; of an address the newest page.

Who stays follows from these alone, so that any order of files and any number of workers gives the same: see `keys`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection


def line_key(line: str) -> bytes:
    """Equal lines have equal keys, whatever their case and the blanks around them: 16 bytes.

    >>> line_key(" The Harbour\\t") == line_key("the harbour")
    True
    """
    return _md5(line.strip().lower())


def page_key(url: str) -> bytes:
    """By which pages are ranked: the smallest keeps a line. Of the address as it was given, 16 bytes."""
    return _md5(url)


def with_lines(text: str, numbers: Collection[int]) -> str:
    """A text with some of its lines alone.

    >>> with_lines("a\\nb\\nc", {0, 2})
    'a\\nc'
    """
    return "\n".join(line for number, line in enumerate(text.split("\n")) if number in numbers)


def _md5(text: str) -> bytes:
    return hashlib.md5(text.encode(errors="surrogatepass"), usedforsecurity=False).digest()
