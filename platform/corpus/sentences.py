"""How many sentences a text has, by Punkt (Kiss and Strunk 2006), which knows that `Dr.` and `p.m.` end none.

Punkt's English parameters were learned from news and belong to NLTK's data (`punkt_tab`), which are not shipped here.
Where they are installed they are used, as C4's code does. Otherwise the abbreviations below stand for them: on clean
lines, of which only a few sentences have to be counted, they decide alike nearly always.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mixtura.platform.errors import DataError

Count = Callable[[str, int], int]
"""How many sentences a text has; it is not read on where so many are found."""

_ENDS = re.compile(r"(?<!\S)([A-Za-z][a-z]+)[.?!]\s+(?=[A-Za-z0-9])")
"""Such a place ends a sentence, unless the word is an abbreviation or one that Punkt knows to go on: no rule of Punkt's
asks what follows a plain word with a mark."""

# Titles and ranks, companies and offices, months and days, American states, measures and times, of books, Latin.
_ABBREVIATIONS = """
    mr mrs ms dr prof rev hon st sr jr messrs gen col capt cmdr lt maj sgt cpl gov sen rep pres supt ph.d m.d b.a m.a
    inc ltd co corp bros dept univ assn est bldg ave blvd rd u.s u.k u.n u.s.a d.c
    jan feb mar apr jun jul aug sept sep oct nov dec mon tue wed thu fri sat sun
    ala ariz ark calif colo conn del fla ga ill ind kan ky la mass md mich minn miss mo mont neb nev okla ore pa tenn
    tex va vt wash wis wyo n.y n.j n.c n.d n.h n.m s.c s.d w.va
    ft lb oz hr hrs min approx a.m p.m a.d b.c no nos vol vols fig figs pp ed eds vs etc e.g i.e et al cf viz p.s
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split()) - {"sun", "mon", "al", "mar", "no", "min", "ed", "la", "miss", "mo"}
"""Those that are words too are left out: a sentence may well end with one."""


def sentence_counter(punkt: Path | None = None) -> Count:
    """A function that counts sentences, with Punkt's parameters from a folder (`.../punkt_tab/english`), with those
    that NLTK has installed, or else with our abbreviations.

    Raises DataError where a folder is named that does not hold them.

    >>> count = sentence_counter()
    >>> count("Dr. Smith arrived at 5 p.m. yesterday. Nobody saw him!", 9), count("No end", 9), count("", 9)
    (2, 1, 0)
    """
    if punkt is not None and not (punkt / "abbrev_types.txt").is_file():
        raise DataError(
            f"{punkt} holds no parameters of Punkt (abbrev_types.txt is missing): give .../punkt_tab/english"
        )
    punkt_says, may_end, go_on = _tokenizer(str(punkt or _installed() or ""))

    def count(text: str, most: int) -> int:
        if may_end.search(text) is None:
            return 1 if text and not text.isspace() else 0
        sure = 1
        for found in _ENDS.finditer(text):
            if sure >= most:
                return most
            sure += found[1].lower() not in go_on
        if sure >= most or sure - 1 == sum(1 for _ in may_end.finditer(text)):
            return min(sure, most)
        return sum(1 for _ in itertools.islice(punkt_says(text), most))

    return count


def sentence_splitter(punkt: Path | None = None) -> Callable[[str], list[tuple[int, int]]]:
    """A function that gives the begin and end of each sentence, with the same parameters.

    >>> sentence_splitter()("It was dark.  Rain fell!")
    [(0, 12), (14, 24)]
    """
    punkt_says, _, _ = _tokenizer(str(punkt or _installed() or ""))
    return lambda text: list(punkt_says(text))


class _Punkt(NamedTuple):
    spans: Callable[[str], Iterable[tuple[int, int]]]
    may_end: Any
    """where a sentence may end: Punkt looks at no other place"""
    go_on: frozenset[str]
    """words behind whose mark a sentence may go on"""


@functools.lru_cache(maxsize=4)
def _tokenizer(folder: str) -> _Punkt:
    from nltk.tokenize.punkt import PunktLanguageVars, PunktParameters, PunktSentenceTokenizer, load_punkt_params

    if folder:
        parameters = load_punkt_params(folder)
    else:
        parameters = PunktParameters()
        parameters.abbrev_types = set(ABBREVIATIONS)
    spans = PunktSentenceTokenizer(parameters).span_tokenize
    go_on = frozenset(parameters.abbrev_types) | {word for word, _ in parameters.collocations}
    return _Punkt(spans, PunktLanguageVars().period_context_re(), go_on)


def _installed() -> Path | None:
    import nltk.data

    try:
        return Path(str(nltk.data.find("tokenizers/punkt_tab/english")))
    except (LookupError, ValueError):
        return None
