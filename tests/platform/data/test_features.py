from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mixtura.platform.data.features import (
    FEATURES,
    PackedRows,
    encoder_decoder_features,
    global_fingerprint,
    row_fingerprints,
    segment_tasks,
)
from mixtura.platform.data.packing import pack
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.errors import DataError


def convert(examples: list[tuple[list[int], list[int]]], rows: list[int], lengths: tuple[int, int]) -> dict:
    inputs, targets = (Ragged.from_lists(side) for side in zip(*examples, strict=True))
    tasks = Ragged.from_lists([[0]] * len(rows)).grouped(np.bincount(rows))
    return encoder_decoder_features(PackedRows(inputs, targets, tasks), *lengths)


def test_two_examples_in_one_row() -> None:
    features = convert([([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 1], [4, 1])], [0, 0], (8, 6))
    assert {name: array.tolist() for name, array in features.items()} == {
        "encoder_input_tokens": [[7, 8, 5, 1, 8, 4, 1, 0]],
        "encoder_segment_ids": [[1, 1, 1, 1, 2, 2, 2, 0]],
        "encoder_positions": [[0, 1, 2, 3, 0, 1, 2, 0]],
        "decoder_target_tokens": [[3, 9, 1, 4, 1, 0]],
        "decoder_input_tokens": [[0, 3, 9, 0, 4, 0]],
        "decoder_loss_weights": [[1, 1, 1, 1, 1, 0]],
        "decoder_segment_ids": [[1, 1, 1, 2, 2, 0]],
        "decoder_positions": [[0, 1, 2, 0, 1, 0]],
    }
    assert tuple(features) == FEATURES
    assert all(array.dtype == np.int32 for array in features.values())


def golden(shared: Path) -> list[dict]:
    return [json.loads(line) for line in (shared / "golden/packing.jsonl").read_text().splitlines()]


def packed_as_seqio(row: dict) -> dict:
    """What SeqIO does to examples first: cut at as many tokens as are not 0, and at the length; then its packing."""
    lengths = (row["lengths"]["inputs"], row["lengths"]["targets"])
    examples = [
        tuple(example[side][: np.count_nonzero(example[side])] for side in ("inputs", "targets"))
        for example in row["examples"]
    ]
    rows = pack(
        "greedy",
        np.array([len(inputs) for inputs, _ in examples]),
        np.array([len(targets) for _, targets in examples]),
        *lengths,
    ).tolist()
    trimmed = [(inputs[: lengths[0]], targets[: lengths[1]]) for inputs, targets in examples]
    return convert(trimmed, rows, lengths)


def test_packed_rows_are_those_of_seqio(shared: Path) -> None:
    checked = 0
    for row in golden(shared):
        if row["kind"] != "pack" or any(not example["inputs"] for example in row["examples"]):
            continue
        checked += 1
        features = packed_as_seqio(row)
        for ours, side in (("encoder", "inputs"), ("decoder", "targets")):
            tokens = features["encoder_input_tokens" if ours == "encoder" else "decoder_target_tokens"]
            assert tokens.tolist() == [packed[side] for packed in row["result"]]
            for array in ("segment_ids", "positions"):
                expected = [packed[f"{side}_{array}"] for packed in row["result"]]
                assert features[f"{ours}_{array}"].tolist() == expected
    assert checked == 1


def test_rows_are_assigned_as_seqio_does_also_where_it_loses_tokens(shared: Path) -> None:
    (row,) = (row for row in golden(shared) if row["kind"] == "pack" and len(row["examples"]) == 4)
    lengths = [[np.count_nonzero(example[side]) for example in row["examples"]] for side in ("inputs", "targets")]
    assert pack("greedy", np.array(lengths[0]), np.array(lengths[1]), 16, 8).tolist() == [0, 1, 1, 1]
    targets = [[30, 31, 32, 33, 34, 35, 36, 37], [1], [5, 1], [6, 0]]
    features = convert([([3] * 16, targets[0]), *(([9], tokens) for tokens in targets[1:])], [0, 1, 1, 1], (16, 8))
    for name, ours in (("", "decoder_target_tokens"), ("_segment_ids", "decoder_segment_ids")):
        assert features[ours].tolist() == [packed[f"targets{name}"] for packed in row["result"]]
    assert features["decoder_positions"].tolist() == [packed["targets_positions"] for packed in row["result"]]


def test_packed_features_are_those_of_seqio(shared: Path) -> None:
    rows = [row for row in golden(shared) if row["kind"] == "convert" and row["converter"] == "EncDec" and row["pack"]]
    for row in (row for row in rows if "error" not in row):
        features = packed_as_seqio(row)
        assert set(features) == set(row["result"][0])
        for name, array in features.items():
            assert array.tolist() == [packed[name] for packed in row["result"]], name


def test_unpacked_features_are_those_of_seqio_where_they_count(shared: Path) -> None:
    rows = [row for row in golden(shared) if row["kind"] == "convert" and row["converter"] == "EncDec"]
    for row in (row for row in rows if not row["pack"]):
        examples = [(example["inputs"], example["targets"]) for example in row["examples"]]
        lengths = (row["lengths"]["inputs"], row["lengths"]["targets"])
        features = convert(examples, list(range(len(examples))), lengths)
        weights = features["decoder_loss_weights"]
        for name in ("encoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"):
            assert features[name].tolist() == [converted[name] for converted in row["result"]], name
        # on the first padding position SeqIO, unpacked, has the last target; nothing reads it
        shifted = np.array([converted["decoder_input_tokens"] for converted in row["result"]])
        assert features["decoder_input_tokens"].tolist() == (shifted * weights).tolist()


def test_decoder_inputs_restart_at_every_segment(shared: Path) -> None:
    (row,) = (row for row in golden(shared) if row["kind"] == "autoregressive")
    features = convert([([5], [3, 8, 1]), ([5], [9, 1]), ([5], [5, 4, 1])], [0, 0, 0], (4, 10))
    assert features["decoder_input_tokens"].tolist() == [row["result"]]
    assert features["decoder_segment_ids"].tolist() == [row["segment_ids"]]


def test_padding_never_reaches_the_loss() -> None:
    features = convert([([5, 1], [6, 1])], [0], (8, 6))
    assert features["decoder_loss_weights"].sum() == 2
    assert (features["encoder_segment_ids"][features["encoder_input_tokens"] == 0] == 0).all()


def test_empty_segments_and_rows_that_are_too_long_are_refused() -> None:
    with pytest.raises(DataError, match="out of step"):
        convert([([], [6])], [0], (8, 6))
    with pytest.raises(DataError, match="9 tokens, but rows are 8 long"):
        convert([([5] * 9, [6])], [0], (8, 6))


def test_fingerprints_see_every_row_alone() -> None:
    tasks = Ragged.from_lists([[0, 1], [2]])
    inputs = Ragged.from_lists([[7, 1], [8, 1], [9, 1]])
    both = PackedRows(inputs, inputs, tasks)
    last = PackedRows(inputs.take(np.array([2])), inputs.take(np.array([2])), Ragged.from_lists([[2]]))
    hashes = row_fingerprints(encoder_decoder_features(both, 8, 8), segment_tasks(tasks))
    alone = row_fingerprints(encoder_decoder_features(last, 8, 8), segment_tasks(last.tasks))
    assert hashes[1] == alone[0]  # whatever the padding of segment_tasks
    other = row_fingerprints(encoder_decoder_features(last, 8, 8), np.array([[1]], dtype=np.int32))
    assert other[0] != alone[0]
    assert global_fingerprint(hashes) != global_fingerprint(hashes[::-1])
