"""Which language a page is in.

C4's code asks langdetect, which is slow: it would take most of the time of cleaning. So the default asks a fast
identifier first, on the beginning of the page, and langdetect only where the fast one is unsure; `exact` asks
langdetect alone, and gives the released code's answer.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

ENGLISH = 0.99
"""The probability from which C4 takes a page for English."""
UNKNOWN = "und"

_SURE = 0.99
_SURELY_NOT = 0.001
_LOOKED_AT = 1000
"""Characters that the fast identifier sees: more of them take time and change next to nothing."""


class Language(NamedTuple):
    """What a page is taken for, and how surely."""

    code: str
    """ISO 639-1, `und` where nothing can be said"""
    probability: float


Identify = Callable[[str], Language]


def identifier(kind: Literal["fast", "exact"], wanted: Collection[str] | None = None) -> Identify:
    """The way to find a language. Where only some languages are wanted, the fast way takes its own word for it that a
    page is in none of them, though it may not know in which other one.

    >>> [identifier(kind)("The harbour was quiet in the early morning light.").code for kind in ("fast", "exact")]
    ['en', 'en']
    """
    return by_langdetect if kind == "exact" else functools.partial(_fast_first, wanted=wanted)


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


def _fast_first(text: str, wanted: Collection[str] | None) -> Language:
    """The fast identifier's answer where it is sure of it."""
    found, likely = _fast().classify(text[:_LOOKED_AT], wanted or ())
    if found.probability >= _SURE or (wanted is not None and likely <= _SURELY_NOT and found.code != UNKNOWN):
        return found
    return by_langdetect(text)


class _FastIdentifier:
    """py3langid's model, with its answers in a third of its time: the automaton reads all places of a text at once.

    It knows short runs of bytes, so that its state at a place follows from the few bytes before.
    """

    def __init__(self, model: LanguageIdentifier) -> None:
        self._rows = np.array(model.tk_row, np.int32) << 8
        self._next = np.array(model.tk_nextmove, np.int32)
        self._features = np.array(model.tk_output, np.int32)
        self._weights = model.nb_ptc.astype(np.float32)
        self._priors = model.nb_pc.astype(np.float32)
        self._codes: list[str] = list(model.nb_classes)
        self._same = [
            (self._codes.index(code), number)
            for number, code in enumerate(self._codes)
            if self._codes.index(code) != number
        ]
        """Languages that have two scripts, and so two places among the scores."""
        self._depth = self._longest_run()

    def _longest_run(self) -> int:
        """Bytes after which the automaton has forgotten where it began."""
        reached, depth = np.zeros(len(self._rows), bool), 0
        front = np.zeros(1, np.int64)
        while len(front):
            reached[front] = True
            after = np.zeros(len(self._rows), bool)
            for letter in range(256):
                after[self._next[self._rows[front] + letter]] = True
            front = np.flatnonzero(after & ~reached)
            depth += 1
        return depth

    def classify(self, text: str, wanted: Collection[str] = ()) -> tuple[Language, float]:
        """What a text is taken for, and how likely it is in one of the wanted languages."""
        data = unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode(errors="surrogatepass")
        features, counts = np.unique(self._found(data), return_counts=True)
        if not len(features):
            return Language(UNKNOWN, 0.0), 0.0
        scores = np.log1p(counts.astype(np.float32)) @ self._weights[features] + self._priors
        likely = np.exp((scores - scores.max()) / np.float32(math.sqrt(len(data))))
        likely /= likely.sum()
        for first, other in self._same:
            likely[first] += likely[other]
            likely[other] = 0
        best = int(likely.argmax())
        of_wanted = sum(float(likely[self._codes.index(code)]) for code in wanted if code in self._codes)
        return Language(self._codes[best], float(likely[best])), of_wanted

    def _found(self, data: bytes) -> npt.NDArray[np.int32]:
        letters = np.frombuffer(data, np.uint8).astype(np.int32)
        states = np.zeros(len(letters), np.int32)
        for back in range(min(self._depth, len(letters)) - 1, -1, -1):
            states[back:] = self._next[self._rows[states[back:]] + letters[: len(letters) - back]]
        found = self._features[states]
        return found[found >= 0]


@functools.lru_cache(maxsize=1)
def _fast() -> _FastIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return _FastIdentifier(LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True))
