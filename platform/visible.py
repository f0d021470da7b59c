"""Text of unknown origin, made harmless to look at."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Controls, formats (among them those that turn the direction of writing), surrogates, ends of lines and paragraphs."""
_LEFT_AS_THEY_ARE = frozenset("\n\t\u00ad\u200c\u200d")
"""Ends of lines, tabs; where words may be hyphenated; what parts or joins letters and pictures."""


def visible(text: str) -> str:
    r"""A text with its invisible characters spelled out, so that none acts on the page or terminal that shows it.

    >>> visible("a\x1b[31mred\u202egpj.exe")
    'a\\x1b[31mred\\u202egpj.exe'
    """
    if text.isprintable():
        return text
    return "".join(map(_spelled, text))


def _spelled(one: str) -> str:
    if one in _LEFT_AS_THEY_ARE or unicodedata.category(one) not in _HIDDEN:
        return one
    return one.encode("unicode_escape").decode()
