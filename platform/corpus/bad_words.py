"""Pages with words of a list, which is given as a file for each language: such lists are not shipped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixtura.platform.corpus.urls import url_hash
from mixtura.platform.errors import DataError

_WITHOUT_SPACES = frozenset(("ja", "th", "zh"))
"""Languages whose words are found without borders between them."""


@dataclass(frozen=True)
class BadWords:
    """Finds pages with words of a list, as C4's code does: in lower case, between characters of no word. An underscore
    is of a word, and a phrase that a line break cuts is not found.

    >>> words = BadWords.of({"en": ["frob", "dirty sock"]})
    >>> [words.found(text, "en") for text in ("A Frob!", "frobnicate", "_frob_", "a dirty\\nsock")]
    [True, False, False, False]
    """

    patterns: Mapping[str, re.Pattern[str]]

    @classmethod
    def of(cls, words: Mapping[str, Iterable[str]]) -> BadWords:
        """From the words of each language."""
        return cls({language: _pattern(language, sorted(set(own))) for language, own in words.items()})

    @classmethod
    def read(cls, files: Mapping[str, Path]) -> BadWords:
        """From files with a word or a phrase in each line, by language."""
        for language, path in files.items():
            if not path.is_file():
                raise DataError(f"there is no list of bad words for {language!r} at {path}")
        return cls.of({language: _lines(path) for language, path in files.items()})

    def found(self, text: str, language: str) -> bool:
        """Whether a text of a language (`en`, `en-Latn`) has any of its words."""
        pattern = self.patterns.get(language.partition("-")[0])
        return pattern is not None and pattern.search(text.lower()) is not None

    def dropped(self, text: str, language: str, url: str, share: float = 1.0) -> bool:
        """Whether a page is left out; of those with a bad word `share` is, by their normalized address."""
        if not self.found(text, language):
            return False
        above, below = share.as_integer_ratio()
        return url_hash(url) % below < above


def _lines(path: Path) -> list[str]:
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [word for word in words if word]


def _pattern(language: str, words: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(map(re.escape, words))
    return re.compile(alternatives if language in _WITHOUT_SPACES else rf"(?:\W|^)({alternatives})(?:\W|$)")
