"""Random bits from a specified counter-based generator, the same on every machine and library version.

A key is 64 bits: `key("order", 7)` is the first 8 bytes (little-endian) of BLAKE2b over the parts, each written as its
type, its length and its bytes. Word `c` of a key is SplitMix64 (Steele, Lea and Flood 2014) at counter `c`:

    z = key + (c + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    word = z ^ (z >> 31)                                        all modulo 2^64

Nothing is drawn in sequence, so any word can be had in constant time, and arrays of keys or counters broadcast.
Library distributions are not used: their values may change from one release to the next.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
IntoUInt64 = int | np.integer | npt.NDArray[np.integer]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def key(*parts: int | str) -> int:
    """A 64-bit key from words and integers; differently cut parts give different keys.

    >>> hex(key("order", 7)), key("a", "b") == key("ab")
    ('0x73f49ee0e6460f32', False)
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else str(int(part)).encode()
        digest.update((b"s" if isinstance(part, str) else b"i") + len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def _words(value: IntoUInt64) -> UInt64:
    if isinstance(value, int):
        return np.asarray(value & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    return np.asarray(value).astype(np.uint64)


def bits(key: IntoUInt64, counter: IntoUInt64) -> UInt64:
    """Word `counter` of `key`; both broadcast.

    >>> [hex(int(word)) for word in bits(0, np.arange(2))]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    with np.errstate(over="ignore"):
        z = _words(key) + (_words(counter) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        return np.asarray(z ^ (z >> np.uint64(31)))


def derive(key: IntoUInt64, *counters: IntoUInt64) -> UInt64:
    """A new key from a key and integers, one after the other: derive(k, a, b) = bits(bits(k, a), b)."""
    value = _words(key)
    for counter in counters:
        value = bits(value, counter)
    return value


def integers(key: IntoUInt64, counter: IntoUInt64, bound: IntoUInt64) -> UInt64:
    """Integers in [0, bound) for bounds below 2^32: the word's upper 32 bits times the bound, shifted down by 32."""
    return np.asarray(((bits(key, counter) >> np.uint64(32)) * _words(bound)) >> np.uint64(32))


def uniform(key: IntoUInt64, counter: IntoUInt64) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1): the word's upper 53 bits over 2^53."""
    return np.asarray((bits(key, counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def order(key: IntoUInt64, count: int) -> npt.NDArray[np.int64]:
    """A permutation of 0 ... count - 1 held in memory: positions sorted (stably) by their words."""
    return np.argsort(bits(key, np.arange(count)), kind="stable")
