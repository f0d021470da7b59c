"""What each reason says under which something is left out, in the order in which it is asked for.

Reasons of records are sentences themselves. The others are names, so that they can be counted and be folders; here is
what they mean, with the setting that decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

LINES: Mapping[str, str] = {
    "header_like": "begins as a header of the crawl's files does (rules.header_lines)",
    "too_long_word": "has a word of more characters than rules.longest_word",
    "no_endmark": "ends without one of rules.end_marks, or with an ellipsis: mostly menus and titles",
    "too_short": "has fewer words than rules.fewest_words",
    "javascript": "says something of JavaScript: mostly that it is off",
    "policy": "is a notice about cookies, privacy or terms of use (rules.policies)",
}
"""Why a line is left out, and its page is not."""

PAGES: Mapping[str, str] = {
    "too_long": "has more characters than rules.longest_page",
    "other_domain": "is of a domain that is not on the list addresses.domains",
    "same_address": "has the address of a page that is newer",
    "not_on_list": "has an address that is not on the list addresses.urls",
    "too_few_paragraphs": "has fewer long lines than rules.paragraphs asks for",
    "lorem_ipsum": "has placeholder text: lorem ipsum",
    "curly_bracket": "has a curly bracket: mostly code",
    "too_few_sentences": "has too few sentences (rules.fewest_sentences) in the lines that the rules keep",
    "nothing_left": "has only text that stays on other pages",
    "too_few_sentences_left": "has too few sentences (rules.fewest_sentences) without those that stay on other pages",
    "other_language": "is surely of no language that language.keep names (language.probability)",
    "bad_words": "has a word or phrase of the lists in bad_words.files",
    "nearly_equal": "is nearly equal to a page that stays (duplicates.near)",
}
"""Why a page is left out."""


def in_order(reasons: Iterable[str], known: Mapping[str, str]) -> Iterator[str]:
    """Reasons in the order in which they are asked for, and any that are not known behind them.

    >>> list(in_order(["bad_words", "odd", "too_long"], PAGES))
    ['too_long', 'bad_words', 'odd']
    """
    places = {reason: place for place, reason in enumerate(known)}
    return iter(sorted(reasons, key=lambda reason: (places.get(reason, len(places)), reason)))
