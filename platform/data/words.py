"""Words of token lists, as hashes and without decoding: what overlap is looked for with.

    tokens    ▁The  ▁dog ,  ▁don ' t  ▁- -  ▁BAR KED      of the text: The dog, don't -- BARKED
    words     the   dog     dont            barked         one hash each, and [start, end): [0, 1) [1, 3) [3, 6) [8, 10)

Each piece of a vocabulary contributes characters after normalisation, a word's hash is a polynomial in its characters,
and that of n words in a row one in the words. So neither depends on how a word was cut into pieces.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.ragged import Int32, Int64, offsets_of, ranges
from mixtura.platform.data.vocabulary import Vocabulary

UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_WHITE_SPACE = re.compile(r"[\u2581\s]")
_PLACES = 1 << 16  # the powers are a table, which words of more characters go through again

# Odd, so that powers never lose bits, and 3 modulo 4, so that two powers differ in as low a bit as they can.
_CHARACTER_BASE = 0x9E3779B97F4A7C17
_WORD_BASE = 0xD1342543DE82EF97
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def normalised(text: str) -> list[str]:
    """The words of a text as they are compared.

    >>> normalised("Don't -- he said -- WELL-KNOWN 3.5 %!")
    ['dont', 'he', 'said', 'wellknown', '35']
    """
    return [word for word in map(_letters, _WHITE_SPACE.split(text)) if word]


def _letters(text: str) -> str:
    return "".join(one for one in text.casefold() if unicodedata.category(one)[0] in "LMN")


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Words of a run of tokens that have at least one letter: hashes, and [start, end) in tokens, all [words]."""

    hashes: UInt64
    starts: Int64
    ends: Int64


@dataclass(frozen=True, eq=False)
class WordTable:
    """What each id of a vocabulary contributes to words.

    An id has one part or, where white space stands within its piece, several: `offsets` [ids + 1] into the other
    arrays [parts]. A part begins a word or goes on with the last one, and has a polynomial and a number of characters.
    """

    offsets: Int64
    begins: Bool
    polynomials: UInt64
    characters: Int64
    ends_in_colon: Bool
    """By id: `:` is how the original's preprocessors mark the fields of an example."""

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> WordTable:
        """The table of a vocabulary.

        Unknown ids contribute nothing: they are signs for the most part, which are left out anyway, and text in letters
        that the vocabulary lacks must not look alike because all of it is unknown. Sentinels and padding part words.
        """
        parts = [_parts(vocabulary, number) for number in range(vocabulary.size)]
        flat = [part for own in parts for part in own]
        return cls(
            offsets=offsets_of(np.array([len(own) for own in parts])),
            begins=np.array([begins for begins, _ in flat], dtype=bool),
            polynomials=np.array([_polynomial(letters) for _, letters in flat], dtype=np.uint64),
            characters=np.array([len(letters) for _, letters in flat], dtype=np.int64),
            ends_in_colon=np.array([vocabulary.piece(number).endswith(":") for number in range(vocabulary.size)]),
        )

    def words(self, tokens: Int32, breaks: Int64) -> Words:
        """The words of tokens; at `breaks` (positions within the tokens) one begins whatever the pieces say.

        Tokens before the first beginning are the end of a word that is not here, and make none.
        """
        parts, token_of = self._parts_of(tokens)
        begins = self.begins[parts]
        begins[breaks if token_of is None else np.searchsorted(token_of, breaks)] = True
        starts = np.flatnonzero(begins)
        if not len(starts):
            return Words(np.zeros(0, np.uint64), starts, starts)
        ends = np.append(starts[1:], len(parts))
        before = offsets_of(self.characters[parts])
        place = before[starts[0] : -1] - np.repeat(before[starts], ends - starts)
        terms = self.polynomials[parts[starts[0] :]] * _powers(_CHARACTER_BASE, _PLACES)[place % _PLACES]
        hashes = np.add.reduceat(terms, starts - starts[0])
        kept = np.flatnonzero(before[ends] > before[starts])
        hashes, starts, ends = _mixed(hashes[kept]), starts[kept], ends[kept]
        return (
            Words(hashes, starts, ends) if token_of is None else Words(hashes, token_of[starts], token_of[ends - 1] + 1)
        )

    def _parts_of(self, tokens: Int32) -> tuple[npt.NDArray[np.integer], Int64 | None]:
        """The parts of tokens, and to which token each belongs where that is another number."""
        if len(self.begins) == len(self.offsets) - 1:
            return tokens, None
        counts = np.diff(self.offsets)[tokens]
        return ranges(self.offsets[tokens], counts), np.repeat(np.arange(len(tokens)), counts)


def _parts(vocabulary: Vocabulary, number: int) -> list[tuple[bool, str]]:
    """Whether each part of an id begins a word, and its letters.

    `▁The` is [(True, "the")], `s,` is [(False, "s")], and `a▁b` would be [(False, "a"), (True, "b")].
    """
    if number == vocabulary.unk_id:
        return [(False, "")]
    if number in {vocabulary.pad_id, vocabulary.eos_id} or number >= vocabulary.pieces:
        return [(True, "")]
    first, *others = map(_letters, _WHITE_SPACE.split(vocabulary.piece(number)))
    return [*([(False, first)] if first or not others else []), *((True, letters) for letters in others)]


def _polynomial(letters: str) -> int:
    """Sum of c_j B^j modulo 2^64 over the characters c_0, c_1, ..."""
    return sum(ord(one) * pow(_CHARACTER_BASE, place, 1 << 64) for place, one in enumerate(letters)) % (1 << 64)


@functools.lru_cache(maxsize=64)
def _powers(base: int, count: int) -> UInt64:
    """base^0, base^1, ... modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    powers: UInt64 = np.multiply.accumulate(factors)
    powers.setflags(write=False)
    return powers


def _mixed(hashes: UInt64) -> UInt64:
    """Hashes whose bits all depend on all bits, one to one: sums of polynomials alone keep the structure of words."""
    hashes = hashes ^ (hashes >> np.uint64(32))
    for factor in _MIX:
        hashes *= factor
        hashes ^= hashes >> np.uint64(29)
    return hashes


def ngram_hashes(words: UInt64, n: int) -> UInt64:
    """The hash of every n words in a row, [words - n + 1]: sum of w_j C^j, from prefix sums, so that n costs nothing.

    Two different n-grams of up to 16 words have the same hash with a chance of 2^-58 at most, as if words were random.
    """
    if len(words) < n:
        return np.zeros(0, np.uint64)
    size = 1 << max(16, (len(words) - 1).bit_length())
    powers, inverses = _powers(_WORD_BASE, size), _powers(pow(_WORD_BASE, -1, 1 << 64), size)
    sums = np.zeros(len(words) + 1, dtype=np.uint64)
    np.cumsum(words * powers[: len(words)], out=sums[1:])
    hashes: UInt64 = (sums[n:] - sums[:-n]) * inverses[: len(words) - n + 1]
    return hashes
