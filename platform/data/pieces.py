"""Unsupervised text in pieces: where in a shard's flat tokens every example of a given length lies.

    contiguous   the shard's text without separators, cut in order; only the shard's last piece may be short
    original     as the released code: 128 documents at a time are joined and cut, and the last piece of each such group
                 is short; of a document of more than 65,536 tokens one stretch of 65,536 is taken. Objectives that do
                 not concatenate cut each document by itself

Documents of 3, 9 and 4 tokens, pieces of 5:

    contiguous             [d0 d0 d0 d1 d1] [d1 x 5] [d1 d1 d2 d2 d2] [d2]
    original, in a group   the same; the next group begins with a piece of its own
    original, one by one   [d0 x 3] [d1 x 5] [d1 x 4] [d2 x 4]

Nothing is stored: the pieces of a shard follow from its documents' lengths when it is opened. A task may be held to its
first tokens or pieces, and pieces that overlap with evaluation examples may be left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.cache import TokenCache
from mixtura.platform.data.ragged import Int64, Ragged, offsets_of, ranges
from mixtura.platform.random_bits import derive, integers, key

DOCUMENTS_JOINED = 128
"""The released code joins so many documents before it cuts them (`reduce_concat_tokens`)."""

LONGEST_STRETCH = 65_536
"""Of a longer document one stretch of so many tokens is taken (`select_random_chunk`)."""

_STRETCHES = key("stretch of a long document")

CHUNKS = ("contiguous", "original")


class Pieces(Protocol):
    """The pieces of every shard of a task."""

    @property
    def shards(self) -> int:
        """Shards that have pieces."""

    def count(self, shard: int) -> int:
        """Pieces of a shard; waits where the shard is still being prepared."""

    def lengths(self, shard: int, pieces: Int64) -> Int64:
        """Tokens of these pieces."""

    def fetch(self, shard: int, pieces: Int64) -> Ragged:
        """Their tokens."""

    def spans(self, shard: int) -> tuple[Int64, Int64]:
        """Where every piece begins among the shard's tokens, and behind which token it ends."""


def make_pieces(
    cache: TokenCache,
    length: int,
    *,
    chunks: str = "contiguous",
    concatenates: bool = True,
    first_tokens: int | None = None,
) -> Pieces:
    """The pieces of `length` tokens of a cache, cut in the way that `chunks` names."""
    limit = None if first_tokens is None else _TokenLimit(cache, first_tokens)
    if chunks == "contiguous":
        return ContiguousPieces(cache, length, limit)
    return OriginalPieces(cache, length, concatenates, limit)


class _TokenLimit:
    """The first tokens of a cache in the order of its shards: how many of each shard's count."""

    def __init__(self, cache: TokenCache, tokens: int) -> None:
        self.kept: list[int] = []
        while tokens > 0 and len(self.kept) < cache.count:
            here = min(tokens, int(cache.entry(len(self.kept))["tokens"]))
            self.kept.append(here)
            tokens -= here

    @property
    def shards(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class ContiguousPieces:
    """A shard's text cut in order, across documents and without a mark between them."""

    cache: TokenCache
    length: int
    limit: _TokenLimit | None = None

    @property
    def shards(self) -> int:
        """Shards that have pieces."""
        return self.cache.count if self.limit is None else self.limit.shards

    def _tokens(self, shard: int) -> int:
        return int(self.cache.entry(shard)["tokens"]) if self.limit is None else self.limit.kept[shard]

    def count(self, shard: int) -> int:
        """As many as it takes to hold the shard's tokens."""
        return -(-self._tokens(shard) // self.length)

    def lengths(self, shard: int, pieces: Int64) -> Int64:
        """All alike but for the shard's last one."""
        return np.minimum(self.length, self._tokens(shard) - pieces * self.length)

    def spans(self, shard: int) -> tuple[Int64, Int64]:
        """One behind the other."""
        pieces = np.arange(self.count(shard))
        return pieces * self.length, pieces * self.length + self.lengths(shard, pieces)

    def fetch(self, shard: int, pieces: Int64) -> Ragged:
        """Slices of the shard's tokens."""
        tokens, lengths = self.cache.column(shard, "tokens").values, self.lengths(shard, pieces)
        if len(lengths) and int(lengths.min()) == self.length:
            rows = tokens[(pieces * self.length)[:, None] + np.arange(self.length)]
            return Ragged(rows.reshape(-1), np.arange(len(pieces) + 1) * self.length)
        return Ragged(tokens[ranges(pieces * self.length, lengths)], offsets_of(lengths))


@dataclass(frozen=True)
class _Cut:
    """The pieces of one shard. They are cut from its kept tokens, which are numbered without those left out."""

    starts: Int64
    """of every piece, among the kept tokens"""
    lengths: Int64
    stretches: Int64 | None
    """where each stretch of kept tokens begins among the kept, and below it in the shard: [2, stretches]; None where
    all tokens are kept"""

    def in_shard(self, places: Int64) -> Int64:
        """Places among the kept tokens as places in the shard."""
        if self.stretches is None:
            return places
        begins, really = self.stretches
        stretch = np.searchsorted(begins, places, side="right") - 1
        return np.asarray(places - begins[stretch] + really[stretch])


@dataclass(frozen=True)
class OriginalPieces:
    """The released code's pieces. Which stretch of a long document is taken is fixed, where the original draws anew in
    every epoch: an epoch always has the same pieces."""

    cache: TokenCache
    length: int
    concatenates: bool
    limit: _TokenLimit | None = None

    @property
    def shards(self) -> int:
        """Shards that have pieces."""
        return self.cache.count if self.limit is None else self.limit.shards

    def count(self, shard: int) -> int:
        """From the lengths of the shard's documents."""
        return len(self._cut(shard).lengths)

    def lengths(self, shard: int, pieces: Int64) -> Int64:
        """Short where a group of documents, or a document, ends."""
        return self._cut(shard).lengths[pieces]

    def fetch(self, shard: int, pieces: Int64) -> Ragged:
        """Tokens of the shard, without those that its pieces leave out."""
        cut, tokens = self._cut(shard), self.cache.column(shard, "tokens").values
        lengths = cut.lengths[pieces]
        return Ragged(tokens[cut.in_shard(ranges(cut.starts[pieces], lengths))], offsets_of(lengths))

    def spans(self, shard: int) -> tuple[Int64, Int64]:
        """With the tokens that are left out inside a piece."""
        cut = self._cut(shard)
        return cut.in_shard(cut.starts), cut.in_shard(cut.starts + cut.lengths - 1) + 1

    @functools.cached_property
    def _cut(self) -> Callable[[int], _Cut]:
        return functools.lru_cache(maxsize=32)(self._cut_shard)

    def _cut_shard(self, shard: int) -> _Cut:
        offsets = self.cache.column(shard, "tokens").offsets
        if self.limit is not None:
            offsets = np.minimum(offsets, self.limit.kept[shard])
        lengths, starts = np.diff(offsets), offsets[:-1]
        documents = np.flatnonzero(lengths > 0)
        lengths, starts = lengths[documents], starts[documents]
        long = np.flatnonzero(lengths > LONGEST_STRETCH)
        if len(long):
            choices = -(-lengths[long] // LONGEST_STRETCH)
            chosen = integers(derive(_STRETCHES, shard, documents[long]), 0, choices).astype(np.int64)
            starts[long] += chosen * LONGEST_STRETCH
            lengths[long] = np.minimum(LONGEST_STRETCH, lengths[long] - chosen * LONGEST_STRETCH)
        begins = offsets_of(lengths)
        stretches = np.stack([begins[:-1], starts]) if len(long) else None
        groups = begins[:-1][:: DOCUMENTS_JOINED if self.concatenates else 1]
        return _cut_groups(np.append(groups, begins[-1]), self.length, stretches)


def _cut_groups(borders: Int64, length: int, stretches: Int64 | None) -> _Cut:
    """Cut the tokens between two borders by themselves."""
    counts = -(-np.diff(borders) // length)
    starts = ranges(np.zeros_like(counts), counts) * length + np.repeat(borders[:-1], counts)
    lengths = np.minimum(length, np.repeat(borders[1:], counts) - starts)
    return _Cut(starts, lengths, stretches)


@dataclass(frozen=True)
class PiecesWithout:
    """Pieces but for those that hold a token of given ranges.

    `ranges_of` gives the ranges [start, end) of a shard's flat tokens, sorted and apart from each other: int64 [k, 2].
    """

    pieces: Pieces
    ranges_of: Callable[[int], npt.NDArray[np.int64]]

    @property
    def shards(self) -> int:
        """Shards of the pieces."""
        return self.pieces.shards

    def count(self, shard: int) -> int:
        """Pieces that stay."""
        return len(self._kept(shard))

    def lengths(self, shard: int, pieces: Int64) -> Int64:
        """Of those that stay."""
        return self.pieces.lengths(shard, self._kept(shard)[pieces])

    def fetch(self, shard: int, pieces: Int64) -> Ragged:
        """Of those that stay."""
        return self.pieces.fetch(shard, self._kept(shard)[pieces])

    def spans(self, shard: int) -> tuple[Int64, Int64]:
        """Of those that stay."""
        starts, ends = self.pieces.spans(shard)
        return starts[self._kept(shard)], ends[self._kept(shard)]

    @functools.cached_property
    def _kept(self) -> Callable[[int], Int64]:
        return functools.lru_cache(maxsize=256)(self._find_kept)

    def _find_kept(self, shard: int) -> Int64:
        starts, ends = self.pieces.spans(shard)
        found = self.ranges_of(shard)
        # a piece is touched by the first range that ends behind its start, or by none
        after = np.searchsorted(found[:, 1], starts, side="right")
        begins = np.append(found[:, 0], np.iinfo(np.int64).max)
        return np.flatnonzero(begins[after] >= ends)
