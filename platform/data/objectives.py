"""What an unsupervised example is: span corruption (Raffel et al. 2020, section 3.1.4; the released code's details).

    text     The quick brown fox jumps over the lazy dog
    noise                ^^^^^ ^^^                 ^^^^ ^^^
    inputs   The quick <0> jumps over the <1>
    targets  <0> brown fox <1> lazy dog

Each run of noise becomes one sentinel in the inputs, each run of kept text one in the targets. A mask begins with
kept text and ends in noise, so the targets have no closing sentinel; the paper's figure shows one, and
`closing_sentinel` adds it. EOS is added later, by the stream.

An objective works on a block of pieces at once. Its randomness comes from one 64-bit key per piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.ragged import Int64, Ragged, offsets_of
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.random_bits import bits, derive

Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]


def random_spans_helper(
    inputs_length: int,
    noise_density: float,
    mean_noise_span_length: float,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> tuple[int, int]:
    """The most raw tokens whose corrupted inputs fit, with EOS, and how long their targets are, with EOS.

    >>> random_spans_helper(512, noise_density=0.15, mean_noise_span_length=3.0)
    (568, 114)
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_noise_span_length)
        inputs = tokens - noise + spans * extra_tokens_per_span_inputs + 1
        return inputs, noise + spans * extra_tokens_per_span_targets + 1

    tokens = inputs_length - 1
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    inputs, targets = lengths(tokens)
    # the released code makes inputs and targets equally long at this density
    if noise_density == 0.5 and targets > inputs:
        return tokens - 1, targets - 1
    return tokens, targets


def noise_counts(length: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """Noise tokens and noise spans of a piece; both are fixed, only the places are random. In float32, as the original.

    >>> noise_counts(568, 0.15, 3.0), noise_counts(2, 0.15, 3.0)
    ((85, 28), (1, 1))
    """
    length = max(length, 2)
    tokens = int(np.round(np.float32(length) * np.float32(noise_density)))
    tokens = min(max(tokens, 1), length - 1)
    spans = max(int(np.round(np.float32(tokens) / np.float32(mean_noise_span_length))), 1)
    return tokens, spans


def random_segment_lengths(keys: UInt64, items: int, segments: int) -> Int64:
    """Cut `items` into `segments` parts of at least one, every way equally likely: [keys, segments].

    The parts begin after the gaps whose words are smallest.
    """
    gaps = items - 1
    words = bits(keys[:, None], np.arange(gaps))
    if segments < items:
        chosen = np.sort(np.argpartition(words, segments - 1, axis=1)[:, : segments - 1], axis=1)
    else:
        chosen = np.broadcast_to(np.arange(gaps), (len(keys), gaps))
    ends = np.pad(chosen + 1, ((0, 0), (1, 1)), constant_values=((0, 0), (0, items)))
    return np.asarray(np.diff(ends, axis=1))


def random_spans_noise_mask(keys: UInt64, length: int, noise_density: float, mean_noise_span_length: float) -> Bool:
    """Which tokens are noise, for pieces of one length: [keys, length].

    Kept and noise tokens are cut into equally many random spans, which alternate, kept first: so the first token is
    never noise and the last always is (a piece of one token has no noise).
    """
    whole = max(length, 2)
    noise, spans = noise_counts(length, noise_density, mean_noise_span_length)
    spans = min(spans, whole - noise)
    noise_lengths = random_segment_lengths(derive(keys, 0), noise, spans)
    kept_lengths = random_segment_lengths(derive(keys, 1), whole - noise, spans)
    lengths = np.stack([kept_lengths, noise_lengths], axis=2).reshape(-1)  # kept, noise, kept, noise ... of every piece
    is_noise = np.tile(np.array([False, True]), len(lengths) // 2)
    return np.repeat(is_noise, lengths).reshape(len(keys), whole)[:, :length]


def noise_span_to_unique_sentinel(tokens: Int32, mask: Bool, first_sentinel: int) -> Ragged:
    """Replace every run of noise by one sentinel; sentinels count down. `tokens` and `mask` are [pieces, length].

    >>> tokens, mask = np.array([[7, 8, 9, 10]]), np.array([[0, 1, 1, 0]], dtype=bool)
    >>> noise_span_to_unique_sentinel(tokens, mask, first_sentinel=99).to_lists()
    [[7, 99, 10]]
    >>> noise_span_to_unique_sentinel(tokens, ~mask, first_sentinel=99).to_lists()
    [[99, 8, 9, 98]]
    """
    after_noise = np.zeros_like(mask)
    after_noise[:, 1:] = mask[:, :-1]
    first = mask & ~after_noise
    kept = ~(mask & after_noise)
    sentinels = first_sentinel + 1 - np.cumsum(first, axis=1)
    replaced = np.where(first, sentinels, tokens).astype(np.int32)
    return Ragged(replaced[kept], offsets_of(kept.sum(axis=1)))


class Objective(Protocol):
    """Turns pieces of text into inputs and targets, both without EOS."""

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """How many raw tokens a piece has so that its example fits; ConfigError where targets cannot fit."""
        ...

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """Inputs and targets of every piece; `keys` [pieces] decide everything random."""
        ...


@dataclass(frozen=True)
class SpanCorruption:
    """Random spans with unique sentinels, the objective of the released models."""

    first_sentinel: int
    """id of the first sentinel; the next ones count down from it"""
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    closing_sentinel: bool = False
    """end the targets with one more sentinel, as the paper's figure does and the released code does not"""
    sentinels: int | None = 100
    """how many the vocabulary has; None lets ids run on into word pieces, as the released code does"""

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1 or self.mean_noise_span_length < 1:
            raise ConfigError(
                f"span_corruption needs noise_density between 0 and 1 and mean_noise_span_length of at least 1, "
                f"found {self.noise_density} and {self.mean_noise_span_length}"
            )

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """568 for 512/114 at the default density and span length."""
        length, needed = random_spans_helper(inputs_length, self.noise_density, self.mean_noise_span_length)
        needed += self.closing_sentinel
        setting = f"{inputs_length} input tokens at noise_density {self.noise_density:g} and " + (
            f"mean_noise_span_length {self.mean_noise_span_length:g}"
        )
        if length < 1:
            raise ConfigError(f"inputs_length is {inputs_length}: no text fits beside EOS; raise inputs_length")
        if targets_length < needed:
            raise ConfigError(f"targets_length is {targets_length}, but {setting} need {needed}: raise targets_length")
        _, spans = noise_counts(length, self.noise_density, self.mean_noise_span_length)
        if self.sentinels is not None and spans + self.closing_sentinel > self.sentinels:
            raise ConfigError(
                f"{setting} need {spans + self.closing_sentinel} sentinels, but the vocabulary has {self.sentinels}: "
                "lower inputs_length or noise_density, or raise mean_noise_span_length"
            )
        return length

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """Pieces of one length are worked on together; most are of one length."""
        lengths = pieces.lengths
        groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        examples = [self._corrupt(pieces.take(group), keys[group]) for group in groups]
        place = np.argsort(np.concatenate(groups)) if groups else np.zeros(0, dtype=np.int64)
        inputs, targets = zip(*examples, strict=True) if examples else ([pieces], [pieces])
        return Ragged.concatenate(inputs).take(place), Ragged.concatenate(targets).take(place)

    def _corrupt(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        length = int(pieces.lengths[0])
        tokens = pieces.values.reshape(len(pieces), length)
        mask = random_spans_noise_mask(keys, length, self.noise_density, self.mean_noise_span_length)
        inputs = noise_span_to_unique_sentinel(tokens, mask, self.first_sentinel)
        if self.closing_sentinel:  # one more kept token, of any id, becomes the closing sentinel
            tokens, mask = np.pad(tokens, ((0, 0), (0, 1))), np.pad(mask, ((0, 0), (0, 1)))
        return inputs, noise_span_to_unique_sentinel(tokens, ~mask, self.first_sentinel)


OBJECTIVES = {"span_corruption": SpanCorruption}


def make_objective(name: str, first_sentinel: int, parameters: Mapping[str, Any]) -> Objective:
    """An objective by name, with its parameters as a recipe gives them.

    >>> make_objective("span_corruption", 999, {"noise_density": 0.3}).piece_length(64, 64)
    79
    """
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    kind = OBJECTIVES[name]
    known = set(kind.__dataclass_fields__) - {"first_sentinel"}
    for parameter in parameters:
        if parameter not in known:
            raise UnknownNameError("parameter", parameter, known, where=f" of the objective {name!r}")
    return kind(first_sentinel=first_sentinel, **parameters)
