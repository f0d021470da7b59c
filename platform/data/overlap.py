"""Overlap: which evaluation examples occur in the unsupervised text, and where that text would have to be cut.

    evaluation example    cola sentence: The dog that barked at us ran off.
    its words                            the dog that barked at us ran off
    document              ... and, again, "the dog THAT barked -- at us! --" ran off ...
    with n = 8            one n-gram of the example, and it occurs: the document's tokens from `the` to `off` overlap

Text is compared as in studies of contamination (Brown et al. 2020, appendix C, has n = 13): case and everything but
letters, marks and digits are left out, words end at white space, and an n-gram is n words in a row of one document,
or of one side of an example. What was found lies beside the text's token cache:

    caches/c4-3f0c9a1be55d0b42/overlap-9be1c5d27a046f38/
      ngrams.npy                            the evaluation's n-grams as hashes, sorted
      train-00000-of-00004.ranges.npy       the tokens [start, end) of the shard that overlap, [ranges, 2]
      train-00000-of-00004.found.npy        which n-grams occur and the token where each first begins, [found, 2]
      train-00000-of-00004.json             the shard's entry; written after both
      examples.jsonl                        every evaluation example of which something occurs
      manifest.json                         all entries, and the results per task and split; written last
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from mixtura.platform.data.cache import MANIFEST, TokenCache, cache_key
from mixtura.platform.data.cache_store import Copies, Place, store_at
from mixtura.platform.data.ragged import Int32, Int64, Ragged, offsets_of
from mixtura.platform.data.shard_writer import Entry, entry_bytes
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.data.words import Bool, UInt64, Words, WordTable, ngram_hashes
from mixtura.platform.errors import DataError
from mixtura.platform.filesystems import joined, shown

NGRAM = 13
"""Words of an n-gram, after Brown et al. 2020."""

MATCHING = "1"
"""Version of what counts as an overlap: raised whenever the same tokens would give other results."""

MOST_TOKENS_A_WORD = 256
"""An n-gram lies over n times so many tokens at most. More are no words of a language, and blocks stay bounded."""

_BLOCK_TOKENS = 1 << 16
_MOST_OPENING_WORDS = 8
_SAMPLES = 3


def overlap_key(n: int, evaluation: Mapping[str, Any], vocabulary: str) -> str:
    """A check as 16 hex digits: n, what the evaluation caches were made from with their splits, the vocabulary."""
    return cache_key({"matching": MATCHING, "ngram": n, "evaluation": dict(evaluation), "vocabulary": vocabulary})


def overlap_folder(cache: Place, key: str) -> str:
    """Where what was found in the text of a cache lies."""
    return joined(str(cache), f"overlap-{key}")


# ---- what the evaluation has -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SplitNgrams:
    """One evaluation split: which n-grams each of its examples has."""

    cache: TokenCache
    owned: Ragged
    """For each example the positions of its n-grams in the sorted ones, equal ones as often as they stand there."""

    @property
    def too_short(self) -> int:
        """Examples without n words in a row, on which nothing can be said."""
        return int((self.owned.lengths == 0).sum())

    def found(self, occurs: Bool) -> Int64:
        """How many of each example's n-grams are among those that occur."""
        return np.diff(offsets_of(occurs[self.owned.values])[self.owned.offsets])


@dataclass(frozen=True, eq=False)
class EvaluationNgrams:
    """The n-grams of all evaluation splits, sorted and each once, and who has them."""

    n: int
    ngrams: UInt64
    splits: tuple[SplitNgrams, ...]


def evaluation_ngrams(caches: Sequence[TokenCache], table: WordTable, n: int) -> EvaluationNgrams:
    """The n-grams of the inputs and of the targets of every example, each side by itself.

    Words that a task's preprocessors put there are no text: those that end in a colon and stand in the inputs of every
    example of the split (`premise:`), and what stands before the first of them. An n-gram does not cross them. Without
    that, `cola sentence:` would hide that a sentence of 11 or 12 words is too short to be looked for, and n-grams from
    one field into the next, which no web page has, would lower the share that is found.
    """
    hashes = [_split_hashes(cache, table, n) for cache in caches]
    ngrams, positions = np.unique(np.concatenate([own.values for own in hashes]), return_inverse=True)
    ends = offsets_of(np.array([len(own.values) for own in hashes]))
    splits = [
        SplitNgrams(cache, Ragged(positions[start:end], own.offsets))
        for cache, own, start, end in zip(caches, hashes, ends[:-1], ends[1:], strict=True)
    ]
    return EvaluationNgrams(n, ngrams, tuple(splits))


def _split_hashes(cache: TokenCache, table: WordTable, n: int) -> Ragged:
    """The hashes of the n-grams of each example."""
    labels, opening = _template(cache, table)
    rows: list[Int64] = []
    hashes: list[UInt64] = []
    for column in ("inputs", "targets"):
        for words, row, in_colon in _column_words(cache, column, table):
            is_label = in_colon & np.isin(words.hashes, labels) & (column == "inputs")
            text = ~is_label & ((_place_in_row(row) >= opening) | (column == "targets"))
            field = np.cumsum(is_label | (np.diff(row, prepend=-1) != 0))[text]
            grams = ngram_hashes(words.hashes[text], n)
            starts, ends = words.starts[text][: len(grams)], words.ends[text][n - 1 :]
            whole = (field[: len(grams)] == field[n - 1 :]) & (ends - starts <= MOST_TOKENS_A_WORD * n)
            hashes.append(grams[whole])
            rows.append(row[text][: len(grams)][whole])
    row, values = np.concatenate(rows), np.concatenate(hashes)
    order = np.argsort(row, kind="stable")
    return Ragged(values[order], offsets_of(np.bincount(row, minlength=cache.rows)))


def _column_words(cache: TokenCache, column: str, table: WordTable) -> Iterator[tuple[Words, Int64, Bool]]:
    """Shard by shard the words of a column, the row of the split that each is in, and whether it ends in a colon."""
    for shard, first_row in enumerate(offsets_of(np.array(cache.shard_rows))[:-1]):
        tokens = cache.column(shard, column)
        words = table.words(tokens.values, tokens.offsets[:-1][tokens.lengths > 0])
        row = np.searchsorted(tokens.offsets, words.starts, side="right") - 1 + first_row
        yield words, row, table.ends_in_colon[tokens.values[words.ends - 1]]


def _template(cache: TokenCache, table: WordTable) -> tuple[UInt64, int]:
    """The labels of a split's fields, and how many words stand before the first of them in every example."""
    seen = [np.zeros(0, dtype=np.uint64)]
    for words, row, in_colon in _column_words(cache, "inputs", table):
        pairs = np.unique(np.stack([words.hashes[in_colon], row[in_colon].astype(np.uint64)]), axis=1)
        seen.append(pairs[0])
    hashes, rows = np.unique(np.concatenate(seen), return_counts=True)
    labels = hashes[rows == cache.rows]
    before: set[int] = set()
    for words, row, in_colon in _column_words(cache, "inputs", table):
        is_label = in_colon & np.isin(words.hashes, labels)
        _, first = np.unique(row[is_label], return_index=True)
        before.update(_place_in_row(row)[is_label][first].tolist())
    opening = before.pop() if len(before) == 1 else 0
    return labels, opening if opening <= _MOST_OPENING_WORDS else 0


def _place_in_row(row: Int64) -> Int64:
    """The number of each word within its row, from 0, for rows in order.

    >>> _place_in_row(np.array([3, 3, 3, 7, 7])).tolist()
    [0, 1, 2, 0, 1]
    """
    begins = np.diff(row, prepend=-1) != 0
    numbers = np.arange(len(row))
    return np.asarray(numbers - np.maximum.accumulate(np.where(begins, numbers, 0)), dtype=np.int64)


# ---- what the text has -----------------------------------------------------------------------------------------------


class NgramSet:
    """Sorted n-grams behind a table of bits, 32 for each, so that nearly all of a text is told apart by one look."""

    def __init__(self, ngrams: UInt64) -> None:
        self.ngrams = ngrams
        bits = max(16, (32 * max(1, len(ngrams)) - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        places = ngrams >> self._shift
        self._bits = np.zeros(1 << (bits - 3), dtype=np.uint8)
        if len(ngrams):
            cells, first = np.unique(places >> np.uint64(3), return_index=True)
            marks = np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
            self._bits[cells] = np.bitwise_or.reduceat(marks, first)

    def find(self, hashes: UInt64) -> tuple[Int64, Int64]:
        """Which of the hashes are in the set, and where in `ngrams`."""
        places = hashes >> self._shift
        cells = self._bits[(places >> np.uint64(3)).view(np.int64)]
        likely = np.flatnonzero((cells >> (places & np.uint64(7)).astype(np.uint8)) & np.uint8(1))
        at = np.searchsorted(self.ngrams, hashes[likely])
        at[at == len(self.ngrams)] = 0
        found = np.flatnonzero(self.ngrams[at] == hashes[likely]) if len(self.ngrams) else likely[:0]
        return likely[found], at[found]


@dataclass(frozen=True, slots=True, eq=False)
class Occurrences:
    """What a shard of text has of the evaluation's n-grams."""

    ranges: Int64
    """[ranges, 2]: the tokens [start, end) of the shard that lie in such an n-gram, merged and in order."""
    ngrams: Int64
    """Positions of the n-grams that occur, in the sorted ones."""
    at: Int64
    """For each of them the token with which it first begins."""


def find(documents: Ragged, table: WordTable, ngrams: NgramSet, n: int) -> Occurrences:
    """Look for n-grams in the documents of a shard, block by block: memory does not depend on the shard's size.

    A block reads on for as many tokens as an n-gram may lie over, and keeps the n-grams that begin in it. So each is
    seen once and whole, wherever blocks are cut.
    """
    reach = MOST_TOKENS_A_WORD * n
    size = max(_BLOCK_TOKENS, 8 * reach)
    merged = [np.zeros((0, 2), dtype=np.int64)]
    first = np.full(len(ngrams.ngrams), -1, dtype=np.int64)
    for begin in range(0, len(documents.values), size):
        low, high = np.searchsorted(documents.offsets[:-1], (begin, min(begin + size + reach, len(documents.values))))
        tokens = documents.values[begin : begin + size + reach]
        words = table.words(tokens, np.unique(documents.offsets[low:high]) - begin)
        place, known = ngrams.find(ngram_hashes(words.hashes, n))
        starts, ends = words.starts[place], words.ends[place + n - 1]
        whole = (starts < size) & (ends - starts <= reach)
        starts, ends, known = begin + starts[whole], begin + ends[whole], known[whole]
        same = np.flatnonzero(_document(documents, starts) == _document(documents, ends - 1))
        merged.append(_merged(np.stack([starts[same], ends[same]], axis=1)))
        once, at = np.unique(known[same], return_index=True)
        first[once] = np.where(first[once] < 0, starts[same][at], first[once])
    occurring = np.flatnonzero(first >= 0)
    return Occurrences(_merged(np.concatenate(merged)), occurring, first[occurring])


def _document(documents: Ragged, tokens: Int64) -> Int64:
    """The document that each token is in."""
    return np.asarray(np.searchsorted(documents.offsets, tokens, side="right") - 1, dtype=np.int64)


def _merged(found: Int64) -> Int64:
    """Ranges in the order of their starts, with those that meet made one.

    >>> _merged(np.array([[0, 5], [2, 4], [5, 7], [9, 12]])).tolist()
    [[0, 7], [9, 12]]
    """
    if not len(found):
        return found
    reached = np.maximum.accumulate(found[:, 1])
    begins = np.flatnonzero(np.append(True, found[1:, 0] > reached[:-1]))
    return np.stack([found[begins, 0], reached[np.append(begins[1:], len(found)) - 1]], axis=1)


# ---- results ---------------------------------------------------------------------------------------------------------


def write_ngrams(folder: Place, ngrams: UInt64) -> None:
    """Put the evaluation's n-grams where those who look through the shards find them."""
    store_at(folder).write("ngrams.npy", _npy(ngrams))


def read_ngrams(folder: Place) -> NgramSet:
    """The evaluation's n-grams, to look for."""
    data = store_at(folder).read("ngrams.npy")
    if data is None:
        raise DataError(f"there are no n-grams to look for in {shown(str(folder))}: run the same command again")
    return NgramSet(np.load(io.BytesIO(data)))


def write_occurrences(folder: Place, name: str, tokens: int, occurrences: Occurrences) -> Entry:
    """Write what a shard has, and then its entry, which is returned."""
    store = store_at(folder)
    found = np.stack([occurrences.ngrams, occurrences.at], axis=1)
    entry: Entry = {"shard": name, "tokens": tokens, "ranges": len(occurrences.ranges)}
    entry["overlapping tokens"] = int((occurrences.ranges[:, 1] - occurrences.ranges[:, 0]).sum())
    for kind, array in (("ranges", occurrences.ranges), ("found", found)):
        data = _npy(array)
        file = f"{name}.{kind}.npy"
        store.write(file, data)
        entry[f"{kind}_file"] = {"file": file, "bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    store.write(f"{name}.json", entry_bytes(entry))
    return entry


def committed_occurrences(folder: Place, names: Sequence[str]) -> dict[str, Entry]:
    """The shards that were looked through: entry there, files of the right size and digest."""
    store = store_at(folder)
    committed = {}
    for name in names:
        data = store.read(f"{name}.json")
        entry = json.loads(data) if data is not None else None
        if entry and not any(
            store.damage(file["file"], file["bytes"], file["xxh3_128"])
            for file in (entry["ranges_file"], entry["found_file"])
        ):
            committed[name] = entry
    return committed


def load_ranges(folder: Place, shard: int, copies: Copies | None = None) -> Int64:
    """The tokens [start, end) of a shard of text that overlap, [ranges, 2], in order and apart from each other."""
    return _load(folder, _manifest(str(folder))["shards"][shard]["ranges_file"], copies)


def read_overlap(folder: Place) -> Entry | None:
    """The manifest of a check, or None where it has not ended."""
    data = store_at(folder).read(MANIFEST)
    return None if data is None else dict(json.loads(data))


@functools.lru_cache(maxsize=16)
def _manifest(folder: str) -> Entry:
    manifest = read_overlap(folder)
    if manifest is None:
        raise DataError(
            f"the text of this cache was not compared with the evaluation yet: there is no {MANIFEST} in "
            f"{shown(folder)}; run `mixtura mixture overlap RECIPE`"
        )
    return manifest


@dataclass(frozen=True, eq=False)
class _Places:
    """Where each of the evaluation's n-grams first occurs in the text: shard, or -1, and token; both [n-grams]."""

    shards: Int64
    tokens: Int64

    @classmethod
    def read(cls, folder: Place, entries: Sequence[Entry], count: int, copies: Copies | None) -> _Places:
        shards, tokens = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for shard in reversed(range(len(entries))):
            ngrams, at = _load(folder, entries[shard]["found_file"], copies).T
            shards[ngrams], tokens[ngrams] = shard, at
        return cls(shards, tokens)


def commit_overlap(
    folder: Place,
    text: TokenCache,
    entries: Sequence[Entry],
    evaluation: EvaluationNgrams,
    vocabulary: Vocabulary,
    table: WordTable,
    copies: Copies | None = None,
) -> Entry:
    """Count what was found for every split, and write the list of examples and then the manifest, which is returned.

    `entries` are those of all shards of the text, in order.
    """
    places = _Places.read(folder, entries, len(evaluation.ngrams), copies)
    occurs = places.shards >= 0
    results, samples = [], []
    lines: list[str] = []
    for split in evaluation.splits:
        about = {"task": split.cache.name, "split": split.cache.split}
        found, owned = split.found(occurs), split.owned.lengths
        overlapping, shares = np.flatnonzero(found), found / np.maximum(owned, 1)
        numbers = {"examples": len(owned), "too short": split.too_short, "overlapping": len(overlapping)}
        means = (len(overlapping), float(shares.sum()))
        of_long = [value / (len(owned) - split.too_short) if split.too_short < len(owned) else None for value in means]
        results.append({**about, **numbers, "share overlapping": of_long[0], "n-grams found": of_long[1]})
        for row in overlapping.tolist():
            counts = {"n-grams": int(owned[row]), "found": int(found[row])}
            lines.append(json.dumps({**about, "row": row, **counts}, ensure_ascii=False) + "\n")
        for row in overlapping[np.argsort(-shares[overlapping], kind="stable")][:_SAMPLES].tolist():
            tokens, ngram = _first_occurring(split, row, evaluation, occurs, table)
            shard, at = int(places.shards[ngram]), places.tokens[ngram : ngram + 1]
            document = int(_document(text.column(shard, "tokens"), at)[0])
            sample = {"row": row, "n-grams found": float(shares[row]), "text": vocabulary.decode(tokens)}
            samples.append({**about, **sample, "shard": entries[shard]["shard"], "document": document})
    totals = {name: sum(entry[name] for entry in entries) for name in ("tokens", "ranges", "overlapping tokens")}
    head = {"ngram": evaluation.n, "text": text.name, "n-grams": len(occurs), "n-grams found": int(occurs.sum())}
    manifest = {**head, **totals, "results": results, "samples": samples, "shards": list(entries)}
    store = store_at(folder)
    store.write("examples.jsonl", "".join(lines).encode())
    store.write(MANIFEST, entry_bytes(manifest))
    return manifest


def _first_occurring(
    split: SplitNgrams, row: int, evaluation: EvaluationNgrams, occurs: Bool, table: WordTable
) -> tuple[Int32, int]:
    """The tokens of an example's first n-gram that occurs, and its position in the sorted ones."""
    own = split.owned.values[split.owned.offsets[row] : split.owned.offsets[row + 1]]
    wanted = evaluation.ngrams[own[occurs[own]]]
    firsts = offsets_of(np.array(split.cache.shard_rows))
    shard = int(np.searchsorted(firsts, row, side="right")) - 1
    for side in split.cache.examples(shard, np.array([row - firsts[shard]])):
        words = table.words(side.values, side.offsets[:-1][side.lengths > 0])
        hashes = ngram_hashes(words.hashes, evaluation.n)
        for place in np.flatnonzero(np.isin(hashes, wanted))[:1]:
            tokens = side.values[words.starts[place] : words.ends[place + evaluation.n - 1]]
            return tokens, int(np.searchsorted(evaluation.ngrams, hashes[place]))
    raise DataError(f"row {row} of {split.cache.name}, {split.cache.split}, is not the one that was looked for")


def _load(folder: Place, file: Entry, copies: Copies | None) -> Int64:
    path = store_at(folder, copies).local(file["file"], file["bytes"], file["xxh3_128"])
    return np.asarray(np.load(path), dtype=np.int64)


def _npy(array: Int64 | UInt64) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
