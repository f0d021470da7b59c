"""What C4 keeps of a page: rules for lines and for pages, each with the name by which what it leaves out is counted.

    page     too_long                                       more than 190,000 characters
    line     too_long_word, no_endmark, too_short,
             javascript, policy                             the line is left out
    line     lorem_ipsum, curly_bracket                     the page is left out
    page     too_few_sentences                              of those in the lines that are left

The order is that of the released code, and matters: a bracket in a line without an end mark is never seen. The paper
says it otherwise in places; `PRESETS` has both (Raffel et al. 2020, section 2.2; the C4 builder of TFDS).
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from mixtura.platform.corpus.sentences import Count

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = (
    *("terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)


@dataclass(frozen=True)
class Rules:
    """The thresholds of C4's rules; None, 0 or False is for a rule that does not hold."""

    longest_page: int | None = 190_000
    """characters"""
    longest_word: int | None = 1000
    """characters; a line with a longer word is left out"""
    citations: bool = True
    """whether `[1]`, `[edit]` and `[citation needed]` are removed"""
    end_marks: tuple[str, ...] = (".", "?", "!", '"')
    """what a line ends with"""
    ellipsis: str | None = "..."
    """what it does not end with"""
    fewest_words: int = 5
    """of a line"""
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policies: tuple[str, ...] = _POLICIES
    """parts of notices; a line with one is left out"""
    anywhere: bool = False
    """whether `lorem ipsum` and `{` are looked for in the whole page, not only in lines that are kept"""
    fewest_sentences: int = 3
    """of a page"""
    paragraphs: tuple[int, int] | None = None
    """at least so many lines, of at least so many characters"""
    clean: bool = True
    """whether lines are looked at; otherwise a page stays as it is"""


@dataclass(frozen=True)
class Page:
    """What the rules make of a page: its clean text, or the reason why it is left out; and what became of its lines."""

    text: str | None
    reason: str | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    """Of each reason the lines that were left out, and of `kept` the others."""


def clean_page(text: str, rules: Rules, count_sentences: Count) -> Page:
    """Apply the rules to a page.

    >>> from mixtura.platform.corpus.sentences import sentence_counter
    >>> page = clean_page("Home | News\\nIt was dark. Rain fell on us. Nobody came.", Rules(), sentence_counter())
    >>> page.text, dict(page.lines)
    ('It was dark. Rain fell on us. Nobody came.', {'no_endmark': 1, 'kept': 1})
    """
    if reason := _whole_page_is_out(text, rules):
        return Page(None, reason)
    if not rules.clean:
        return Page(text)
    kept: list[str] = []
    lines: Counter[str] = Counter()
    sentences = 0
    for given in text.splitlines():
        line, reason = clean_line(given.strip(), rules)
        if reason is not None:
            lines[reason] += 1
            continue
        lowered = line.lower()
        if reason := _line_is_out(lowered, rules):
            if reason in _OF_PAGES:
                return Page(None, reason, _counted(lines, kept))
            lines[reason] += 1
            continue
        kept.append(line)
        if sentences < rules.fewest_sentences:  # more need not be counted
            sentences += count_sentences(line)
    counted = _counted(lines, kept)
    if sentences < rules.fewest_sentences:
        return Page(None, "too_few_sentences", counted)
    return Page("\n".join(kept).strip(), None, counted)


def clean_line(line: str, rules: Rules) -> tuple[str, str | None]:
    """A stripped line without citation marks, and why it is left out, if by its form alone it is."""
    longest = rules.longest_word
    if longest is not None and len(line) > longest and max(map(len, line.split())) > longest:
        return line, "too_long_word"
    if rules.citations and "[" in line:
        line = _CITATION.sub("", line)
    if rules.end_marks and not line.endswith(rules.end_marks):
        return line, "no_endmark"
    if rules.ellipsis and line.endswith(rules.ellipsis):
        return line, "no_endmark"
    if len(line.split(None, rules.fewest_words)) < rules.fewest_words:
        return line, "too_short"
    return line, None


def lorem_ipsum(lowered: str, rules: Rules) -> str | None:
    """Placeholder text: the page is left out."""
    return "lorem_ipsum" if rules.lorem_ipsum and "lorem ipsum" in lowered else None


def javascript(lowered: str, rules: Rules) -> str | None:
    """A warning that JavaScript is off."""
    return "javascript" if rules.javascript and "javascript" in lowered else None


def curly_bracket(lowered: str, rules: Rules) -> str | None:
    """Code: the page is left out."""
    return "curly_bracket" if rules.curly_bracket and "{" in lowered else None


def policy(lowered: str, rules: Rules) -> str | None:
    """A notice about cookies or terms."""
    return "policy" if any(notice in lowered for notice in rules.policies) else None


_BY_WORDS: tuple[Callable[[str, Rules], str | None], ...] = (lorem_ipsum, javascript, curly_bracket, policy)
_OF_PAGES = frozenset(("lorem_ipsum", "curly_bracket"))


def _line_is_out(lowered: str, rules: Rules) -> str | None:
    for rule in _BY_WORDS:
        if reason := rule(lowered, rules):
            return reason
    return None


def _whole_page_is_out(text: str, rules: Rules) -> str | None:
    if rules.longest_page is not None and len(text) > rules.longest_page:
        return "too_long"
    if rules.paragraphs is not None and not has_paragraphs(text, *rules.paragraphs):
        return "too_few_paragraphs"
    if rules.clean and rules.anywhere:
        lowered = text.lower()
        return lorem_ipsum(lowered, rules) or curly_bracket(lowered, rules)
    return None


def _counted(lines: Counter[str], kept: list[str]) -> dict[str, int]:
    return {**lines, **({"kept": len(kept)} if kept else {})}


def has_paragraphs(text: str, fewest: int, length: int) -> bool:
    """Whether a page has so many lines of so many characters, as pages of `multilingual` must.

    >>> has_paragraphs("long enough\\nshort\\nlong enough", 2, 10), has_paragraphs("long enough", 2, 10)
    (True, False)
    """
    lines = text.split("\n")
    return len(lines) >= fewest and min(heapq.nlargest(fewest, map(len, lines))) >= length


_OF_CODE = Rules()
# What the paper states: end marks, words, sentences, JavaScript, lorem ipsum and brackets wherever they are, citation
# marks and notices. Of long words, long pages and ellipses it says nothing.
_OF_PAPER = replace(_OF_CODE, longest_page=None, longest_word=None, ellipsis=None, anywhere=True)

PRESETS: Mapping[str, Rules] = MappingProxyType(
    {
        "c4": _OF_CODE,
        "c4-noblocklist": _OF_CODE,
        "realnews-like": _OF_CODE,
        "webtext-like": _OF_CODE,
        "c4-paper": _OF_PAPER,
        "c4-first": replace(_OF_PAPER, fewest_sentences=5, fewest_words=3),
        "c4-noclean": replace(_OF_CODE, clean=False),
        "multilingual": replace(_OF_CODE, clean=False, paragraphs=(3, 200)),
    }
)
"""Rules by what they make: the released code's C4 and its variants, and both versions of the paper."""
