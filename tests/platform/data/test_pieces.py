from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data import pieces as module
from mixtura.platform.data.cache import open_cache
from mixtura.platform.data.pieces import PiecesWithout, make_pieces
from mixtura.platform.data.ragged import Ragged, offsets_of

DOCUMENTS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=4)


class Documents:
    """A cache of documents with these lengths, whose tokens are numbered through."""

    def __init__(self, lengths: list[list[int]]) -> None:
        self._shards = []
        first = 1
        for shard in lengths:
            offsets = offsets_of(np.array(shard))
            self._shards.append(Ragged(np.arange(first, first + offsets[-1], dtype=np.int32), offsets))
            first += int(offsets[-1])

    @property
    def count(self) -> int:
        return len(self._shards)

    def entry(self, shard: int) -> dict[str, int]:
        return {"tokens": len(self._shards[shard].values)}

    def column(self, shard: int, name: str) -> Ragged:
        assert name == "tokens"
        return self._shards[shard]


def texts(pieces, shard: int) -> list[list[int]]:
    return pieces.fetch(shard, np.arange(pieces.count(shard))).to_lists()


def by_definition(documents: list[list[int]], length: int, joined: int) -> list[list[int]]:
    documents = [document for document in documents if document]
    found = []
    for start in range(0, len(documents), joined):
        tokens = [token for document in documents[start : start + joined] for token in document]
        found += [tokens[at : at + length] for at in range(0, len(tokens), length)]
    return found


@given(DOCUMENTS, st.integers(1, 60), st.sampled_from([1, 2, 5, 10**9]))
def test_pieces_are_cut_as_their_definition_says(lengths: list[list[int]], length: int, joined: int) -> None:
    cache = Documents(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DOCUMENTS_JOINED", joined)
        ways = {
            10**9: [make_pieces(cache, length), make_pieces(cache, length, chunks="original")],
            1: [make_pieces(cache, length, chunks="original", concatenates=False)],
        }.get(joined, [make_pieces(cache, length, chunks="original")])
        for pieces in ways:
            for shard in range(cache.count):
                expected = by_definition(cache.column(shard, "tokens").to_lists(), length, joined)
                assert texts(pieces, shard) == expected
                every = np.arange(pieces.count(shard))
                assert pieces.lengths(shard, every).tolist() == [len(piece) for piece in expected]
                starts, ends = pieces.spans(shard)
                assert (ends - starts).tolist() == [len(piece) for piece in expected]


def test_contiguous_pieces_hold_every_token_once_and_only_the_last_is_short() -> None:
    pieces = make_pieces(Documents([[3, 9, 4]]), 5)
    assert texts(pieces, 0) == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15], [16]]


def test_of_a_long_document_one_stretch_is_taken_every_one_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_STRETCH", 10)
    cache = Documents([[25, 3]] * 300)
    pieces = make_pieces(cache, 4, chunks="original")
    chosen = []
    for shard in range(300):
        text = [token for piece in texts(pieces, shard) for token in piece]
        document, after = cache.column(shard, "tokens").to_lists()
        assert text[-3:] == after
        start = document.index(text[0])
        assert text[:-3] == document[start : start + 10]
        chosen.append(start)
        values = cache.column(shard, "tokens").values
        for piece, first, end in zip(texts(pieces, shard), *map(np.ndarray.tolist, pieces.spans(shard)), strict=True):
            assert (values[first], values[end - 1]) == (piece[0], piece[-1])
    counts = np.bincount(chosen, minlength=21)[[0, 10, 20]]
    assert counts.sum() == 300
    assert ((counts - 100) ** 2 / 100).sum() < 14  # chi square of two degrees of freedom


def test_the_released_chain_makes_as_many_pieces_of_the_same_lengths(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "golden/spans.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] != "chain" or row["objective"] == "full_lm":
            continue
        length = 568 if row["objective"] == "span_corruption" else 511
        pieces = make_pieces(Documents([row["doc_lengths"]]), length, chunks="original")
        # of the document of 70,000 tokens the original took a stretch of 65,536 or of 4,464, whichever its chance chose
        short = sum(min(tokens, 65_536) for tokens in row["doc_lengths"])
        possible = {-(-tokens // length) for tokens in (short, short - 65_536 + 4_464)}
        assert len(row["result"]) in possible
        assert pieces.count(0) in possible


@given(DOCUMENTS, st.integers(1, 200), st.integers(1, 30), st.booleans())
def test_a_task_held_to_its_first_tokens_has_those(
    lengths: list[list[int]], first: int, length: int, ours: bool
) -> None:
    cache = Documents(lengths)
    pieces = make_pieces(cache, length, chunks="contiguous" if ours else "original", first_tokens=first)
    text = [token for shard in range(pieces.shards) for piece in texts(pieces, shard) for token in piece]
    total = sum(map(sum, lengths))
    assert text == list(range(1, min(first, total) + 1))


@given(
    DOCUMENTS,
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 50)), max_size=6),
    st.booleans(),
)
def test_pieces_that_touch_a_range_are_left_out_and_no_others(
    lengths: list[list[int]], length: int, found: list[tuple[int, int]], ours: bool
) -> None:
    cache = Documents(lengths)
    whole = make_pieces(cache, length, chunks="contiguous" if ours else "original")
    ranges = []
    for start, count in sorted(found):
        if not ranges or start > ranges[-1][1]:
            ranges.append([start, start + count])
    pieces = PiecesWithout(whole, lambda _: np.array(ranges, dtype=np.int64).reshape(-1, 2))
    marked = {place for start, end in ranges for place in range(start, end)}
    for shard in range(cache.count):
        starts, ends = whole.spans(shard)
        stays = [not marked & set(range(*span)) for span in zip(starts.tolist(), ends.tolist(), strict=True)]
        assert texts(pieces, shard) == [text for text, stay in zip(texts(whole, shard), stays, strict=True) if stay]
        assert pieces.lengths(shard, np.arange(pieces.count(shard))).tolist() == [
            len(text) for text in texts(pieces, shard)
        ]


def test_pieces_of_a_cache_on_disk(make_unsupervised: Callable[..., Path], tmp_path: Path) -> None:
    cache = open_cache(make_unsupervised(tmp_path / "text-0123456789abcdef", [[7, 0, 4], [0], [12]]))
    pieces = make_pieces(cache, 5)
    assert [pieces.count(shard) for shard in range(pieces.shards)] == [3, 0, 3]
    tokens = cache.column(0, "tokens").values.tolist()
    assert texts(pieces, 0) == [tokens[:5], tokens[5:10], tokens[10:]]
