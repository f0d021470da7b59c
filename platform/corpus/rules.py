"""What C4 keeps of a page: rules for lines and for pages, each with the name by which what it leaves out is counted.

    line     header_like                                    begins as a header of the crawl's files does
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from mixtura.platform.config import STREAM, Section
from mixtura.platform.corpus.sentences import Count

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = (
    *("terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)


class Rules(Section):
    """The thresholds of C4's rules; null, 0 or false is for a rule that does not hold."""

    header_lines: Annotated[tuple[str, ...], STREAM] = ("WARC", "CONTENT-", "Content-")
    """lines that begin so are left out: the released code takes them for headers of the crawl's files"""
    longest_page: Annotated[int | None, STREAM] = 190_000
    """characters"""
    longest_word: Annotated[int | None, STREAM] = 1000
    """characters; a line with a longer word is left out"""
    citations: Annotated[bool, STREAM] = True
    """whether `[1]`, `[edit]` and `[citation needed]` are removed"""
    end_marks: Annotated[tuple[str, ...], STREAM] = (".", "?", "!", '"')
    """what a line ends with"""
    ellipsis: Annotated[str | None, STREAM] = "..."
    """what it does not end with"""
    fewest_words: Annotated[int, STREAM] = 5
    """of a line"""
    lorem_ipsum: Annotated[bool, STREAM] = True
    javascript: Annotated[bool, STREAM] = True
    curly_bracket: Annotated[bool, STREAM] = True
    policies: Annotated[tuple[str, ...], STREAM] = _POLICIES
    """parts of notices; a line with one is left out"""
    anywhere: Annotated[bool, STREAM] = False
    """whether `lorem ipsum` and `{` are looked for in the whole page, not only in lines that are kept"""
    fewest_sentences: Annotated[int, STREAM] = 3
    """of a page"""
    paragraphs: Annotated[tuple[int, int] | None, STREAM] = None
    """at least so many lines, of at least so many characters"""
    clean: Annotated[bool, STREAM] = True
    """whether lines are looked at; otherwise a page stays as it is"""


@dataclass(frozen=True)
class Page:
    """What the rules make of a page: its clean text, or the reason why it is left out; and what became of its lines."""

    text: str | None
    reason: str | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    """Of each reason the lines that were left out, and of `kept` the others."""


def as_crawled(text: str, rules: Rules) -> tuple[str, int]:
    """A page as the released code reads it from a crawl's files: without the blanks around its lines, without empty
    lines and without those that it takes for headers, which are counted. A carriage return alone ends a line, too.

    >>> as_crawled("  Home \\n\\n Content-Type is a header.\\nIt was dark.", Rules())
    ('Home\\nIt was dark.', 1)
    """
    lines = list(filter(None, map(str.strip, text.replace("\r", "\n").split("\n"))))
    if not rules.header_lines:
        return "\n".join(lines), 0
    kept = [line for line in lines if not line.startswith(rules.header_lines)]
    return "\n".join(kept), len(lines) - len(kept)


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
            if reason in OF_PAGES:
                return Page(None, reason, _counted(lines, kept))
            lines[reason] += 1
            continue
        kept.append(line)
        if sentences < rules.fewest_sentences:  # more need not be counted
            sentences += count_sentences(line, rules.fewest_sentences - sentences)
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


LINE_REASONS = ("header_like", "too_long_word", "no_endmark", "too_short", "javascript", "policy")
"""Why a line is left out."""
OF_PAGES = frozenset(("lorem_ipsum", "curly_bracket"))
"""Why a page is left out for one of its lines."""


def left_out_lines(text: str, rules: Rules) -> Iterator[tuple[str, str]]:
    """The lines of a page that `clean_page` leaves out, each behind its reason."""
    for given in text.splitlines():
        line, reason = clean_line(given.strip(), rules)
        reason = reason or _line_is_out(line.lower(), rules)
        if reason is not None:
            yield reason, line
        if reason in OF_PAGES:
            return


_BY_WORDS: tuple[Callable[[str, Rules], str | None], ...] = (lorem_ipsum, javascript, curly_bracket, policy)


def _line_is_out(lowered: str, rules: Rules) -> str | None:
    for rule in _BY_WORDS:
        if reason := rule(lowered, rules):
            return reason
    return None


def too_long(text: str, rules: Rules) -> str | None:
    """A page that is left out before anything else is asked."""
    return "too_long" if rules.longest_page is not None and len(text) > rules.longest_page else None


def _whole_page_is_out(text: str, rules: Rules) -> str | None:
    if reason := too_long(text, rules):
        return reason
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
