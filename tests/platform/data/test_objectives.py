from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.mixture import integer_rates
from mixtura.platform.data.objectives import (
    OBJECTIVES,
    BertStyle,
    Deshuffling,
    DropTokens,
    LanguageModel,
    MassStyle,
    PrefixLM,
    ReplaceSpans,
    SpanCorruption,
    drop_noise_tokens,
    iid_noise_mask,
    make_objective,
    noise_counts,
    noise_span_to_unique_sentinel,
    noise_token_to_sentinel,
    parameter_names,
    random_prefix_mask,
    random_segment_lengths,
    random_spans_helper,
    random_spans_noise_mask,
)
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.data.stream import MixtureStream, StreamSpec, StreamTask, ragged_column
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.random_bits import bits, key


def golden(shared: Path, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (shared / "golden/spans.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def trimmed(sequences: Ragged, length: int) -> tuple[Ragged, np.ndarray]:
    """Cut to length - 1 tokens with EOS behind, and how many each lost."""
    lists = [[*tokens[: length - 1], 1] for tokens in sequences.to_lists()]
    return Ragged.from_lists(lists), np.maximum(sequences.lengths - (length - 1), 0)


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
    encodings = {
        "noise_span_to_unique_sentinel": noise_span_to_unique_sentinel,
        "noise_token_to_sentinel": noise_token_to_sentinel,
        "drop_noise_tokens": lambda pieces, mask, _: drop_noise_tokens(pieces, mask),
    }
    checked = 0
    for row in golden(shared, "apply"):
        name = row["fn"].replace("nonnoise", "noise")
        if name not in encodings or "error" in row:  # it refuses empty pieces; one sentinel for all runs it never used
            continue
        pieces, mask = Ragged.from_lists([row["tokens"]]), np.array(row["mask"], dtype=bool)
        noise = mask if row["fn"] == name else ~mask
        assert encodings[name](pieces, noise, row["vocab_size"] - 1).to_lists() == [row["result"]], row
        checked += 1
    assert checked == 16


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


@pytest.mark.parametrize("kind", ["iid_stats", "prefix_stats"])
def test_token_masks_and_prefixes_are_distributed_as_the_original_s(shared: Path, kind: str) -> None:
    for row in golden(shared, kind):
        length, expected, count = row["length"], row["result"], 3000
        pieces = Ragged.from_lists([[5] * length] * count)
        iid = kind == "iid_stats"
        flat = (
            iid_noise_mask(pieces, keys(count), row["noise_density"])
            if iid
            else random_prefix_mask(pieces, keys(count))
        )
        mask = flat.reshape(count, length)
        within = 4.5 * np.sqrt(0.25 / row["seeds"] + 0.25 / count)  # of two frequencies, each at most a half
        assert np.abs(mask.mean(axis=0)[:10] - expected["marginal_first_10"]).max() < within
        assert np.abs(mask.mean(axis=0)[-10:] - expected["marginal_last_10"]).max() < within
        lengths = runs(mask)
        share_within = within if not iid else 4.5 * np.sqrt(0.25 / len(lengths) + 0.25 / row["seeds"])
        for span, share in expected["noise_span_histogram"].items():
            assert np.mean(np.array(lengths) == int(span)) == pytest.approx(share, abs=share_within)
        if not iid:
            cuts = set(mask.sum(axis=1).tolist())
            possible = set(range(1, length)) if length > 1 else {0}
            assert cuts == possible if length <= 100 else cuts <= possible
            assert {tuple(runs(row[None])) for row in mask if row.any()} <= {(k,) for k in range(1, length)}


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


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_piece_alone_is_what_it_is_among_others(name: str) -> None:
    pieces = Ragged.from_lists([list(range(3, 3 + length)) for length in (40, 1, 17, 40, 2)])
    objective, five = make_objective(name, 999, {}), keys(5)
    together = [part.to_lists() for part in objective.apply(pieces, five)]
    for row in range(5):
        alone = objective.apply(pieces.take(np.array([row])), five[row : row + 1])
        assert [part.to_lists()[0] for part in alone] == [part[row] for part in together]
    assert (together[0][0] != together[0][3]) == (name != "lm")  # of the same text, with another key


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_examples_of_full_pieces_fit_and_a_token_more_would_not(name: str) -> None:
    objective = make_objective(name, 999, {})
    length = objective.piece_length(128, 128)
    inputs, targets = objective.apply(Ragged.from_lists([list(range(3, 3 + length))] * 200), keys(200))
    inputs, lost = trimmed(inputs, 128)
    targets, lost_targets = trimmed(targets, 128)
    assert lost.max() == lost_targets.max() == 0
    assert inputs.values.dtype == targets.values.dtype == np.int32
    if name != "span_corruption":  # that one asks for pieces longer than its inputs
        assert length == 127


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_no_pieces_make_no_examples(name: str) -> None:
    inputs, targets = make_objective(name, 999, {}).apply(Ragged.from_lists([]), keys(0))
    assert len(inputs) == len(targets) == 0


def words(sentence: str) -> list[int]:
    return list(range(3, 3 + len(sentence.split())))


SENTENCE = Ragged.from_lists([words("Thank you for inviting me to your party last week"), words("A second piece")])


def test_prefix_and_rest_are_the_text_and_neither_is_empty() -> None:
    inputs, targets = PrefixLM().apply(SENTENCE, keys(2))
    assert [a + b for a, b in zip(inputs.to_lists(), targets.to_lists(), strict=True)] == SENTENCE.to_lists()
    assert inputs.lengths.min() >= 1
    assert targets.lengths.min() >= 1


def test_the_language_model_has_targets_only() -> None:
    inputs, targets = LanguageModel().apply(SENTENCE, keys(2))
    assert (inputs.to_lists(), targets.to_lists()) == ([[], []], SENTENCE.to_lists())


def test_deshuffling_permutes_every_piece_within_itself_and_every_order_comes() -> None:
    inputs, targets = Deshuffling().apply(SENTENCE, keys(2))
    assert targets.to_lists() == SENTENCE.to_lists()
    assert [sorted(piece) for piece in inputs.to_lists()] == SENTENCE.to_lists()
    orders, _ = Deshuffling().apply(Ragged.from_lists([[3, 4, 5]] * 6000), keys(6000))
    found, times = np.unique(orders.values.reshape(6000, 3), axis=0, return_counts=True)
    assert len(found) == 6
    assert ((times - 1000) ** 2 / 1000).sum() < 5 + 4 * np.sqrt(10)


def test_dropped_tokens_are_the_targets_in_their_order() -> None:
    pieces = Ragged.from_lists([list(range(3, 103))])
    inputs, targets = (part.to_lists()[0] for part in DropTokens(noise_density=0.3).apply(pieces, keys(1)))
    assert sorted(inputs + targets) == list(range(3, 103))
    assert (inputs, targets) == (sorted(inputs), sorted(targets))
    assert 10 < len(targets) < 50


def test_replaced_spans_together_hold_the_text() -> None:
    text = list(range(3, 203))
    inputs, targets = ReplaceSpans(first_sentinel=999).apply(Ragged.from_lists([text] * 20), keys(20))
    for sides in zip(inputs.to_lists(), targets.to_lists(), strict=True):
        assert sorted(token for side in sides for token in side if token < 900) == text
        for side in sides:
            sentinels = [token for token in side if token >= 900]
            assert sentinels == list(range(999, 999 - len(sentinels), -1))


def test_mass_style_marks_every_noise_token_with_the_first_sentinel() -> None:
    text = list(range(3, 203))
    inputs, targets = (part.to_lists()[0] for part in MassStyle(999).apply(Ragged.from_lists([text]), keys(1)))
    assert targets == text
    assert {shown for shown, token in zip(inputs, text, strict=True) if shown != token} == {999}


def test_bert_style_makes_a_tenth_of_the_noise_random_tokens_of_the_whole_vocabulary() -> None:
    pieces = Ragged.from_lists([[2] * 500] * 400)  # an id that is never drawn, so that every noise token shows
    inputs, targets = BertStyle(first_sentinel=99).apply(pieces, keys(400))
    assert (targets.values == 2).all()
    noise = inputs.values[inputs.values != 2]
    assert len(noise) / 200_000 == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / 200_000))
    random = noise[noise != 99]
    assert len(random) / len(noise) == pytest.approx(0.1 * 96 / 97, abs=4 * np.sqrt(0.09 / len(noise)))
    found, times = np.unique(random, return_counts=True)
    assert (found.min(), found.max(), len(found)) == (3, 98, 96)
    assert ((times - len(random) / 96) ** 2 / (len(random) / 96)).sum() < 95 + 4 * np.sqrt(190)


def test_the_whole_chain_has_the_lengths_of_the_original(shared: Path) -> None:
    (row,) = (row for row in golden(shared, "chain") if row["objective"] == "span_corruption")
    objective = SpanCorruption(first_sentinel=32_099)
    length = objective.piece_length(512, 114)
    # the original chose one of the two chunks of its longest document: 65,536 tokens or the 4,464 after them
    tokens = sum(row["doc_lengths"]) - 65_536
    pieces = Ragged.from_lists([[5] * min(length, tokens - start) for start in range(0, tokens, length)])
    inputs, targets = objective.apply(pieces, keys(len(pieces)))
    inputs, _ = trimmed(inputs, 512)
    targets, _ = trimmed(targets, 114)
    for side, sequences in (("inputs", inputs), ("targets", targets)):
        assert sequences.lengths.tolist() == [answer[f"{side}_len"] for answer in row["result"]]
        sentinels = [sum(token > 32_000 for token in tokens) for tokens in sequences.to_lists()]
        assert sentinels == [answer[f"{side}_sentinels"] for answer in row["result"]]
        assert {tokens[-1] for tokens in sequences.to_lists()} == {1}


def test_token_by_token_noise_has_the_lengths_of_the_original_s_chain(shared: Path) -> None:
    (row,) = (row for row in golden(shared, "chain") if row["objective"] == "iid_denoising")
    objective = ReplaceSpans(first_sentinel=32_099)
    length = objective.piece_length(512, 192)
    tokens = sum(row["doc_lengths"]) - 65_536
    sizes = [min(length, tokens - start) for start in range(0, tokens, length)]
    assert len(sizes) == len(row["result"])
    full = Ragged.from_lists([[5] * length] * 2000)
    inputs, targets = objective.apply(full, keys(2000))
    for side, sequences in (("inputs", inputs), ("targets", targets)):
        theirs = np.array([answer[f"{side}_len"] for answer in row["result"][:-1]])
        ours = sequences.lengths + 1
        assert ours.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / np.sqrt(len(theirs)))
        marks = np.array([answer[f"{side}_sentinels"] for answer in row["result"][:-1]])
        our_marks = (sequences.values > 32_000).sum() / 2000
        assert our_marks == pytest.approx(marks.mean(), abs=4 * marks.std() / np.sqrt(len(marks)))
    assert np.mean(targets.lengths + 1 > 192) < 0.001


def test_the_language_model_s_pieces_fill_the_targets(shared: Path) -> None:
    """The original puts EOS after every document and none after a piece; ours is the other way round."""
    (row,) = (row for row in golden(shared, "chain") if row["objective"] == "full_lm")
    length = LanguageModel().piece_length(512, 512)
    tokens = sum(row["doc_lengths"]) - 65_536
    pieces = Ragged.from_lists([[5] * min(length, tokens - start) for start in range(0, tokens, length)])
    inputs, targets = LanguageModel().apply(pieces, keys(len(pieces)))
    lengths = trimmed(targets, 512)[0].lengths.tolist()
    assert lengths[:-1] == [answer["targets_len"] for answer in row["result"][:-1]]
    assert len(lengths) == len(row["result"])
    assert trimmed(inputs, 512)[0].to_lists() == [[1]] * len(pieces)


@pytest.mark.parametrize(
    ("name", "density", "targets_length"),
    [
        ("replace_spans", 0.1, 103),
        ("replace_spans", 0.15, 192),
        ("replace_spans", 0.25, 256),
        ("replace_spans", 0.5, 512),
        ("drop_tokens", 0.15, 104),
        ("bert_style", 0.15, 512),
        ("mass_style", 0.15, 512),
    ],
)
def test_the_original_s_settings_are_accepted(name: str, density: float, targets_length: int) -> None:
    overflows = {"sentinels": None} if name == "replace_spans" else {}
    objective = make_objective(name, 32_099, {"noise_density": density, **overflows})
    assert objective.piece_length(512, targets_length) == 511


def test_every_objective_says_what_targets_it_needs() -> None:
    for name, needed in {
        "replace_spans": "on average, needs 144",
        "drop_tokens": "on average, needs 78",
        "bert_style": "needs 512",
        "mass_style": "needs 512",
        "deshuffling": "needs 512",
        "prefix_lm": "needs 511",
    }.items():
        with pytest.raises(ConfigError, match=rf"targets_length is 77, but {name} of 511 tokens.* {needed}: raise"):
            make_objective(name, 32_099, {}).piece_length(512, 77)
        with pytest.raises(ConfigError, match="inputs_length is 1: no text fits"):
            make_objective(name, 32_099, {}).piece_length(1, 77)
    with pytest.raises(ConfigError, match="targets_length is 1: no text fits"):
        LanguageModel().piece_length(512, 1)


def test_token_noise_that_overflows_the_sentinels_is_refused_unless_the_original_is_asked_for() -> None:
    with pytest.raises(
        ConfigError, match=r"about 96 sentinels and now and then 122, but the vocabulary has 100: .*null"
    ):
        ReplaceSpans(999, noise_density=0.25).piece_length(512, 256)
    assert ReplaceSpans(999).piece_length(512, 192) == 511
    mask = iid_noise_mask(Ragged.from_lists([[5] * 511] * 2000), keys(2000), 0.15).reshape(2000, 511)
    most = max(len(runs(row[None])) for row in ~mask)
    assert most <= 100


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
    with pytest.raises(ConfigError, match="random_probability is 2: it must be from 0 to 1"):
        make_objective("bert_style", 999, {"random_probability": 2})
    with pytest.raises(
        UnknownNameError, match="no parameter 'noise_density' of the objective 'prefix_lm'; known: none"
    ):
        make_objective("prefix_lm", 999, {"noise_density": 0.5})
    with pytest.raises(ConfigError, match="mean_noise_span_length is 0.5: it must be at least 1"):
        make_objective("span_corruption", 999, {"mean_noise_span_length": 0.5})


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({"noise_density": "0.15"}, "noise_density of the objective 'span_corruption' is '0.15': it must be a number"),
        ({"noise_density": True}, "is True: it must be a number"),
        ({"closing_sentinel": 1}, "is 1: it must be true or false"),
        ({"sentinels": 2.5}, "is 2.5: it must be a whole number or null"),
    ],
)
def test_parameters_of_another_type_are_refused(parameters: dict, wanted: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        make_objective("span_corruption", 999, parameters)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("closing_sentinel", [False, True])
@given(lengths=st.lists(st.integers(1, 40), max_size=12), seed=st.integers(0, 2**32), density=st.floats(0.05, 0.9))
def test_lengths_without_tokens_are_those_of_the_tokens(
    name: str, closing_sentinel: bool, lengths: list[int], seed: int, density: float
) -> None:
    known = parameter_names(name)
    given_ = {"noise_density": density, "closing_sentinel": closing_sentinel, "sentinels": None}
    objective = make_objective(name, 999, {key: value for key, value in given_.items() if key in known})
    pieces = Ragged.from_lists([list(range(3, 3 + length)) for length in lengths])
    inputs, targets = objective.apply(pieces, keys(len(lengths), seed))
    told = objective.lengths(np.array(lengths, dtype=np.int64), keys(len(lengths), seed))
    assert [side.tolist() for side in told] == [inputs.lengths.tolist(), targets.lengths.tolist()]
    if objective.fixed_lengths:
        again = objective.lengths(np.array(lengths, dtype=np.int64), keys(len(lengths), seed + 1))
        assert [side.tolist() for side in again] == [side.tolist() for side in told]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_stream_has_both_sides_of_every_example_and_they_end_in_eos(
    caches: dict[str, Path], make_spec: Callable[..., StreamSpec], name: str
) -> None:
    rates = integer_rates({"text": 1.0})
    tasks = (StreamTask("text", str(caches["text"]), rates["text"], name),)
    block = MixtureStream(make_spec(tasks=tasks, inputs_length=32, targets_length=32)).build_block(0)
    for side, kind in (("inputs", "input"), ("targets", "target")):
        rows, lengths = (ragged_column(block, column) for column in (side, f"{kind}_lengths"))
        assert lengths.values.min() >= 1
        ends = np.cumsum(lengths.values) - 1
        assert (rows.values[ends] == 1).all()
        assert ends[-1] + 1 == len(rows.values)
        if name == "lm" and side == "inputs":
            assert (rows.values == 1).all()
