"""Pages that are nearly the same, by MinHash and bands (Broder 1997; Leskovec, Rajaraman and Ullman, chapter 3).

A page's shingles are its runs of a few words. Pages that agree in all hashes of a band share most of them; of those the
one with the smallest rank stays. So no two pages that stay have a band in common.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

_WORD = re.compile(r"\w+")


def band_keys(text: str, words: int, bands: int, rows: int) -> Iterator[bytes]:
    """A key of 16 bytes for each band of a page.

    >>> a, b = (list(band_keys(text, 2, 3, 2)) for text in ("It was a dark night.", "it was, a dark night"))
    >>> a == b, len(a)
    (True, 3)
    """
    hashes = _shingles(text, words)
    factors, terms = _permutations(bands * rows)
    smallest = np.full(bands * rows, np.iinfo(np.uint64).max, np.uint64)
    for begin in range(0, len(hashes), 1024):
        some = hashes[begin : begin + 1024, None] * factors + terms
        smallest = np.minimum(smallest, some.min(axis=0))
    for band, signature in enumerate(smallest.reshape(bands, rows)):
        yield xxhash.xxh3_128_digest(signature.astype("<u8").tobytes(), seed=band)


def _shingles(text: str, length: int) -> npt.NDArray[Any]:
    words = _WORD.findall(text.lower())
    count = max(1, len(words) - length + 1)
    joined = (" ".join(words[begin : begin + length]) for begin in range(count))
    found = {xxhash.xxh3_64_intdigest(shingle.encode(errors="surrogatepass")) for shingle in joined}
    return np.fromiter(found, np.uint64, len(found))


@functools.lru_cache(maxsize=4)
def _permutations(count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    factors = [xxhash.xxh3_64_intdigest(f"factor {number}".encode()) | 1 for number in range(count)]
    terms = [xxhash.xxh3_64_intdigest(f"term {number}".encode()) for number in range(count)]
    return np.array(factors, np.uint64), np.array(terms, np.uint64)
