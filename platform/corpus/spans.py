"""Spans of several sentences that occur more than once: the paper keeps one of each (Raffel et al. 2020, section 2.2).

A sentence of a span that loses goes, unless it also belongs to a span that stays here because its copies elsewhere go:
of text that is found twice something always stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

Split = Callable[[str], list[tuple[int, int]]]


@dataclass(frozen=True)
class Sentence:
    """Where a sentence is."""

    line: int
    text: str


def sentences_of(text: str, split: Split) -> list[Sentence]:
    """The sentences of a page; none goes over a line's end."""
    return [
        Sentence(number, line[begin:end].strip())
        for number, line in enumerate(text.split("\n"))
        for begin, end in split(line)
    ]


def span_keys(sentences: Sequence[Sentence], length: int) -> Iterator[bytes]:
    """A key of 16 bytes for the span that begins with each sentence."""
    for begin in range(len(sentences) - length + 1):
        span = "\n".join(sentence.text for sentence in sentences[begin : begin + length])
        yield hashlib.md5(span.encode(errors="surrogatepass"), usedforsecurity=False).digest()


def without_spans(text: str, split: Split, length: int, lost: Collection[int], kept: Collection[int]) -> str:
    """A page without the spans that lose, named by their first sentences; lines of which nothing stays are left out.

    >>> from mixtura.platform.corpus.sentences import sentence_splitter
    >>> without_spans("A one. B two.\\nC three. D four.", sentence_splitter(), 3, {0}, set())
    'D four.'
    """
    sentences = sentences_of(text, split)
    gone = {one for first in lost for one in range(first, first + length)}
    gone -= {one for first in kept for one in range(first, first + length)}
    lines: dict[int, list[str]] = {}
    for number, sentence in enumerate(sentences):
        if number not in gone:
            lines.setdefault(sentence.line, []).append(sentence.text)
    touched = {sentences[number].line for number in gone}
    given = text.split("\n")
    return "\n".join(
        " ".join(lines[n]) if n in touched else line for n, line in enumerate(given) if n not in touched or n in lines
    )
