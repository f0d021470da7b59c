"""Planted evaluation sentences are found in text, near misses are not, and every example is accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mixtura.platform.data import overlap as module
from mixtura.platform.data.cache import TokenCache, commit, open_cache, write_shard
from mixtura.platform.data.overlap import (
    NgramSet,
    commit_overlap,
    committed_occurrences,
    evaluation_ngrams,
    find,
    load_ranges,
    overlap_key,
    read_ngrams,
    read_overlap,
    write_ngrams,
    write_occurrences,
)
from mixtura.platform.data.ragged import Ragged, offsets_of
from mixtura.platform.data.vocabulary import Vocabulary, train_vocabulary
from mixtura.platform.data.words import WordTable
from mixtura.platform.errors import CorruptCacheError, DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SENTENCE = "the old dog that lived by the river barked at every boat that went past"  # 15 words
OTHER = "nobody in our small town could say why seven of the lamps were never lit again"  # 16 words


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Letters of both cases, signs, and whatever pieces a few sentences teach."""
    texts = [SENTENCE, SENTENCE.title(), OTHER, LETTERS, LETTERS.upper(), "premise: a hypothesis: b, - ! ' 0 1"] * 20
    return train_vocabulary(texts, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 188)


@pytest.fixture(scope="module")
def table(vocabulary: Vocabulary) -> WordTable:
    return WordTable.of(vocabulary)


def lists(vocabulary: Vocabulary, texts: Sequence[str]) -> pa.Array:
    return pa.array([vocabulary.encode(text) for text in texts], pa.list_(pa.int32()))


def evaluated(
    folder: Path, vocabulary: Vocabulary, *shards: Sequence[tuple[str, str]], split: str = "validation"
) -> TokenCache:
    """A cache of an evaluation split with these inputs and targets, shard by shard."""
    for index, rows in enumerate(shards):
        columns = {"inputs": [inputs for inputs, _ in rows], "targets": [targets for _, targets in rows]}
        table = pa.table({name: lists(vocabulary, texts) for name, texts in columns.items()})
        write_shard(folder, index, len(shards), split, table)
    commit(folder, "pairs", {"made": "for a test"}, {split: len(shards)})
    return open_cache(folder, split)


def text_of(folder: Path, vocabulary: Vocabulary, *shards: Sequence[str]) -> TokenCache:
    """A cache of documents."""
    for index, documents in enumerate(shards):
        write_shard(folder, index, len(shards), "train", pa.table({"tokens": lists(vocabulary, documents)}))
    commit(folder, "text", {"made": "for a test"}, {"train": len(shards)})
    return open_cache(folder)


def grams_of(folder: Path, vocabulary: Vocabulary, table: WordTable, *inputs: str, n: int = 13) -> NgramSet:
    cache = evaluated(folder, vocabulary, [(text, "") for text in inputs])
    return NgramSet(evaluation_ngrams([cache], table, n).ngrams)


def found_in(vocabulary: Vocabulary, table: WordTable, grams: NgramSet, *documents: str, n: int = 13) -> list[str]:
    """The text of the ranges that overlap."""
    tokens = Ragged.from_lists([vocabulary.encode(document) for document in documents])
    return [vocabulary.decode(tokens.values[start:end]) for start, end in find(tokens, table, grams, n).ranges]


# ---- what is an overlap ----------------------------------------------------------------------------------------------


def test_a_planted_sentence_is_found_with_its_range(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    grams = grams_of(tmp_path, vocabulary, table, SENTENCE)
    assert len(grams.ngrams) == 3
    documents = (OTHER, f"So it was: {SENTENCE} and then it slept", "", OTHER)
    assert found_in(vocabulary, table, grams, *documents) == [SENTENCE]


def test_case_signs_and_cuts_make_no_difference(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    grams = grams_of(tmp_path, vocabulary, table, SENTENCE)
    written = SENTENCE.title().replace("The River", "the 'RIVER' -- ").replace("Boat", "bo-at").replace("Past", "past!")
    assert len(set(vocabulary.encode(written)) - set(vocabulary.encode(SENTENCE))) > 10
    (found,) = found_in(vocabulary, table, grams, f"{OTHER}! {written} {OTHER}")
    assert found == vocabulary.decode(vocabulary.encode(written))


def test_twelve_of_thirteen_words_are_no_overlap(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    words = SENTENCE.split()
    grams = grams_of(tmp_path, vocabulary, table, " ".join(words[:13]))
    near = [
        " ".join(words[:12]),
        " ".join(["x", *words[1:13]]),
        " ".join([*words[:6], "x", *words[7:13]]),
        " ".join([*words[:6], "x", *words[6:13]]),
        " ".join([words[1], words[0], *words[2:13]]),
        " ".join([*words[:12], words[12] + "s"]),
    ]
    assert found_in(vocabulary, table, grams, *near) == []
    assert found_in(vocabulary, table, grams, " ".join(words[:13])) == [" ".join(words[:13])]


def test_an_ngram_does_not_cross_documents(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    words = SENTENCE.split()
    grams = grams_of(tmp_path, vocabulary, table, " ".join(words[:13]))
    assert found_in(vocabulary, table, grams, " ".join(words[:7]), "", " ".join(words[7:13])) == []


def test_an_ngram_crosses_neither_examples_nor_sides(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    words = SENTENCE.split()
    first, second = " ".join(words[:7]), " ".join(words[7:])
    cache = evaluated(tmp_path, vocabulary, [(first, second), (second, first)], [("", SENTENCE)])
    evaluation = evaluation_ngrams([cache], table, 13)
    assert evaluation.splits[0].owned.to_lists()[:2] == [[], []]
    assert sorted(evaluation.splits[0].owned.to_lists()[2]) == [0, 1, 2]
    assert evaluation.splits[0].too_short == 2


def test_ranges_that_meet_are_one_and_are_in_order(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    grams = grams_of(tmp_path, vocabulary, table, SENTENCE, OTHER)
    tokens = Ragged.from_lists([vocabulary.encode(f"{SENTENCE} {OTHER} x {OTHER}"), vocabulary.encode(SENTENCE)])
    found = find(tokens, table, grams, 13)
    lengths = [len(vocabulary.encode(text)) for text in (SENTENCE, OTHER, "x")]
    whole, gap = lengths[0] + lengths[1], lengths[2]
    assert found.ranges.tolist() == [[0, whole], [whole + gap, len(tokens.values)]], "two documents meet here"
    assert found.ngrams.tolist() == list(range(len(grams.ngrams)))
    assert found.at.max() < whole, "the first occurrence of each is told"


@pytest.mark.parametrize("n", [1, 5, 13])
def test_wherever_blocks_are_cut_the_same_is_found(
    n: int, tmp_path: Path, vocabulary: Vocabulary, table: WordTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    grams = grams_of(tmp_path, vocabulary, table, SENTENCE, OTHER, n=n)
    documents = [f"{OTHER} x {SENTENCE}", "y " * 40, f"{SENTENCE} y {OTHER} z {SENTENCE}", "", SENTENCE] * 12
    tokens = Ragged.from_lists([vocabulary.encode(document) for document in documents])
    whole = find(tokens, table, grams, n)
    assert len(whole.ranges) > 5
    assert len(tokens.values) > 2 * 8 * 16 * 13, "at least three blocks"
    for reach, size in ((16, 128), (9, 72), (10, 80)):
        monkeypatch.setattr(module, "MOST_TOKENS_A_WORD", reach)
        monkeypatch.setattr(module, "_BLOCK_TOKENS", size)
        blocks = find(tokens, table, grams, n)
        assert blocks.ranges.tolist() == whole.ranges.tolist()
        assert (blocks.ngrams.tolist(), blocks.at.tolist()) == (whole.ngrams.tolist(), whole.at.tolist())


def test_a_run_of_signs_longer_than_an_ngram_reaches_ends_it(
    tmp_path: Path, vocabulary: Vocabulary, table: WordTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_TOKENS_A_WORD", 8)
    words = SENTENCE.split()
    grams = grams_of(tmp_path, vocabulary, table, " ".join(words[:13]))
    near, far = (" ".join([*words[:5], "- " * count, *words[5:13]]) for count in (3, 200))
    assert len(found_in(vocabulary, table, grams, near)) == 1
    assert found_in(vocabulary, table, grams, far) == []


# ---- what a task's own words do --------------------------------------------------------------------------------------


def test_labels_of_fields_are_no_words_of_an_example(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    words = SENTENCE.split()
    twelve = " ".join(words[:12])
    rows = [(f"glue premise: {twelve} hypothesis: {OTHER}", "a"), (f"glue premise: {SENTENCE} hypothesis: no", "b")]
    cache = evaluated(tmp_path / "labelled", vocabulary, rows)
    (split,) = evaluation_ngrams([cache], table, 13).splits
    assert split.owned.lengths.tolist() == [4, 3]
    short = evaluated(
        tmp_path / "short", vocabulary, [(f"glue premise: {twelve}", "a"), (f"glue premise: {OTHER}", "")]
    )
    (split,) = evaluation_ngrams([short], table, 13).splits
    assert (split.too_short, split.owned.lengths.tolist()) == (1, [0, 4])


def test_a_colon_in_some_examples_is_no_label(tmp_path: Path, vocabulary: Vocabulary, table: WordTable) -> None:
    words = SENTENCE.split()
    cut = " ".join([*words[:5], f"{words[5]}:", *words[6:]])
    cache = evaluated(tmp_path, vocabulary, [(cut, "")], [(OTHER, ""), ("", "")])
    (split,) = evaluation_ngrams([cache], table, 13).splits
    assert split.owned.lengths.tolist() == [3, 4, 0]


# ---- the set of n-grams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_the_table_of_bits_changes_no_answer(count: int) -> None:
    random = np.random.default_rng(count)
    known = np.unique(random.integers(0, 2**64, count, dtype=np.uint64))
    asked = np.concatenate([random.integers(0, 2**64, 1000, dtype=np.uint64), known, known[:3] + np.uint64(1)])
    which, where = NgramSet(known).find(asked)
    assert which.tolist() == np.flatnonzero(np.isin(asked, known)).tolist()
    assert np.array_equal(known[where], asked[which])


# ---- results on disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path, vocabulary: Vocabulary) -> TokenCache:
    return text_of(tmp_path / "text", vocabulary, [OTHER, f"x {SENTENCE}"], ["x y z"], ["a", "b", OTHER])


@pytest.fixture
def pairs(tmp_path: Path, vocabulary: Vocabulary) -> TokenCache:
    words = SENTENCE.split()
    half = " ".join([*words, *(f"{word}s" for word in words[:8])])
    first = [(f"glue premise: {half}", "a"), ("glue premise: short", "b")]
    return evaluated(
        tmp_path / "pairs", vocabulary, first, [("glue premise: a", OTHER), (f"glue premise: {LETTERS}", "")]
    )


def look_through(folder: Path, text: TokenCache, pairs: TokenCache, vocabulary: Vocabulary, table: WordTable) -> dict:
    evaluation = evaluation_ngrams([pairs], table, 13)
    write_ngrams(folder, evaluation.ngrams)
    entries = []
    for shard in range(text.count):
        documents = text.column(shard, "tokens")
        found = find(documents, table, read_ngrams(folder), 13)
        entries.append(write_occurrences(folder, f"train-{shard}", len(documents.values), found))
    return commit_overlap(folder, text, entries, evaluation, vocabulary, table)


def test_L3_every_example_is_overlapping_too_short_or_clear(
    tmp_path: Path, text: TokenCache, pairs: TokenCache, vocabulary: Vocabulary, table: WordTable
) -> None:
    manifest = look_through(tmp_path / "found", text, pairs, vocabulary, table)
    about = {"task": "pairs", "split": "validation"}
    (result,) = manifest["results"]
    assert result == {
        **about,
        "examples": 4,
        "too short": 2,
        "overlapping": 2,
        "share overlapping": 1.0,
        "n-grams found": (3 / 11 + 1) / 2,
    }
    assert manifest["samples"] == [
        {
            **about,
            "row": 2,
            "n-grams found": 1.0,
            "text": " ".join(OTHER.split()[:13]),
            "shard": "train-0",
            "document": 0,
        },
        {
            **about,
            "row": 0,
            "n-grams found": 3 / 11,
            "text": " ".join(SENTENCE.split()[:13]),
            "shard": "train-0",
            "document": 1,
        },
    ]
    listed = (tmp_path / "found/examples.jsonl").read_text().splitlines()
    assert len(listed) == 2
    assert listed[0] == '{"task": "pairs", "split": "validation", "row": 0, "n-grams": 11, "found": 3}'
    assert (manifest["tokens"], manifest["ranges"]) == (text.tokens, 3)
    assert read_overlap(tmp_path / "found") == manifest


def test_ranges_are_read_shard_by_shard(
    tmp_path: Path, text: TokenCache, pairs: TokenCache, vocabulary: Vocabulary, table: WordTable
) -> None:
    look_through(tmp_path / "found", text, pairs, vocabulary, table)
    decoded = [
        [vocabulary.decode(text.column(shard, "tokens").values[start:end]) for start, end in ranges]
        for shard in range(3)
        for ranges in [load_ranges(tmp_path / "found", shard)]
    ]
    assert decoded == [[OTHER, SENTENCE], [], [OTHER]]
    assert load_ranges(tmp_path / "found", 1).shape == (0, 2)
    assert load_ranges(tmp_path / "found", 0).dtype == np.int64


def test_L4_without_a_manifest_there_are_no_ranges(tmp_path: Path) -> None:
    write_occurrences(tmp_path, "train-0", 5, module.Occurrences(np.array([[0, 2]]), np.array([0]), np.array([0])))
    assert read_overlap(tmp_path) is None
    with pytest.raises(DataError, match="mixtura mixture overlap"):
        load_ranges(tmp_path, 0)


def test_L4_a_damaged_shard_is_not_committed_and_not_read(
    tmp_path: Path, text: TokenCache, pairs: TokenCache, vocabulary: Vocabulary, table: WordTable
) -> None:
    folder = tmp_path / "found"
    look_through(folder, text, pairs, vocabulary, table)
    names = ["train-0", "train-1", "train-2"]
    assert list(committed_occurrences(folder, names)) == names
    damaged = folder / "train-0.ranges.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    (folder / "train-2.json").unlink()
    assert list(committed_occurrences(folder, names)) == ["train-1"]
    with pytest.raises(CorruptCacheError, match="train-0.ranges.npy has the xxh3-128 digest"):
        load_ranges(folder, 0)


def test_the_key_is_of_everything_that_decides_the_result() -> None:
    keys = [
        overlap_key(13, {"rte": ["a", "validation"]}, "9f"),
        overlap_key(8, {"rte": ["a", "validation"]}, "9f"),
        overlap_key(13, {"rte": ["b", "validation"]}, "9f"),
        overlap_key(13, {"rte": ["a", "validation", "test"]}, "9f"),
        overlap_key(13, {"rte": ["a", "validation"]}, "8e"),
    ]
    assert len(set(keys)) == 5


def test_memory_does_not_depend_on_the_length_of_a_shard(table: WordTable, vocabulary: Vocabulary) -> None:
    import tracemalloc

    ids = np.array(vocabulary.encode(f"{SENTENCE} {OTHER}"), dtype=np.int32)
    peaks = []
    for copies in (20_000, 100_000):
        tokens = Ragged(np.tile(ids, copies), offsets_of(np.full(copies, len(ids))))
        tracemalloc.start()
        find(tokens, table, NgramSet(np.array([5], dtype=np.uint64)), 13)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] < 2**25
