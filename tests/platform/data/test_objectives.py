from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.objectives import (
    SpanCorruption,
    make_objective,
    noise_counts,
    noise_span_to_unique_sentinel,
    random_segment_lengths,
    random_spans_helper,
    random_spans_noise_mask,
)
from mixtura.platform.data.packing import trim_and_append_eos
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.random_bits import bits, key


def golden(shared: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (shared / "golden/spans.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def keys(count: int, seed: int = 0) -> np.ndarray:
    return bits(key("test", seed), np.arange(count))


def test_lengths_are_those_of_the_original(shared: Path) -> None:
    for row in golden(shared, "lengths"):
        arguments = {name: value for name, value in row.items() if name not in ("kind", "result")}
        assert list(random_spans_helper(**arguments)) == row["result"], row


def test_the_paper_s_setting_needs_568_tokens_and_114_targets() -> None:
    assert random_spans_helper(512, 0.15, 3.0) == (568, 114)
    assert random_spans_helper(512, 0.15, 2.0) == (552, 126)
    assert random_spans_helper(512, 0.15, 10.0) == (591, 99)


def test_encodings_of_given_masks_are_those_of_the_original(shared: Path) -> None:
    checked = 0
    for row in golden(shared, "apply"):
        if row["fn"] not in ("noise_span_to_unique_sentinel", "nonnoise_span_to_unique_sentinel") or "error" in row:
            continue
        tokens, mask = np.array([row["tokens"]]), np.array([row["mask"]], dtype=bool)
        noise = mask if row["fn"].startswith("noise") else ~mask
        encoded = noise_span_to_unique_sentinel(tokens, noise, row["vocab_size"] - 1)
        assert encoded.to_lists() == [row["result"]]
        checked += 1
    assert checked == 6


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of True in all rows of a mask."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    return (np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]).tolist()


def test_masks_have_the_counts_and_marginals_of_the_original(shared: Path) -> None:
    for row in golden(shared, "mask_stats"):
        if row.get("random_roll"):
            continue
        length, expected, count = row["length"], row["result"], 2000
        mask = random_spans_noise_mask(keys(count), length, row["noise_density"], row["mean_noise_span_length"])
        lengths = runs(mask)
        assert mask.shape == (count, length)
        assert set(mask.sum(axis=1).tolist()) == set(expected["noise_tokens"])
        assert {len(lengths) / count} == set(expected["noise_spans"])
        assert not mask[:, 0].any()
        assert mask[:, -1].all() == (length > 1)
        within = 4.5 * np.sqrt(0.25 / row["seeds"] + 0.25 / count)  # of two frequencies, each at most a half
        assert np.abs(mask.mean(axis=0)[:10] - expected["marginal_first_10"]).max() < within
        assert np.abs(mask.mean(axis=0)[-10:] - expected["marginal_last_10"]).max() < within
        assert np.mean(lengths or [0]) == pytest.approx(expected["mean_noise_span"], rel=1e-6)
        for span, share in expected["noise_span_histogram"].items():
            assert np.mean(np.array(lengths) == int(span)) == pytest.approx(share, abs=within)


def test_every_way_to_cut_comes_equally_often() -> None:
    # 6 items into 3 parts: C(5, 2) = 10 ways
    cuts, times = np.unique(random_segment_lengths(keys(20_000), 6, 3), axis=0, return_counts=True)
    assert len(cuts) == 10
    assert (cuts.sum(axis=1) == 6).all()
    assert ((times - 2000) ** 2 / 2000).sum() < 9 + 4 * np.sqrt(18)


@given(st.integers(1, 400), st.floats(0.01, 0.99), st.floats(1, 20), st.integers(0, 1000))
def test_a_mask_begins_with_kept_text_and_ends_in_noise(
    length: int, density: float, mean_span: float, seed: int
) -> None:
    mask = random_spans_noise_mask(keys(3, seed), length, density, mean_span)
    assert mask.shape == (3, length)
    assert not mask[:, 0].any()
    assert mask[:, -1].all() == (length > 1)
    if length > 1:
        noise, spans = noise_counts(length, density, mean_span)
        assert (mask.sum(axis=1) == noise).all()
        assert len(runs(mask)) == 3 * min(spans, length - noise)


def test_a_piece_of_one_token_has_no_noise() -> None:
    inputs, targets = SpanCorruption(first_sentinel=99).apply(Ragged.from_lists([[7]]), keys(1))
    assert (inputs.to_lists(), targets.to_lists()) == ([[7]], [[99]])


def test_inputs_and_targets_together_hold_the_text() -> None:
    text = list(range(3, 63))
    inputs, targets = (part.to_lists()[0] for part in _corrupt([text]))
    rebuilt, spans = [], iter(_split_at_sentinels(targets)[1:])
    for token in inputs:
        rebuilt += next(spans) if token >= 900 else [token]
    assert rebuilt == text
    assert (
        [token for token in inputs if token >= 900] == [token for token in targets if token >= 900] == [999, 998, 997]
    )


def _corrupt(lists: list[list[int]], **options: bool) -> tuple[Ragged, Ragged]:
    return SpanCorruption(first_sentinel=999, **options).apply(Ragged.from_lists(lists), keys(len(lists)))


def _split_at_sentinels(tokens: list[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token >= 900:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def test_the_closing_sentinel_is_an_option() -> None:
    pieces = [list(range(3, 63)), list(range(3, 23)), [5]]
    for plain, closed in zip(
        _corrupt(pieces)[1].to_lists(), _corrupt(pieces, closing_sentinel=True)[1].to_lists(), strict=True
    ):
        last = min(token for token in plain if token >= 900)
        assert closed == (plain if plain == [999] else [*plain, last - 1])


def test_a_piece_alone_is_what_it_is_among_others() -> None:
    pieces = Ragged.from_lists([list(range(3, 3 + length)) for length in (40, 1, 17, 40, 2)])
    objective, five = SpanCorruption(first_sentinel=999), keys(5)
    together = [part.to_lists() for part in objective.apply(pieces, five)]
    for row in range(5):
        alone = objective.apply(pieces.take(np.array([row])), five[row : row + 1])
        assert [part.to_lists()[0] for part in alone] == [part[row] for part in together]
    assert together[0][0] != together[0][3]  # of the same text, with another key


def test_the_whole_chain_has_the_lengths_of_the_original(shared: Path) -> None:
    (row,) = (row for row in golden(shared, "chain") if row["objective"] == "span_corruption")
    objective = SpanCorruption(first_sentinel=32_099)
    length = objective.piece_length(512, 114)
    # the original chose one of the two chunks of its longest document: 65,536 tokens or the 4,464 after them
    tokens = sum(row["doc_lengths"]) - 65_536
    pieces = Ragged.from_lists([[5] * min(length, tokens - start) for start in range(0, tokens, length)])
    inputs, targets = objective.apply(pieces, keys(len(pieces)))
    inputs, _ = trim_and_append_eos(inputs, 512, 1)
    targets, _ = trim_and_append_eos(targets, 114, 1)
    for side, sequences in (("inputs", inputs), ("targets", targets)):
        assert sequences.lengths.tolist() == [answer[f"{side}_len"] for answer in row["result"]]
        sentinels = [sum(token > 32_000 for token in tokens) for tokens in sequences.to_lists()]
        assert sentinels == [answer[f"{side}_sentinels"] for answer in row["result"]]
        assert {tokens[-1] for tokens in sequences.to_lists()} == {1}


def test_too_short_targets_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"targets_length is 96, but 512 input tokens .* need 114: raise"):
        SpanCorruption(first_sentinel=999).piece_length(512, 96)
    with pytest.raises(ConfigError, match="need 115"):
        SpanCorruption(first_sentinel=999, closing_sentinel=True).piece_length(512, 114)


def test_more_spans_than_sentinels_are_refused_unless_the_original_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="need 114 sentinels, but the vocabulary has 100"):
        SpanCorruption(first_sentinel=999).piece_length(2048, 512)
    assert SpanCorruption(first_sentinel=999, sentinels=None).piece_length(2048, 512) > 2048


def test_unknown_names_and_impossible_values_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="nearest: 'span_corruption'"):
        make_objective("span_coruption", 999, {})
    with pytest.raises(UnknownNameError, match="nearest: 'noise_density'"):
        make_objective("span_corruption", 999, {"noise_densty": 0.2})
    with pytest.raises(ConfigError, match="noise_density between 0 and 1"):
        make_objective("span_corruption", 999, {"noise_density": 1.0})
