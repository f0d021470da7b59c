"""Which language a page is in.

C4's code asks langdetect, which is slow: it would take most of the time of cleaning. So the default asks a fast
identifier first, on the beginning of the page, and langdetect only where the fast one is unsure; `exact` asks
langdetect alone, and gives the released code's answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

ENGLISH = 0.99
"""The probability from which C4 takes a page for English."""
UNKNOWN = "und"

_SURE = 0.99
_LOOKED_AT = 1000
"""Characters that the fast identifier sees: more of them take time and change next to nothing."""


class Language(NamedTuple):
    """What a page is taken for, and how surely."""

    code: str
    """ISO 639-1, `und` where nothing can be said"""
    probability: float


Identify = Callable[[str], Language]


def identifier(kind: Literal["fast", "exact"]) -> Identify:
    """The way to find a language.

    >>> [identifier(kind)("The harbour was quiet in the early morning light.").code for kind in ("fast", "exact")]
    ['en', 'en']
    """
    return by_langdetect if kind == "exact" else _fast_first


def is_english(language: Language, threshold: float = ENGLISH) -> bool:
    """Whether a page counts as English."""
    return language.code == "en" and language.probability >= threshold


def by_langdetect(text: str) -> Language:
    """langdetect's best guess with C4's seed: the same for a text at any time and on any machine."""
    from langdetect import DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0
    try:
        best = detect_langs(text)[0]
    except LangDetectException:  # a text without letters
        return Language(UNKNOWN, 0.0)
    return Language(best.lang, best.prob)


def _fast_first(text: str) -> Language:
    """The fast identifier's answer where it is sure of it."""
    code, probability = _fast().classify(text[:_LOOKED_AT])
    return Language(code, probability) if probability >= _SURE else by_langdetect(text)


@functools.lru_cache(maxsize=1)
def _fast() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
