"""Feature converters: packed rows into the arrays that a model takes, with SeqIO's names.

Two examples in one row (EOS is 1):

    inputs [7, 8, 5, 1] and [8, 4, 1]     targets [3, 9, 1] and [4, 1]

`encoder_decoder`, with inputs_length 8 and targets_length 6:

    encoder_input_tokens    7  8  5  1  8  4  1  0    ids the encoder reads; 0 is padding
    encoder_segment_ids     1  1  1  1  2  2  2  0    which example of the row; attention stays inside one
    encoder_positions       0  1  2  3  0  1  2  0    index within the example
    decoder_target_tokens   3  9  1  4  1  0          ids to predict
    decoder_input_tokens    0  3  9  0  4  0          targets shifted right by one, beginning with 0 in each example
    decoder_loss_weights    1  1  1  1  1  0          1 where a prediction counts, 0 on padding
    decoder_segment_ids     1  1  1  2  2  0
    decoder_positions       0  1  2  0  1  0

`prefix_lm`: one stack reads inputs and targets as one text, in rows of inputs_length + targets_length = 14:

    decoder_target_tokens     7  8  5  1  3  9  1  8  4  1  4  1  0  0
    decoder_input_tokens      0  7  8  5  1  3  9  0  8  4  1  4  0  0
    decoder_loss_weights      0  0  0  0  1  1  1  0  0  0  1  1  0  0    1 on targets only, unless asked otherwise
    decoder_segment_ids       1  1  1  1  1  1  1  2  2  2  2  2  0  0
    decoder_positions         0  1  2  3  4  5  6  0  1  2  3  4  0  0
    decoder_causal_attention  1  1  1  1  1  0  0  1  1  1  1  0  0  0    1 where attention goes both ways

The 1s of decoder_causal_attention are one more than the inputs: the position that reads the last input, and predicts
the first target, still belongs to the prefix.

`lm`: the same rows, but attention only looks back and the loss is over the whole text, so that there is no
decoder_causal_attention and decoder_loss_weights has twelve 1s. Examples may be without inputs, as the texts of a
plain language model are; a row is then their targets alone, which is what SeqIO's LM converter knows.

All are int32 [rows, length]. Beside them `segment_tasks` int32 [rows, most segments] has the task of segment k + 1 in
column k, and -1 where there is none. Where SeqIO does not pack, its decoder_input_tokens have the last target once
more on the first padding; nothing reads it, and here padding is 0 always.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from mixtura.platform.data.ragged import Int64, Ragged, offsets_of, ranges
from mixtura.platform.errors import ConfigError, DataError, UnknownNameError

Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]

FEATURES = (
    "encoder_input_tokens",
    "encoder_segment_ids",
    "encoder_positions",
    "decoder_target_tokens",
    "decoder_input_tokens",
    "decoder_loss_weights",
    "decoder_segment_ids",
    "decoder_positions",
    "decoder_causal_attention",
)
"""Every feature that there is, in the order of fingerprints."""


@dataclass(frozen=True)
class PackedRows:
    """Rows of segments: the tokens of every segment, and how many segments each row has."""

    inputs: Ragged
    """tokens of every segment, row by row"""
    targets: Ragged
    tasks: Ragged
    """task index of every segment, by row"""


class _Grid:
    """Segments laid out in rows of one length, where the padding that ends a row is a run of positions as well.

    Segments of 3 and 2 tokens in a first row and of 4 in a second, in rows of 6, are runs of 3 2 1 and 4 2 positions:
    whatever belongs to a segment is then repeated over its run in one call, without an index for every token.
    """

    def __init__(self, lengths: Int64, row_offsets: Int64, length: int) -> None:
        """`row_offsets` [rows + 1]: the number of the first segment of every row, and how many segments there are."""
        row_lengths = np.diff(offsets_of(lengths)[row_offsets])
        longest = int(row_lengths.max(initial=0))
        if longest > length:
            raise DataError(f"a packed row has {longest} tokens, but rows are {length} long")
        self.shape = (len(row_lengths), length)
        padding = row_offsets[1:] + np.arange(len(row_lengths))
        self._is_segment = np.ones(len(lengths) + len(row_lengths), dtype=np.bool_)
        self._is_segment[padding] = False
        self._runs = np.empty(len(self._is_segment), dtype=np.int64)
        self._runs[self._is_segment] = lengths
        self._runs[padding] = length - row_lengths

    def is_token(self) -> npt.NDArray[np.bool_]:
        """True in segments, False on padding; [rows, length]."""
        return np.repeat(self._is_segment, self._runs).reshape(self.shape)

    def spread(self, of_segments: npt.NDArray[np.integer]) -> Int32:
        """The value of every segment at each of its positions, 0 on padding; [rows, length]."""
        values = np.zeros(len(self._runs), dtype=np.int32)
        values[self._is_segment] = of_segments
        return np.repeat(values, self._runs).reshape(self.shape)

    def positions(self, out: Int32) -> None:
        """Write how far every position is from the start of its segment, 0 on padding, to `out` [rows, length]."""
        starts = offsets_of(self._runs)[:-1].astype(np.int32)
        indices = np.arange(out.size, dtype=np.int32)
        np.subtract(indices.reshape(self.shape), np.repeat(starts, self._runs).reshape(self.shape), out=out)
        out *= self.is_token()


def _expand(grid: _Grid, segments: Ragged, rows_of_segments: Ragged, arrays: int = 3) -> Int32:
    """Tokens, segment ids and positions, zero where there is nothing, and more arrays of zeros; [arrays, rows, length].

    One allocation: malloc returns a large one to the system once, then keeps its like for the next batch. Several of a
    quarter megabyte it returned every time, and half of the time went into page faults.
    """
    expanded = np.zeros((arrays, *grid.shape), dtype=np.int32)
    tokens, segment_ids, positions = expanded[:3]
    tokens[grid.is_token()] = segments.values
    first_of_row = np.repeat(rows_of_segments.offsets[:-1], rows_of_segments.lengths)
    segment_ids[:] = grid.spread(np.arange(1, len(segments) + 1) - first_of_row)
    if not segments.values.all():
        segment_ids *= tokens != 0
    grid.positions(out=positions)
    return expanded


def _decoder_features(grid: _Grid, segments: Ragged, rows_of_segments: Ragged) -> dict[str, Int32]:
    tokens, segment_ids, positions, shifted, weights = _expand(grid, segments, rows_of_segments, arrays=5)
    np.multiply(tokens[:, :-1], segment_ids[:, 1:] == segment_ids[:, :-1], out=shifted[:, 1:])
    weights[:] = tokens != 0
    return {
        "decoder_target_tokens": tokens,
        "decoder_input_tokens": shifted,
        "decoder_loss_weights": weights,
        "decoder_segment_ids": segment_ids,
        "decoder_positions": positions,
    }


def encoder_decoder_features(
    rows: PackedRows, inputs_length: int, targets_length: int, loss_on: str | None = None
) -> dict[str, Int32]:
    """Eight features; rows of inputs_length for the encoder, of targets_length for the decoder."""
    if loss_on is not None:
        raise ConfigError(f"loss_on is {loss_on!r}, which is for rows of one stack: a decoder has targets only")
    if not rows.inputs.lengths.all() or not rows.targets.lengths.all():
        raise DataError("a segment without tokens would put the segments of inputs and targets out of step")
    encoder = _Grid(rows.inputs.lengths, rows.tasks.offsets, inputs_length)
    decoder = _Grid(rows.targets.lengths, rows.tasks.offsets, targets_length)
    tokens, segment_ids, positions = _expand(encoder, rows.inputs, rows.tasks)
    return {
        "encoder_input_tokens": tokens,
        "encoder_segment_ids": segment_ids,
        "encoder_positions": positions,
        **_decoder_features(decoder, rows.targets, rows.tasks),
    }


def _joined_segments(inputs: Ragged, targets: Ragged) -> Ragged:
    """Every example as one text: its inputs, then its targets.

    >>> _joined_segments(Ragged.from_lists([[7, 1], []]), Ragged.from_lists([[3, 1], [4, 1]])).to_lists()
    [[7, 1, 3, 1], [4, 1]]
    """
    lengths = np.column_stack([inputs.lengths, targets.lengths])
    is_target = np.repeat(np.tile([False, True], len(lengths)), lengths.ravel())
    values = np.empty(len(is_target), dtype=np.int32)
    values[~is_target] = inputs.values
    values[is_target] = targets.values
    return Ragged(values, offsets_of(lengths.sum(axis=1)))


def _joined_features(rows: PackedRows, inputs_length: int, targets_length: int) -> tuple[_Grid, dict[str, Int32]]:
    """The features of rows whose segments are inputs and targets as one text, and where segments are in them."""
    for side, segments, length in (("inputs", rows.inputs, inputs_length), ("targets", rows.targets, targets_length)):
        longest = int(segments.lengths.max(initial=0))
        if longest > length:
            raise DataError(f"an example has {side} of {longest} tokens, but {side}_length is {length}: trim it first")
    if not rows.targets.lengths.all():
        raise DataError("an example without targets has nothing to learn from: leave it out before packing")
    segments = _joined_segments(rows.inputs, rows.targets)
    grid = _Grid(segments.lengths, rows.tasks.offsets, inputs_length + targets_length)
    return grid, _decoder_features(grid, segments, rows.tasks)


def prefix_lm_features(
    rows: PackedRows, inputs_length: int, targets_length: int, loss_on: str | None = None
) -> dict[str, Int32]:
    """Six features; rows of inputs_length + targets_length. An example's inputs are the prefix, and may be empty."""
    grid, features = _joined_features(rows, inputs_length, targets_length)
    positions, widths = features["decoder_positions"], grid.spread(rows.inputs.lengths)
    features["decoder_causal_attention"] = (positions <= widths) * features["decoder_loss_weights"]
    if loss_on != "all":
        features["decoder_loss_weights"] *= positions >= widths
    return features


def lm_features(
    rows: PackedRows, inputs_length: int, targets_length: int, loss_on: str | None = None
) -> dict[str, Int32]:
    """Five features; rows of inputs_length + targets_length. Inputs may be empty: inputs_length is 0 if all are."""
    grid, features = _joined_features(rows, inputs_length, targets_length)
    if loss_on == "targets":
        features["decoder_loss_weights"] *= features["decoder_positions"] >= grid.spread(rows.inputs.lengths)
    return features


@dataclass(frozen=True)
class Converter:
    """One kind of model input."""

    convert: Callable[[PackedRows, int, int, str | None], dict[str, Int32]]
    """rows, inputs_length, targets_length and what the loss is on to features"""
    joined: bool
    """Inputs and targets share one row of inputs_length + targets_length tokens. An example then takes the sum of its
    lengths, and packing has that one limit; else it has a limit for inputs and a limit for targets."""


CONVERTERS = {
    "encoder_decoder": Converter(encoder_decoder_features, joined=False),
    "prefix_lm": Converter(prefix_lm_features, joined=True),
    "lm": Converter(lm_features, joined=True),
}


def converter(kind: str) -> Converter:
    """The converter with this name."""
    if kind not in CONVERTERS:
        raise UnknownNameError("converter", kind, CONVERTERS)
    return CONVERTERS[kind]


def features_of(
    kind: str, rows: PackedRows, inputs_length: int, targets_length: int, loss_on: str | None = None
) -> dict[str, Int32]:
    """The features of one kind; see the module's docstring. `loss_on` is `targets` or `all` where one stack is not to
    count what it counts by itself."""
    return converter(kind).convert(rows, inputs_length, targets_length, loss_on)


def row_lengths(kind: str, inputs_length: int, targets_length: int) -> dict[str, int]:
    """The length of the rows of each stack that a kind of model has.

    >>> row_lengths("encoder_decoder", 512, 114), row_lengths("lm", 512, 114)
    ({'encoder': 512, 'decoder': 114}, {'decoder': 626})
    """
    if converter(kind).joined:
        return {"decoder": inputs_length + targets_length}
    return {"encoder": inputs_length, "decoder": targets_length}


def segment_tasks(tasks: Ragged) -> Int32:
    """The task of every segment of every row, padded with -1.

    >>> segment_tasks(Ragged.from_lists([[4], [2, 0]])).tolist()
    [[4, -1], [2, 0]]
    """
    counts = tasks.lengths
    result = np.full((len(counts), int(counts.max(initial=0))), -1, dtype=np.int32)
    result[np.repeat(np.arange(len(counts)), counts), ranges(np.zeros_like(counts), counts)] = tasks.values
    return result


def row_fingerprints(features: dict[str, Int32], tasks: Int32) -> UInt64:
    """xxh3-64 of every row: its features in the order of FEATURES, then its segments' tasks, little-endian.

    The padding of `tasks` is left out, since its width depends on the other rows of a batch.
    """
    arrays = [features[name] for name in sorted(features, key=FEATURES.index)]
    table = np.ascontiguousarray(np.concatenate([*arrays, tasks], axis=1), dtype="<i4")
    starts = np.arange(len(table)) * table.shape[1]
    ends = starts + table.shape[1] - np.count_nonzero(tasks < 0, axis=1)
    values = table.ravel().view(np.uint8).data
    size = table.itemsize
    digests = [
        xxhash.xxh3_64_intdigest(values[start:end])
        for start, end in zip((starts * size).tolist(), (ends * size).tolist(), strict=True)
    ]
    return np.array(digests, dtype=np.uint64)


def global_fingerprint(fingerprints: UInt64) -> str:
    """One hash for a global batch: xxh3-64 of its rows' fingerprints in row order, as 16 hex digits.

    >>> global_fingerprint(np.array([3, 4], dtype=np.uint64))
    '8e8bd994740878c6'
    """
    return xxhash.xxh3_64(np.ascontiguousarray(fingerprints, dtype="<u8").data).hexdigest()
