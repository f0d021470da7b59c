"""The encoder-decoder feature converter: packed rows into the arrays that a model takes, with SeqIO's names.

Two examples in one row of 8 input and 6 target positions (EOS is 1):

    inputs [7, 8, 5, 1] and [8, 4, 1]     targets [3, 9, 1] and [4, 1]

    encoder_input_tokens    7  8  5  1  8  4  1  0    ids the encoder reads; 0 is padding
    encoder_segment_ids     1  1  1  1  2  2  2  0    which example of the row; attention stays inside one
    encoder_positions       0  1  2  3  0  1  2  0    index within the example
    decoder_target_tokens   3  9  1  4  1  0          ids to predict
    decoder_input_tokens    0  3  9  0  4  0          targets shifted right by one, beginning with 0 in each example
    decoder_loss_weights    1  1  1  1  1  0          1 where a prediction counts, 0 on padding
    decoder_segment_ids     1  1  1  2  2  0
    decoder_positions       0  1  2  0  1  0

All are int32 [rows, length]. Beside them `segment_tasks` int32 [rows, most segments] has the task of segment k + 1 in
column k, and -1 where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from mixtura.platform.data.ragged import Ragged, ranges
from mixtura.platform.errors import DataError

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
)


@dataclass(frozen=True)
class PackedRows:
    """Rows of segments: the tokens of every segment, and how many segments each row has."""

    inputs: Ragged
    """tokens of every segment, row by row"""
    targets: Ragged
    tasks: Ragged
    """task index of every segment, by row"""


def _places(segments: Ragged, rows_of_segments: Ragged) -> tuple[Int32, Int32, Int32]:
    """For every token: its row, its segment number in the row (from 1), its position in the segment."""
    counts = rows_of_segments.lengths
    number = ranges(np.ones(len(counts), dtype=np.int64), counts)
    row = np.repeat(np.arange(len(counts)), counts)
    lengths = segments.lengths
    positions = ranges(np.zeros(len(lengths), dtype=np.int64), lengths)
    return (
        np.repeat(row, lengths).astype(np.int32),
        np.repeat(number, lengths).astype(np.int32),
        positions.astype(np.int32),
    )


def _expand(segments: Ragged, rows_of_segments: Ragged, length: int) -> tuple[Int32, Int32, Int32]:
    """Tokens, segment ids and positions as [rows, length] each, zero where there is nothing."""
    if len(segments) and int(segments.lengths.min()) == 0:
        raise DataError("a segment without tokens would put the segments of inputs and targets out of step")
    row, number, positions = _places(segments, rows_of_segments)
    row_lengths = np.diff(segments.offsets[rows_of_segments.offsets])
    if len(row_lengths) and int(row_lengths.max()) > length:
        raise DataError(f"a packed row has {int(row_lengths.max())} tokens, but rows are {length} long")
    column = ranges(np.zeros(len(row_lengths), dtype=np.int64), row_lengths)
    expanded = np.zeros((3, len(row_lengths), length), dtype=np.int32)
    for array, values in zip(expanded, (segments.values, number, positions), strict=True):
        array[row, column] = values
    tokens, segment_ids, positions = expanded
    return tokens, segment_ids * (tokens != 0), positions


def encoder_decoder_features(rows: PackedRows, inputs_length: int, targets_length: int) -> dict[str, Int32]:
    """The eight features of the module's docstring."""
    inputs, input_segments, input_positions = _expand(rows.inputs, rows.tasks, inputs_length)
    targets, target_segments, target_positions = _expand(rows.targets, rows.tasks, targets_length)
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = targets[:, :-1] * (target_segments[:, 1:] == target_segments[:, :-1])
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": input_segments,
        "encoder_positions": input_positions,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": shifted,
        "decoder_loss_weights": (targets != 0).astype(np.int32),
        "decoder_segment_ids": target_segments,
        "decoder_positions": target_positions,
    }


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
    bytes_of_rows = np.ascontiguousarray(np.concatenate([features[name] for name in FEATURES], axis=1), dtype="<i4")
    counts = (tasks >= 0).sum(axis=1)
    digests = []
    for row, row_tasks, count in zip(bytes_of_rows, tasks.astype("<i4"), counts, strict=True):
        digest = xxhash.xxh3_64(row.data)
        digest.update(row_tasks[:count].tobytes())
        digests.append(digest.intdigest())
    return np.array(digests, dtype=np.uint64)


def global_fingerprint(fingerprints: UInt64) -> str:
    """One hash for a global batch: xxh3-64 of its rows' fingerprints in row order, as 16 hex digits.

    >>> global_fingerprint(np.array([3, 4], dtype=np.uint64))
    '8e8bd994740878c6'
    """
    return xxhash.xxh3_64(np.ascontiguousarray(fingerprints, dtype="<u8").data).hexdigest()
