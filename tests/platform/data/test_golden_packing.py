"""Features against SeqIO's own: every row of packing.jsonl that packs or converts examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mixtura.platform.data.features import CONVERTERS, PackedRows, encoder_decoder_features
from mixtura.platform.data.packing import pack
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.errors import DataError

KINDS = {"EncDec": "encoder_decoder", "PrefixLM": "prefix_lm", "LM": "lm"}
PACKED, UNPACKED = True, False


def golden(shared: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (shared / "golden/packing.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def lengths_of(row: dict) -> tuple[int, int]:
    return row["lengths"].get("inputs", 0), row["lengths"]["targets"]


def sides(examples: list[dict]) -> list[tuple[list[int], list[int]]]:
    return [(example.get("inputs", []), example["targets"]) for example in examples]


def packed_rows(examples: list[tuple[list[int], list[int]]], rows: list[int]) -> PackedRows:
    inputs, targets = (Ragged.from_lists(side) for side in zip(*examples, strict=True))
    return PackedRows(inputs, targets, Ragged.from_lists([[0]] * len(rows)).grouped(np.bincount(rows)))


def greedy(examples: list[tuple[list[int], list[int]]], lengths: tuple[int, int], joined: bool) -> list[int]:
    """SeqIO's rows; those of joined examples are packed as one text."""
    inputs, targets = (np.array([len(example[side]) for example in examples]) for side in (0, 1))
    if joined:
        inputs, lengths = inputs + targets, (sum(lengths), sum(lengths))
        targets = inputs
    return pack("greedy", inputs, targets, *lengths).tolist()


def converted(row: dict) -> dict:
    """Our features of a row's examples."""
    converter, examples, lengths = CONVERTERS[KINDS[row["converter"]]], sides(row["examples"]), lengths_of(row)
    rows = greedy(examples, lengths, converter.joined) if row["pack"] else list(range(len(examples)))
    loss_on = {None: None, True: "targets", False: "all"}[row.get("kwargs", {}).get("loss_on_targets_only")]
    return converter.convert(packed_rows(examples, rows), *lengths, loss_on)


def trimmed(row: dict) -> list[tuple[list[int], list[int]]]:
    """What SeqIO does to examples before it packs: cut at as many tokens as are not 0, and at the length."""
    return [
        tuple(
            tokens[: min(np.count_nonzero(tokens), length)]
            for tokens, length in zip(pair, lengths_of(row), strict=True)
        )
        for pair in sides(row["examples"])
    ]


def test_packed_rows_are_those_of_seqio(shared: Path) -> None:
    rows = [row for row in golden(shared, "pack") if all(example["inputs"] for example in row["examples"])]
    for row in rows:
        examples = trimmed(row)
        features = encoder_decoder_features(
            packed_rows(examples, greedy(examples, lengths_of(row), joined=False)), *lengths_of(row)
        )
        for ours, side in (("encoder", "inputs"), ("decoder", "targets")):
            tokens = features["encoder_input_tokens" if ours == "encoder" else "decoder_target_tokens"]
            assert tokens.tolist() == [packed[side] for packed in row["result"]]
            for array in ("segment_ids", "positions"):
                expected = [packed[f"{side}_{array}"] for packed in row["result"]]
                assert features[f"{ours}_{array}"].tolist() == expected
    assert len(rows) == 1


def test_rows_are_assigned_as_seqio_does_also_where_it_loses_tokens(shared: Path) -> None:
    (row,) = (row for row in golden(shared, "pack") if len(row["examples"]) == 4)
    assert greedy(trimmed(row), (16, 8), joined=False) == [0, 1, 1, 1]
    targets = [[30, 31, 32, 33, 34, 35, 36, 37], [1], [5, 1], [6, 0]]
    examples = [([3] * 16, targets[0]), *(([9], tokens) for tokens in targets[1:])]
    features = encoder_decoder_features(packed_rows(examples, [0, 1, 1, 1]), 16, 8)
    for name, ours in (("", "decoder_target_tokens"), ("_segment_ids", "decoder_segment_ids")):
        assert features[ours].tolist() == [packed[f"targets{name}"] for packed in row["result"]]
    assert features["decoder_positions"].tolist() == [packed["targets_positions"] for packed in row["result"]]


@pytest.mark.parametrize(("converter", "count"), [("EncDec", 1), ("PrefixLM", 1), ("LM", 2)])
def test_packed_features_are_those_of_seqio(shared: Path, converter: str, count: int) -> None:
    rows = rows_that_convert(shared, converter, PACKED)
    assert len(rows) == count
    for row in rows:
        features = converted(row)
        assert set(features) == set(row["result"][0])
        for name, array in features.items():
            assert array.tolist() == [packed[name] for packed in row["result"]], name


@pytest.mark.parametrize(("converter", "count"), [("EncDec", 2), ("PrefixLM", 3), ("LM", 1)])
def test_unpacked_features_are_those_of_seqio_where_they_count(shared: Path, converter: str, count: int) -> None:
    rows = rows_that_convert(shared, converter, UNPACKED)
    assert len(rows) == count
    for row in rows:
        features = converted(row)
        expected = {name: [example[name] for example in row["result"]] for name in row["result"][0]}
        # on the first padding SeqIO, unpacked, has the last target; nothing reads it
        is_token = features["decoder_target_tokens"] != 0
        expected["decoder_input_tokens"] = (np.array(expected["decoder_input_tokens"]) * is_token).tolist()
        # it gives segments and positions to packed rows only
        unpacked = {name: array for name, array in features.items() if not name.endswith(("segment_ids", "positions"))}
        assert {name: array.tolist() for name, array in unpacked.items()} == expected


def rows_that_convert(shared: Path, converter: str, packed: bool) -> list[dict]:
    rows = [row for row in golden(shared, "convert") if row["converter"] == converter and row["pack"] == packed]
    return [row for row in rows if "error" not in row]


def test_what_seqio_refuses_is_refused(shared: Path) -> None:
    """It refuses features longer than their length; we also refuse the empty inputs among those examples."""
    rows = [row for row in golden(shared, "convert") if "error" in row]
    assert [row["converter"] for row in rows] == ["EncDec", "PrefixLM", "PrefixLM", "LM"]
    for row in rows:
        with pytest.raises(DataError):
            converted(row)
        row["examples"] = [example for example in row["examples"] if example.get("inputs", [1])]
        with pytest.raises(DataError, match=r"1[68] tokens, but (rows are|\w+_length is) \d+"):
            converted(row)
        row["examples"] = row["examples"][1:]
        assert len(converted(row)["decoder_target_tokens"])


def test_decoder_inputs_restart_at_every_segment(shared: Path) -> None:
    (row,) = golden(shared, "autoregressive")
    examples = [([5], [3, 8, 1]), ([5], [9, 1]), ([5], [5, 4, 1])]
    features = encoder_decoder_features(packed_rows(examples, [0, 0, 0]), 4, 10)
    assert features["decoder_input_tokens"].tolist() == [row["result"]]
    assert features["decoder_segment_ids"].tolist() == [row["segment_ids"]]
