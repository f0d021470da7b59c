from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.features import (
    CONVERTERS,
    FEATURES,
    PackedRows,
    encoder_decoder_features,
    features_of,
    global_fingerprint,
    row_fingerprints,
    row_lengths,
    segment_tasks,
)
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.errors import ConfigError, DataError, UnknownNameError


def convert(
    examples: list[tuple[list[int], list[int]]],
    rows: list[int],
    lengths: tuple[int, int],
    kind: str = "encoder_decoder",
) -> dict:
    inputs, targets = (Ragged.from_lists(side) for side in zip(*examples, strict=True))
    tasks = Ragged.from_lists([[0]] * len(rows)).grouped(np.bincount(rows))
    return features_of(kind, PackedRows(inputs, targets, tasks), *lengths)


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
    assert tuple(features) == FEATURES[:8]
    assert all(array.dtype == np.int32 for array in features.values())


def test_two_examples_of_a_prefix_language_model_in_one_row() -> None:
    features = convert([([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 1], [4, 1])], [0, 0], (8, 6), "prefix_lm")
    assert {name: array.tolist() for name, array in features.items()} == {
        "decoder_target_tokens": [[7, 8, 5, 1, 3, 9, 1, 8, 4, 1, 4, 1, 0, 0]],
        "decoder_input_tokens": [[0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 1, 4, 0, 0]],
        "decoder_loss_weights": [[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0]],
        "decoder_segment_ids": [[1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]],
        "decoder_positions": [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 0, 0]],
        "decoder_causal_attention": [[1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0]],
    }
    assert all(array.dtype == np.int32 for array in features.values())


def test_a_language_model_learns_the_whole_text_and_looks_only_back() -> None:
    features = convert([([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 1], [4, 1])], [0, 0], (8, 6), "lm")
    assert features["decoder_target_tokens"].tolist() == [[7, 8, 5, 1, 3, 9, 1, 8, 4, 1, 4, 1, 0, 0]]
    assert features["decoder_loss_weights"].tolist() == [[1] * 12 + [0, 0]]
    assert "decoder_causal_attention" not in features


def test_a_language_model_takes_examples_without_inputs_beside_others() -> None:
    features = convert([([], [6, 7, 1]), ([8, 1], [4, 1]), ([], [5, 1])], [0, 0, 1], (4, 4), "lm")
    assert features["decoder_target_tokens"].tolist() == [[6, 7, 1, 8, 1, 4, 1, 0], [5, 1, 0, 0, 0, 0, 0, 0]]
    assert features["decoder_segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert features["decoder_input_tokens"].tolist() == [[0, 6, 7, 0, 8, 1, 4, 0], [0, 5, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["prefix_lm", "lm"])
def test_the_loss_of_one_stack_is_on_targets_or_on_all(kind: str) -> None:
    rows = PackedRows(
        Ragged.from_lists([[7, 8, 1], [8, 1]]), Ragged.from_lists([[3, 1], [4, 1]]), Ragged.from_lists([[0, 0]])
    )
    for loss_on, weights in (("targets", [0, 0, 0, 1, 1, 0, 0, 1, 1, 0]), ("all", [1] * 9 + [0])):
        assert features_of(kind, rows, 5, 5, loss_on)["decoder_loss_weights"].tolist() == [weights]


def test_what_the_loss_is_on_is_not_asked_of_two_stacks() -> None:
    with pytest.raises(ConfigError, match="loss_on is 'all', which is for rows of one stack"):
        features_of("encoder_decoder", PackedRows(*(Ragged.from_lists([]) for _ in range(3))), 8, 6, "all")


def test_an_empty_prefix_is_the_first_position_alone() -> None:
    features = convert([([], [6, 7, 1])], [0], (2, 3), "prefix_lm")
    assert features["decoder_causal_attention"].tolist() == [[1, 0, 0, 0, 0]]
    assert features["decoder_loss_weights"].tolist() == [[1, 1, 1, 0, 0]]


def test_an_id_0_inside_an_example_counts_as_padding_but_keeps_its_place() -> None:
    features = convert([([5, 0, 6, 1], [7, 0, 1]), ([8, 1], [0, 9, 1])], [0, 0], (7, 6))
    assert features["encoder_segment_ids"].tolist() == [[1, 0, 1, 1, 2, 2, 0]]
    assert features["encoder_positions"].tolist() == [[0, 1, 2, 3, 0, 1, 0]]
    assert features["decoder_input_tokens"].tolist() == [[0, 0, 0, 0, 0, 9]]
    assert features["decoder_loss_weights"].tolist() == [[1, 0, 1, 0, 1, 1]]
    joined = convert([([5, 0, 6, 1], [7, 0, 1])], [0], (4, 4), "prefix_lm")
    assert joined["decoder_loss_weights"].tolist() == [[0, 0, 0, 0, 1, 0, 1, 0]]
    assert joined["decoder_causal_attention"].tolist() == [[1, 0, 1, 1, 1, 0, 0, 0]]


TOKENS = st.lists(st.integers(1, 9), min_size=1, max_size=5)
ROWS = st.lists(st.lists(st.tuples(TOKENS, TOKENS), max_size=3), max_size=4)


def in_rows(rows: list[list[list[int]]], length: int) -> list[list[int]]:
    """Lists of every segment of every row, joined and padded with 0."""
    joined = [[value for segment in row for value in segment] for row in rows]
    return [row + [0] * (length - len(row)) for row in joined]


def expected_of_segments(rows: list[list[list[int]]], length: int) -> tuple[list[list[int]], ...]:
    """Tokens, segment ids and positions, by loops over segments."""
    numbers = [[[number] * len(segment) for number, segment in enumerate(row, start=1)] for row in rows]
    positions = [[list(range(len(segment))) for segment in row] for row in rows]
    return tuple(in_rows(values, length) for values in (rows, numbers, positions))


@given(ROWS)
def test_features_are_what_loops_over_examples_give(rows: list[list[tuple[list[int], list[int]]]]) -> None:
    examples = [example for row in rows for example in row]
    inputs, targets = (Ragged.from_lists([example[side] for example in examples]) for side in (0, 1))
    packed = PackedRows(inputs, targets, Ragged.from_lists([[0] * len(row) for row in rows]))
    of_decoder = ("decoder_target_tokens", "decoder_segment_ids", "decoder_positions")

    features = encoder_decoder_features(packed, 15, 16)
    for names, side, length in ((FEATURES[:3], 0, 15), (of_decoder, 1, 16)):
        expected = expected_of_segments([[example[side] for example in row] for row in rows], length)
        assert tuple(features[name].tolist() for name in names) == expected

    expected = expected_of_segments([[inputs + targets for inputs, targets in row] for row in rows], 31)
    for kind in ("prefix_lm", "lm"):
        features = features_of(kind, packed, 15, 16)
        assert tuple(features[name].tolist() for name in of_decoder) == expected
    features = features_of("prefix_lm", packed, 15, 16)
    weights = [[[0] * len(inputs) + [1] * len(targets) for inputs, targets in row] for row in rows]
    assert features["decoder_loss_weights"].tolist() == in_rows(weights, 31)
    prefix = [[[1] * (len(inputs) + 1) + [0] * (len(targets) - 1) for inputs, targets in row] for row in rows]
    assert features["decoder_causal_attention"].tolist() == in_rows(prefix, 31)


def test_padding_never_reaches_the_loss() -> None:
    features = convert([([5, 1], [6, 1])], [0], (8, 6))
    assert features["decoder_loss_weights"].sum() == 2
    assert (features["encoder_segment_ids"][features["encoder_input_tokens"] == 0] == 0).all()


def test_empty_segments_and_rows_that_are_too_long_are_refused() -> None:
    for example in (([], [6]), ([6], [])):
        with pytest.raises(DataError, match="out of step"):
            convert([example], [0], (8, 6))
    with pytest.raises(DataError, match="9 tokens, but rows are 8 long"):
        convert([([5] * 9, [6])], [0], (8, 6))


@pytest.mark.parametrize("kind", ["prefix_lm", "lm"])
def test_joined_rows_refuse_what_no_packing_with_one_limit_makes(kind: str) -> None:
    assert convert([([5] * 8, [6] * 6)], [0], (8, 6), kind)["decoder_target_tokens"].shape == (1, 14)
    with pytest.raises(DataError, match="15 tokens, but rows are 14 long"):
        convert([([5] * 8, [6] * 5), ([5], [6])], [0, 0], (8, 6), kind)
    with pytest.raises(DataError, match="inputs of 9 tokens, but inputs_length is 8"):
        convert([([5] * 9, [6])], [0], (8, 6), kind)
    with pytest.raises(DataError, match="targets of 7 tokens, but targets_length is 6"):
        convert([([5], [6] * 7)], [0], (8, 6), kind)
    with pytest.raises(DataError, match="without targets"):
        convert([([5], [])], [0], (8, 6), kind)


def test_every_converter_says_how_long_its_rows_are_and_whether_they_are_joined() -> None:
    for kind, found in CONVERTERS.items():
        features = convert([([5, 1], [6, 1])], [0], (8, 6), kind)
        lengths = {name.partition("_")[0]: array.shape[1] for name, array in features.items()}
        assert lengths == row_lengths(kind, 8, 6), kind
        assert found.joined == (lengths["decoder"] == 14), kind
    with pytest.raises(UnknownNameError, match="no converter 'prefix'; nearest: 'prefix_lm'"):
        features_of("prefix", PackedRows(*(Ragged.from_lists([]) for _ in range(3))), 8, 6)


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


@pytest.mark.parametrize(
    ("kind", "hashes"),
    [
        ("encoder_decoder", [1488493537755950995, 5557823952632109840]),
        ("prefix_lm", [17114178064522805715, 10214954427285014847]),
        ("lm", [1775383831539036477, 15060748438558426411]),
    ],
)
def test_fingerprints_are_the_same_on_every_machine_and_version(kind: str, hashes: list[int]) -> None:
    features = convert([([7, 8, 5, 1], [3, 9, 1]), ([8, 4, 1], [4, 1]), ([5, 1], [6, 1])], [0, 0, 1], (8, 6), kind)
    backwards = dict(reversed(features.items()))
    tasks = np.array([[0, 2], [1, -1]], dtype=np.int32)
    assert row_fingerprints(features, tasks).tolist() == row_fingerprints(backwards, tasks).tolist() == hashes
