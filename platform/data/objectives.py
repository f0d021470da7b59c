"""What an unsupervised example is: a piece of text, corrupted, to inputs and targets (Raffel et al. 2020, section 3.3).

    text               Thank you for inviting me to your party last week
    span_corruption    Thank you <0> me to your party <1>       <0> for inviting <1> last week
    replace_spans      Thank you <0> me to <1> party last week  <0> for inviting <1> your <2>
    drop_tokens        Thank you me to party last week          for inviting your
    bert_style         Thank you <0> <0> me to apple party ...  the text
    mass_style         Thank you <0> <0> me to <0> party ...    the text
    prefix_lm          Thank you for inviting                   me to your party last week
    deshuffling        party me for your to . last you ...      the text
    lm                                                          the text

`span_corruption` draws its noise as spans (section 3.1.4), all others with noise draw it token by token. Each run of
noise becomes one sentinel in the inputs, each run of kept text one in the targets. A mask of spans begins with kept
text and ends in noise, so its targets have no closing sentinel; the paper's figure shows one, and `closing_sentinel`
adds it. EOS is added later, by the stream.

An objective works on a block of pieces at once. Its randomness comes from one 64-bit key per piece. `pieces.py` tells
how text is cut into pieces; `concatenates` says whether the released code joins documents first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.ragged import Int64, Ragged, offsets_of, ranges
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.random_bits import bits, derive, integers, uniform

Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]

FIRST_PIECE = 3
"""The first id that stands for text: padding, EOS and unknown come before it."""


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


def random_spans(keys: UInt64, length: int, noise_density: float, mean_noise_span_length: float) -> tuple[Int64, Int64]:
    """The lengths of kept and of noise spans, which alternate, kept first: [keys, spans] each.

    Kept and noise tokens are cut into equally many random spans. Pieces have at least two tokens.
    """
    noise, spans = noise_counts(length, noise_density, mean_noise_span_length)
    spans = min(spans, length - noise)
    noise_lengths = random_segment_lengths(derive(keys, 0), noise, spans)
    return random_segment_lengths(derive(keys, 1), length - noise, spans), noise_lengths


def _alternating(kept: Int64, noise: Int64) -> Bool:
    """Which tokens are noise: [pieces, tokens]."""
    lengths = np.stack([kept, noise], axis=2).reshape(-1)  # kept, noise, kept, noise ... of every piece
    is_noise = np.tile(np.array([False, True]), len(lengths) // 2)
    return np.repeat(is_noise, lengths).reshape(len(kept), -1)


def random_spans_noise_mask(keys: UInt64, length: int, noise_density: float, mean_noise_span_length: float) -> Bool:
    """Which tokens are noise, for pieces of one length: [keys, length].

    The first token is never noise and the last always is (a piece of one token has no noise).
    """
    whole = random_spans(keys, max(length, 2), noise_density, mean_noise_span_length)
    return _alternating(*whole)[:, :length]


def iid_noise_mask(pieces: Ragged, keys: UInt64, noise_density: float) -> Bool:
    """Every token is noise with the same probability, whatever its neighbours are: [tokens]."""
    return np.asarray(_per_token(uniform, pieces, keys) < noise_density)


def random_prefixes(lengths: Int64, keys: UInt64) -> Int64:
    """For pieces of these lengths a prefix's, uniform in [1, length - 1]; 0 for a piece of one token."""
    most = np.maximum(lengths - 1, 0)
    return np.minimum(1 + integers(keys, 0, most).astype(np.int64), most)


def random_prefix_mask(pieces: Ragged, keys: UInt64) -> Bool:
    """The tokens of a random prefix of every piece: [tokens]."""
    return np.asarray(_positions(pieces) < np.repeat(random_prefixes(pieces.lengths, keys), pieces.lengths))


def noise_span_to_unique_sentinel(pieces: Ragged, mask: Bool, first_sentinel: int) -> Ragged:
    """Replace every run of noise by one sentinel; sentinels count down. `mask` is [tokens].

    >>> pieces, mask = Ragged.from_lists([[7, 8, 9, 10]]), np.array([False, True, True, False])
    >>> noise_span_to_unique_sentinel(pieces, mask, first_sentinel=99).to_lists()
    [[7, 99, 10]]
    >>> noise_span_to_unique_sentinel(pieces, ~mask, first_sentinel=99).to_lists()
    [[99, 8, 9, 98]]
    """
    after_noise = np.zeros_like(mask)
    after_noise[1:] = mask[:-1]
    after_noise[pieces.offsets[:-1][pieces.lengths > 0]] = False
    first = mask & ~after_noise
    runs = np.diff(_before(first)[pieces.offsets])
    values = pieces.values.copy()
    values[first] = first_sentinel - ranges(np.zeros_like(runs), runs)
    return _chosen(pieces, values, ~(mask & after_noise))


def noise_token_to_sentinel(pieces: Ragged, mask: Bool, sentinel: int) -> Ragged:
    """Replace every token of noise by the same sentinel.

    >>> noise_token_to_sentinel(Ragged.from_lists([[7, 8, 9]]), np.array([False, True, True]), 99).to_lists()
    [[7, 99, 99]]
    """
    return Ragged(np.where(mask, sentinel, pieces.values).astype(np.int32), pieces.offsets)


def drop_noise_tokens(pieces: Ragged, mask: Bool) -> Ragged:
    """Leave the noise out.

    >>> drop_noise_tokens(Ragged.from_lists([[7, 8, 9]]), np.array([False, True, True])).to_lists()
    [[7]]
    """
    return _chosen(pieces, pieces.values, ~mask)


def permute_tokens(pieces: Ragged, keys: UInt64) -> Ragged:
    """The tokens of every piece in a random order, every order equally likely."""
    piece_of = np.repeat(np.arange(len(pieces)), pieces.lengths)
    return Ragged(pieces.values[np.lexsort((_per_token(bits, pieces, keys), piece_of))], pieces.offsets)


def _blank(lengths: Int64) -> Ragged:
    """Pieces of these lengths, whatever stands in them."""
    return Ragged(np.zeros(int(lengths.sum()), dtype=np.int32), offsets_of(lengths))


def _positions(pieces: Ragged) -> Int64:
    return ranges(np.zeros(len(pieces), dtype=np.int64), pieces.lengths)


def _per_token(draw: Callable[..., npt.NDArray[Any]], pieces: Ragged, keys: UInt64, *more: int) -> npt.NDArray[Any]:
    """One draw for every token, from its piece's key and its place in the piece."""
    return draw(np.repeat(keys, pieces.lengths), _positions(pieces), *more)


def _chosen(pieces: Ragged, values: npt.NDArray[Any], kept: Bool) -> Ragged:
    return Ragged(values[kept].astype(np.int32, copy=False), _before(kept)[pieces.offsets])


def _before(mask: Bool) -> Int64:
    """How many are true before each place, and at the end how many there are."""
    return offsets_of(mask.view(np.int8))


class Objective(Protocol):
    """Turns pieces of text into inputs and targets, both without EOS."""

    concatenates: ClassVar[bool]
    """Whether the released code joins documents before it cuts them into pieces for this objective."""
    fixed_lengths: ClassVar[bool]
    """Whether the lengths of an example follow from its piece's, so that chance has no part in them."""

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """How many raw tokens a piece has so that its example fits; ConfigError where targets cannot fit."""
        ...

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """Inputs and targets of every piece; `keys` [pieces] decide everything random.

        A side may be empty (LM has no inputs): it is an empty sequence here, and one EOS after the stream added it.
        """
        ...

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:
        """How long the inputs and targets of pieces with these lengths would be, without their tokens."""
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

    concatenates: ClassVar[bool] = True
    fixed_lengths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_density(self.noise_density)
        if self.mean_noise_span_length < 1:
            raise ConfigError(f"mean_noise_span_length is {self.mean_noise_span_length}: it must be at least 1")

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
        if len(lengths) and (lengths == lengths[0]).all():
            return self._corrupt(pieces, keys)
        groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        examples = [self._corrupt(pieces.take(group), keys[group]) for group in groups]
        place = np.argsort(np.concatenate(groups)) if groups else np.zeros(0, dtype=np.int64)
        inputs, targets = zip(*examples, strict=True) if examples else ([pieces], [pieces])
        return Ragged.concatenate(inputs).take(place), Ragged.concatenate(targets).take(place)

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:  # noqa: ARG002 (only places are random)
        """A function of the piece's length."""
        lengths, of_length = np.unique(pieces, return_inverse=True)
        sides = [self._lengths_of(length) for length in lengths.tolist()]
        inputs, targets = np.array(sides, dtype=np.int64).reshape(-1, 2)[of_length].T
        return inputs, targets

    def _lengths_of(self, length: int) -> tuple[int, int]:
        if length == 1:  # no noise, so no span to close
            return 1, 1
        noise, spans = noise_counts(length, self.noise_density, self.mean_noise_span_length)
        spans = min(spans, length - noise)
        return length - noise + spans, noise + spans + self.closing_sentinel

    def _corrupt(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        count, length = len(pieces), int(pieces.lengths[0])
        if length == 1:
            sentinels = np.full(count, self.first_sentinel, dtype=np.int32)
            return Ragged(pieces.values.astype(np.int32), pieces.offsets), Ragged(sentinels, pieces.offsets)
        kept, noise = random_spans(keys, length, self.noise_density, self.mean_noise_span_length)
        is_noise = _alternating(kept, noise).reshape(-1)
        inputs = self._with_sentinels(pieces.values[~is_noise], np.cumsum(kept, axis=1))
        ends = np.cumsum(noise, axis=1)
        places = ends if self.closing_sentinel else ends[:, :-1]
        targets = self._with_sentinels(pieces.values[is_noise], np.pad(places, ((0, 0), (1, 0))))
        return inputs, targets

    def _with_sentinels(self, tokens: npt.NDArray[Any], places: Int64) -> Ragged:
        """As many tokens of every piece, [pieces * tokens], with sentinel k put before the token at `places[:, k]`."""
        count, spans = places.shape
        width = len(tokens) // count + spans
        at = places + np.arange(spans) + np.arange(count)[:, None] * width
        values = np.empty(count * width, dtype=np.int32)
        is_text = np.ones(count * width, dtype=np.bool_)
        is_text[at] = False
        values[at] = self.first_sentinel - np.arange(spans)
        values[is_text] = tokens
        return Ragged(values, np.arange(count + 1) * width)


@dataclass(frozen=True)
class ReplaceSpans:
    """Token by token noise with unique sentinels, the baseline of the paper's study (the original's `iid_15_u_u`).

    Neighbouring noise tokens share a sentinel. The number of noise tokens is random: targets that turn out longer than
    `targets_length` are trimmed by the stream, which counts them. The original takes 512 / 192 at 15 %, 103 at 10 %,
    256 at 25 % and 512 at 50 %.
    """

    first_sentinel: int
    """id of the first sentinel; the next ones count down from it"""
    noise_density: float = 0.15
    sentinels: int | None = 100
    """how many the vocabulary has; None lets ids run on into word pieces, as the released code does"""

    concatenates: ClassVar[bool] = True
    fixed_lengths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_density(self.noise_density)

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """511 for 512/192; targets that would not hold an average example are refused."""
        length, density = _length_beside_eos("inputs_length", inputs_length), self.noise_density
        setting = f"replace_spans of {length} tokens at noise_density {density:g}"
        kept_runs = (1 - density) * (1 + (length - 1) * density)
        _check_targets(targets_length, math.ceil(length * density + kept_runs + 1), f"{setting}, on average,")
        spread = density * (1 - density)
        most = kept_runs + 4 * math.sqrt(length * spread * (1 - 3 * spread))  # four standard deviations of the runs
        if self.sentinels is not None and most > self.sentinels:
            raise ConfigError(
                f"{setting} needs about {kept_runs:.0f} sentinels and now and then {most:.0f}, but the vocabulary has "
                f"{self.sentinels}: lower inputs_length or noise_density, or set sentinels to null, so that ids run on "
                "into word pieces, as in the released code"
            )
        return length

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """Runs of noise become sentinels in the inputs, runs of kept text in the targets."""
        mask = iid_noise_mask(pieces, keys, self.noise_density)
        inputs = noise_span_to_unique_sentinel(pieces, mask, self.first_sentinel)
        return inputs, noise_span_to_unique_sentinel(pieces, ~mask, self.first_sentinel)

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:
        """Decided by the mask: what is kept and one for each run of noise, and the other way round."""
        inputs, targets = self.apply(_blank(pieces), keys)
        return inputs.lengths, targets.lengths


@dataclass(frozen=True)
class DropTokens:
    """Noise is left out of the inputs without a mark, and the targets are the noise alone (`iid_15_d_d`, 512/104)."""

    noise_density: float = 0.15

    concatenates: ClassVar[bool] = True
    fixed_lengths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_density(self.noise_density)

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """511 for 512/104; targets that would not hold an average example are refused."""
        length = _length_beside_eos("inputs_length", inputs_length)
        setting = f"drop_tokens of {length} tokens at noise_density {self.noise_density:g}, on average,"
        _check_targets(targets_length, math.ceil(length * self.noise_density + 1), setting)
        return length

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """Kept tokens, and noise tokens."""
        mask = iid_noise_mask(pieces, keys, self.noise_density)
        return drop_noise_tokens(pieces, mask), drop_noise_tokens(pieces, ~mask)

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:
        """Decided by the mask."""
        inputs, targets = self.apply(_blank(pieces), keys)
        return inputs.lengths, targets.lengths


@dataclass(frozen=True)
class MassStyle:
    """Every noise token becomes the first sentinel, and the targets are the whole text (`iid_15_m_f`, 512/512)."""

    first_sentinel: int
    noise_density: float = 0.15

    concatenates: ClassVar[bool] = True
    fixed_lengths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_density(self.noise_density)

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """511 for 512/512: inputs and targets are both as long as the piece."""
        return _length_of_whole_text(inputs_length, targets_length, "mass_style")

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """The text with sentinels in it, and the text."""
        mask = iid_noise_mask(pieces, keys, self.noise_density)
        return noise_token_to_sentinel(pieces, mask, self.first_sentinel), pieces

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:  # noqa: ARG002 (nothing about them is random)
        """Both as long as the piece."""
        return pieces, pieces


@dataclass(frozen=True)
class BertStyle:
    """As MASS style, but a tenth of the noise tokens become random tokens (`iid_15_r10s90_f`, 512/512).

    A random token is any id from 3 on, sentinels included, as in the released code. Sentinels are the last ids of the
    vocabulary, so the first of them, counted down from, is the highest id.
    """

    first_sentinel: int
    noise_density: float = 0.15
    random_probability: float = 0.1

    concatenates: ClassVar[bool] = True
    fixed_lengths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_density(self.noise_density)
        if not 0 <= self.random_probability <= 1:
            raise ConfigError(f"random_probability is {self.random_probability}: it must be from 0 to 1")

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """511 for 512/512: inputs and targets are both as long as the piece."""
        return _length_of_whole_text(inputs_length, targets_length, "bert_style")

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """The text with sentinels and random tokens in it, and the text."""
        mask = iid_noise_mask(pieces, derive(keys, 0), self.noise_density)
        masked = noise_token_to_sentinel(pieces, mask, self.first_sentinel)
        is_random = mask & (_per_token(uniform, pieces, derive(keys, 1)) < self.random_probability)
        ids = _per_token(integers, pieces, derive(keys, 2), self.first_sentinel + 1 - FIRST_PIECE)
        inputs = np.where(is_random, FIRST_PIECE + ids.astype(np.int32), masked.values)
        return Ragged(inputs, pieces.offsets), pieces

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:  # noqa: ARG002 (nothing about them is random)
        """Both as long as the piece."""
        return pieces, pieces


@dataclass(frozen=True)
class PrefixLM:
    """The piece is cut in two at a uniformly drawn place; the first part is the inputs, the rest the targets."""

    concatenates: ClassVar[bool] = False
    fixed_lengths: ClassVar[bool] = False

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """511 for 512/512: a prefix of one token leaves 510 for the targets."""
        length = _length_beside_eos("inputs_length", inputs_length)
        _check_targets(targets_length, max(length, 2), f"prefix_lm of {length} tokens")
        return length

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """Prefix and rest; a piece of one token is all rest."""
        prefix = random_prefix_mask(pieces, keys)
        return drop_noise_tokens(pieces, ~prefix), drop_noise_tokens(pieces, prefix)

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:
        """The prefix's, and the rest."""
        prefixes = random_prefixes(pieces, keys)
        return prefixes, pieces - prefixes


@dataclass(frozen=True)
class Deshuffling:
    """The inputs are the text's tokens in a random order, the targets the text (`all_permute`, 512/512)."""

    concatenates: ClassVar[bool] = False
    fixed_lengths: ClassVar[bool] = True

    def piece_length(self, inputs_length: int, targets_length: int) -> int:
        """511 for 512/512: inputs and targets are both as long as the piece."""
        return _length_of_whole_text(inputs_length, targets_length, "deshuffling")

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:
        """The text permuted, and the text."""
        return permute_tokens(pieces, keys), pieces

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:  # noqa: ARG002 (nothing about them is random)
        """Both as long as the piece."""
        return pieces, pieces


@dataclass(frozen=True)
class LanguageModel:
    """The whole text is targets; there are no inputs, so an encoder reads nothing but EOS."""

    concatenates: ClassVar[bool] = True
    fixed_lengths: ClassVar[bool] = True

    def piece_length(self, inputs_length: int, targets_length: int) -> int:  # noqa: ARG002 (there are no inputs)
        """511 for targets of 512."""
        return _length_beside_eos("targets_length", targets_length)

    def apply(self, pieces: Ragged, keys: UInt64) -> tuple[Ragged, Ragged]:  # noqa: ARG002 (nothing is random)
        """Nothing, and the text."""
        return Ragged(pieces.values[:0], np.zeros(len(pieces) + 1, dtype=np.int64)), pieces

    def lengths(self, pieces: Int64, keys: UInt64) -> tuple[Int64, Int64]:  # noqa: ARG002 (nothing is random)
        """Nothing, and the piece's."""
        return np.zeros_like(pieces), pieces


def _check_density(noise_density: float) -> None:
    if not 0 < noise_density < 1:
        raise ConfigError(f"an objective needs noise_density between 0 and 1, found {noise_density}")


def _length_beside_eos(name: str, length: int) -> int:
    if length < 2:
        raise ConfigError(f"{name} is {length}: no text fits beside EOS; raise {name}")
    return length - 1


def _check_targets(targets_length: int, needed: int, setting: str) -> None:
    if targets_length < needed:
        raise ConfigError(f"targets_length is {targets_length}, but {setting} needs {needed}: raise targets_length")


def _length_of_whole_text(inputs_length: int, targets_length: int, name: str) -> int:
    length = _length_beside_eos("inputs_length", inputs_length)
    _check_targets(targets_length, length + 1, f"{name} of {length} tokens")
    return length


OBJECTIVES = {
    "span_corruption": SpanCorruption,
    "replace_spans": ReplaceSpans,
    "drop_tokens": DropTokens,
    "bert_style": BertStyle,
    "mass_style": MassStyle,
    "prefix_lm": PrefixLM,
    "deshuffling": Deshuffling,
    "lm": LanguageModel,
}


def parameter_names(name: str) -> tuple[str, ...]:
    """The parameters that an objective takes from a recipe.

    >>> parameter_names("drop_tokens"), parameter_names("lm")
    (('noise_density',), ())
    """
    return tuple(_parameter_types(name))


def _parameter_types(name: str) -> dict[str, str]:
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", name, OBJECTIVES)
    kind: Any = OBJECTIVES[name]
    return {field.name: str(field.type) for field in fields(kind) if field.name != "first_sentinel"}


def make_objective(name: str, first_sentinel: int, parameters: Mapping[str, Any]) -> Objective:
    """An objective by name, with its parameters as a recipe gives them.

    >>> make_objective("span_corruption", 999, {"noise_density": 0.3}).piece_length(64, 64)
    79
    """
    types = _parameter_types(name)
    for parameter, value in parameters.items():
        if parameter not in types:
            raise UnknownNameError("parameter", parameter, types, where=f" of the objective {name!r}")
        wanted, fits = _TYPES[types[parameter]]
        if not fits(value):
            raise ConfigError(f"{parameter} of the objective {name!r} is {value!r}: it must be {wanted}")
    kind: Any = OBJECTIVES[name]
    always = {"first_sentinel": first_sentinel} if "first_sentinel" in kind.__dataclass_fields__ else {}
    objective: Objective = kind(**always, **parameters)
    return objective


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "float": ("a number", _is_number),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int | None": ("a whole number or null", lambda value: value is None or type(value) is int),
}
