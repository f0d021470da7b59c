"""Words from tokens are the words of the text, however the text was cut into pieces."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mixtura.platform.data import words as module
from mixtura.platform.data.vocabulary import Vocabulary, train_vocabulary
from mixtura.platform.data.words import WordTable, ngram_hashes, normalised

START = np.zeros(1, dtype=np.int64)


class Pieces:
    """A vocabulary of given pieces; those after padding, end and unknown have the ids 3, 4, ..."""

    pad_id, eos_id, unk_id = 0, 1, 2

    def __init__(self, *pieces: str) -> None:
        self._pieces = ["<pad>", "</s>", "<unk>", *pieces]
        self.pieces = len(self._pieces)
        self.size = self.pieces + 1  # one sentinel

    def piece(self, number: int) -> str:
        return self._pieces[number] if number < self.pieces else "<extra_id_0>"


def table_of(*pieces: str) -> WordTable:
    return WordTable.of(Pieces(*pieces))  # type: ignore[arg-type]


def slow_hashes(words: Sequence[str]) -> list[int]:
    """One word after the other, with Python's integers."""
    base, (first, second) = module._CHARACTER_BASE, map(int, module._MIX)
    hashes = []
    for word in words:
        value = sum(ord(letter) * pow(base, place, 2**64) for place, letter in enumerate(word)) % 2**64
        value ^= value >> 32
        for factor in (first, second):
            value = value * factor % 2**64
            value ^= value >> 29
        hashes.append(value)
    return hashes


def hashes_of(table: WordTable, *tokens: int) -> list[int]:
    return table.words(np.array(tokens, dtype=np.int32), START).hashes.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  dog,\n\tbarked!", ["the", "dog", "barked"]),
        ("don't WELL-KNOWN e.g. 3.5%", ["dont", "wellknown", "eg", "35"]),
        ("-- ... $ \u2581 \U0001f642", []),
        ("Stra\u00dfe \u03a3\u03a3 na\u00efve", ["strasse", "\u03c3\u03c3", "na\u00efve"]),
        ("soft\u00adhyphen", ["softhyphen"]),
    ],
)
def test_words_are_letters_marks_and_digits_between_white_space(text: str, words: list[str]) -> None:
    assert normalised(text) == words


def test_a_word_has_the_same_hash_however_it_is_cut_and_written() -> None:
    table = table_of(
        "\u2581tokenize", "\u2581token", "ize", "\u2581TOKEN", "IZE", "\u2581", "t", "okenize", "-", ",", '"'
    )
    ways = [(3,), (4, 5), (6, 7), (8, 9, 10), (4, 11, 5, 12), (8, 11, 3)]
    wanted = slow_hashes(["tokenize"])
    for way in ways:
        assert hashes_of(table, *way) == wanted
    assert hashes_of(table, 5, 4) == slow_hashes(["ize", "token"])


def test_a_word_has_the_range_of_its_tokens_and_signs_alone_are_none() -> None:
    table = table_of("\u2581the", "\u2581dog", ",", "\u2581-", "\u2581bar", "ked")
    words = table.words(np.array([3, 4, 5, 6, 5, 7, 8], dtype=np.int32), START)
    assert (words.starts.tolist(), words.ends.tolist()) == ([0, 1, 5], [1, 3, 7])
    assert words.hashes.tolist() == slow_hashes(["the", "dog", "barked"])


def test_a_break_begins_a_word_and_tokens_before_the_first_beginning_make_none() -> None:
    table = table_of("\u2581bar", "ked")
    words = table.words(np.array([4, 3, 4, 4], dtype=np.int32), np.array([3]))
    assert (words.starts.tolist(), words.ends.tolist()) == ([1, 3], [3, 4])
    assert words.hashes.tolist() == slow_hashes(["barked", "ked"])
    assert len(table.words(np.array([4, 4], dtype=np.int32), START[:0]).hashes) == 0
    assert len(table.words(np.zeros(0, dtype=np.int32), START[:0]).hashes) == 0


def test_white_space_within_a_piece_parts_words() -> None:
    table = table_of("\u2581of\u2581the", "\u2581of", "\u2581the", "s\u2581", "se")
    words = table.words(np.array([3, 6, 7, 3, 7], dtype=np.int32), START)
    assert words.hashes.tolist() == slow_hashes(["of", "thes", "se", "of", "these"])
    assert words.starts.tolist() == [0, 0, 1, 3, 3]
    assert words.ends.tolist() == [1, 2, 3, 4, 5]
    assert table.words(np.array([4, 5], dtype=np.int32), np.array([0])).hashes.tolist() == slow_hashes(["of", "the"])


def test_unknown_ids_contribute_nothing_and_sentinels_part_words() -> None:
    table = table_of("\u2581bar", "ked")
    assert hashes_of(table, 3, 2, 4) == slow_hashes(["barked"])
    assert hashes_of(table, 2, 2) == []
    assert hashes_of(table, 3, 5, 4) == slow_hashes(["bar", "ked"])


def test_the_order_of_words_and_every_word_matters() -> None:
    hashes = np.array(slow_hashes(["a", "b", "c", "d"]), dtype=np.uint64)
    ngrams = {
        tuple(order): ngram_hashes(hashes[order], 3).tolist() for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 1, 3])
    }
    assert len({value for (value,) in ngrams.values()}) == 4
    assert ngram_hashes(hashes, 3).tolist() == [ngrams[0, 1, 2][0], ngram_hashes(hashes[1:], 3)[0]]
    assert len(ngram_hashes(hashes, 5)) == 0


def test_an_ngram_has_the_same_hash_wherever_it_stands() -> None:
    far = np.arange(1, 200_001, dtype=np.uint64) % np.uint64(50_000)
    hashes = ngram_hashes(far, 13)
    assert np.array_equal(hashes[:50_000], hashes[150_000 - 50_000 : 150_000 - 50_000 + 50_000])
    assert len(np.unique(hashes)) == 50_000


def test_all_pieces_of_a_trained_vocabulary_agree_with_decoded_text(tmp_path: Path) -> None:
    texts = ["The dog, that BARKED at us -- ran off!", "Don't run; well-known dogs don't."] * 50
    vocabulary = train_vocabulary(texts, tmp_path / "spiece.model", 134)
    table = WordTable.of(vocabulary)
    for text in (*texts[:2], "A  ran-off DOG \u2581 barks."):
        ids = [number for number in vocabulary.encode(text) if number != vocabulary.unk_id]
        assert hashes_of(table, *ids) == slow_hashes(normalised(vocabulary.decode(ids)))


def test_the_words_of_real_documents_are_those_of_their_decoded_text(shared: Path) -> None:
    """Unknown ids aside, which decode to a sign of their own. More than nine documents of ten, whose letters the
    vocabulary all has and leaves as they are, have the very words of the text as it was written."""
    vocabulary = Vocabulary(shared / "data/vocab/t5/spiece.model")
    table = WordTable.of(vocabulary)
    with gzip.open(shared / "data/web/c4/c4-train.sample-1000.json.gz", "rt") as lines:
        texts = [json.loads(line)["text"] for line in lines][:200]
    as_written = 0
    for ids, text in zip(vocabulary.encode_batch(texts).to_lists(), texts, strict=True):
        known = [number for number in ids if number != vocabulary.unk_id]
        found = hashes_of(table, *ids)
        assert found == slow_hashes(normalised(vocabulary.decode(known)))
        as_written += found == slow_hashes(normalised(text))
    assert as_written >= 180
