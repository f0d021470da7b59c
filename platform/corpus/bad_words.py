"""Pages with words of a list, which is given as a file for each language: such lists are not shipped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
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

    lists: Mapping[str, _List]

    @classmethod
    def of(cls, words: Mapping[str, Iterable[str]]) -> BadWords:
        """From the words of each language."""
        return cls({language: _list(language, sorted(set(own))) for language, own in words.items()})

    @classmethod
    def read(cls, files: Mapping[str, Path]) -> BadWords:
        """From files with a word or a phrase in each line, by language."""
        for language, path in files.items():
            if not path.is_file():
                raise DataError(f"there is no list of bad words for {language!r} at {path}")
        return cls.of({language: _lines(path) for language, path in files.items()})

    def found(self, text: str, language: str) -> bool:
        """Whether a text of a language (`en`, `en-Latn`) has any of its words."""
        words = self.lists.get(language.partition("-")[0])
        if words is None:
            return False
        lowered = text.lower()
        if words.have_no_borders:
            return any(word in lowered for word in words.candidates)
        return any(_stands_alone(word, lowered) for word in words.that_may_be_in(lowered))

    def dropped(self, text: str, language: str, url: str, share: float = 1.0) -> bool:
        """Whether a page is left out; of those with a bad word `share` is, by their normalized address."""
        if not self.found(text, language):
            return False
        above, below = share.as_integer_ratio()
        return url_hash(url) % below < above


def _lines(path: Path) -> list[str]:
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [word for word in words if word]


@dataclass(frozen=True)
class _List:
    """The words of a language. Most pages are told to be without any of them by what is quick to see."""

    have_no_borders: bool
    candidates: Mapping[str, frozenset[bytes]]
    """Of words that consist of more than letters and digits of ASCII, such as phrases, their parts that do."""
    words: frozenset[bytes] = frozenset()
    """The others."""

    def that_may_be_in(self, lowered: str) -> Iterator[str]:
        """The words that a text has to be searched for. What is no letter or digit of ASCII is taken for a border, so
        that none is overlooked."""
        found = set(lowered.encode("ascii", "replace").translate(_BORDERS).split())
        yield from (word.decode() for word in self.words & found)
        yield from (word for word, parts in self.candidates.items() if parts <= found)


_BORDERS = bytes(code if chr(code).isalnum() or chr(code) == "_" else 32 for code in range(128)) + b" " * 128
_OF_WORD = re.compile(r"\w")


def _list(language: str, words: Iterable[str]) -> _List:
    if language in _WITHOUT_SPACES:
        return _List(have_no_borders=True, candidates=dict.fromkeys(words, frozenset()))
    parts = {word: frozenset(word.encode("ascii", "replace").translate(_BORDERS).split()) for word in words}
    single = {word for word in words if parts[word] == {word.encode()}}
    return _List(
        have_no_borders=False,
        candidates={word: own if word.isascii() else frozenset() for word, own in parts.items() if word not in single},
        words=frozenset(word.encode() for word in single),
    )


def _stands_alone(word: str, text: str) -> bool:
    """Whether a word is in a text between characters of no word.

    >>> _stands_alone("frob", "frobnicate, frob!"), _stands_alone("frob", "frob_1")
    (True, False)
    """
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not (_OF_WORD.match(text[max(0, at - 1) : at]) or _OF_WORD.match(text[end : end + 1])):
            return True
        at = text.find(word, at + 1)
    return False
