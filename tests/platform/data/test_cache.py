from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mixtura.platform.data import cache as cache_module
from mixtura.platform.data import cache_store
from mixtura.platform.data.cache import (
    begin,
    cache_key,
    cache_place,
    commit,
    committed_shards,
    is_closed,
    leave_failure,
    open_cache,
    read_manifest,
    remove_leftovers,
    why_new,
    write_shard,
)
from mixtura.platform.errors import CorruptCacheError, DataError, ResourceError
from mixtura.platform.files import xxh3_128


def pairs(*rows: tuple[list[int], list[int]]) -> pa.Table:
    inputs, targets = zip(*rows, strict=True)
    return pa.table({"inputs": list(inputs), "targets": list(targets), "inputs_text": [str(row) for row in inputs]})


def write_pairs(directory: Path, index: int, count: int = 4) -> dict:
    return write_shard(directory, index, count, "train", pairs(([5 + index, 6], [7]), ([], [8, 9])))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    for index in range(4):
        write_pairs(tmp_path, index)
    commit(tmp_path, "pairs", {"source": "3f"}, {"train": 4})
    return tmp_path


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_committed_cache_gives_back_its_examples(whole: Path) -> None:
    cache = open_cache(whole)
    assert (cache.name, cache.kind, cache.split, cache.shard_rows) == ("pairs", "supervised", "train", [2, 2, 2, 2])
    inputs, targets = cache.examples(3, np.array([1, 0, 0]))
    assert inputs.to_lists() == [[], [8, 6], [8, 6]]
    assert targets.to_lists() == [[8, 9], [7], [7]]
    assert inputs.values.dtype == np.int32
    assert (cache.rows, cache.tokens) == (8, 20)


def test_text_columns_are_kept_for_metrics(whole: Path) -> None:
    assert open_cache(whole).table(2).column("inputs_text").to_pylist() == ["[7, 6]", "[]"]


def test_a_column_lies_in_the_map_and_cannot_be_changed(whole: Path) -> None:
    column = open_cache(whole).column(1, "inputs")
    assert column.to_lists() == [[6, 6], []]
    assert not column.values.flags.owndata
    assert not column.offsets.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        column.values[0] = 9
    assert open_cache(whole).column(1, "inputs") is column


def test_L4_a_cache_without_a_manifest_is_absent(tmp_path: Path) -> None:
    for index in range(4):
        write_pairs(tmp_path, index)
    with pytest.raises(DataError, match="mixtura prepare"):
        open_cache(tmp_path)


def test_L4_a_rerun_goes_on_from_the_committed_shards(tmp_path: Path) -> None:
    for index in (0, 2):
        write_pairs(tmp_path, index)
    assert set(committed_shards(tmp_path, "train", 4)) == {0, 2}
    assert committed_shards(tmp_path, "train", 3) == {}
    with pytest.raises(DataError, match="lacks 2 of 4 shards: train-00001-of-00004, train-00003-of-00004"):
        commit(tmp_path, "pairs", {}, {"train": 4})
    for index in (1, 3):
        write_pairs(tmp_path, index)
    commit(tmp_path, "pairs", {}, {"train": 4})
    assert open_cache(tmp_path).rows == 8


def test_L4_a_damaged_shard_loses_its_entry_so_that_nobody_waits_for_less_than_a_whole_one(tmp_path: Path) -> None:
    for index in range(3):
        write_pairs(tmp_path, index, 3)
    flip_a_byte(tmp_path / "train-00000-of-00003.arrow")
    (tmp_path / "train-00001-of-00003.json").write_text("{")
    assert set(committed_shards(tmp_path, "train", 3)) == {2}
    assert [path.name for path in tmp_path.glob("*.json")] == ["train-00002-of-00003.json"]


def test_L4_a_shard_without_its_entry_is_not_committed(tmp_path: Path) -> None:
    write_pairs(tmp_path, 0)
    (tmp_path / "train-00000-of-00004.json").unlink()
    assert committed_shards(tmp_path, "train", 4) == {}


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    for index in range(4):
        write_pairs(tmp_path, index)
    flip_a_byte(tmp_path / "train-00001-of-00004.arrow")
    (tmp_path / "train-00003-of-00004.arrow").unlink()
    assert set(committed_shards(tmp_path, "train", 4)) == {0, 2}


def test_a_flipped_byte_is_named_with_both_digests_and_the_remedy(whole: Path) -> None:
    shard = whole / "train-00002-of-00004.arrow"
    committed = json.loads((whole / "train-00002-of-00004.json").read_text())["xxh3_128"]
    flip_a_byte(shard)
    with pytest.raises(CorruptCacheError) as error:
        open_cache(whole)
    message = str(error.value)
    assert shard.name in message
    assert committed in message
    assert xxh3_128(shard) in message
    assert f"rm {whole}/manifest.json" in message


def test_the_remedy_works(whole: Path) -> None:
    flip_a_byte(whole / "train-00002-of-00004.arrow")
    (whole / "manifest.json").unlink()
    for index in {0, 1, 2, 3} - set(committed_shards(whole, "train", 4)):
        write_pairs(whole, index)
    commit(whole, "pairs", {}, {"train": 4})
    assert open_cache(whole).rows == 8


def test_a_truncated_or_missing_shard_is_found_even_after_it_was_verified(whole: Path) -> None:
    open_cache(whole)
    shard = whole / "train-00001-of-00004.arrow"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CorruptCacheError, match="were committed"):
        open_cache(whole)
    shard.unlink()
    with pytest.raises(CorruptCacheError, match="is missing"):
        open_cache(whole)


@pytest.fixture
def digested(whole: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose digests are compared, with a cache that was written a while ago."""
    names: list[str] = []
    for path in whole.glob("*.arrow"):
        os.utime(path, (time.time() - 60,) * 2)
    monkeypatch.setattr(cache_store, "file_digest", lambda path: names.append(path.name) or xxh3_128(path))
    return names


def test_digests_are_compared_once_per_process(whole: Path, digested: list[str]) -> None:
    open_cache(whole)
    open_cache(whole).column(2, "inputs")
    assert sorted(digested) == [f"train-{index:05d}-of-00004.arrow" for index in range(4)]


def test_a_large_cache_is_verified_shard_by_shard_at_their_first_use(
    whole: Path, digested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_VERIFIED_AT_ONCE_BYTES", 100)
    flip_a_byte(whole / "train-00003-of-00004.arrow")
    cache = open_cache(whole)
    assert digested == []
    assert cache.column(1, "targets").to_lists() == [[7], [8, 9]]
    assert digested == ["train-00001-of-00004.arrow"]
    with pytest.raises(CorruptCacheError, match="train-00003-of-00004.arrow has the xxh3-128 digest"):
        cache.column(3, "targets")


def test_a_broken_manifest_is_one_clear_error(whole: Path) -> None:
    (whole / "manifest.json").write_text("{")
    with pytest.raises(CorruptCacheError, match="is not JSON"):
        open_cache(whole)


def test_L3_rejected_rows_are_counted_by_reason_and_kept(tmp_path: Path) -> None:
    rejected = [
        {"reason": "no_answer", "origin": "train.jsonl:7", "row": {"question": "é?"}},
        {"reason": "no_answer", "origin": "train.jsonl:9"},
        {"reason": "not_json", "origin": "train.jsonl:12"},
    ]
    table = pairs(([5], [6]), ([5], [7]))
    entry = write_shard(tmp_path, 0, 2, "train", table, rejected=rejected, counters={"read": 5})
    assert entry["rejected"] == {"no_answer": 2, "not_json": 1}
    write_shard(tmp_path, 1, 2, "train", table, rejected=rejected[:1], counters={"read": 3})
    commit(tmp_path, "pairs", {}, {"train": 2})
    kept = (tmp_path / "rejected/train-00000-of-00002.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == rejected
    totals = json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]
    assert totals["rejected"] == {"no_answer": 3, "not_json": 1}
    assert totals["counters"]["read"] == totals["rows"] + sum(totals["rejected"].values())


def test_the_manifest_says_what_the_cache_holds(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["made_from"] == {"source": "3f"}
    shard = manifest["splits"]["train"]["shards"][1]
    assert (shard["rows"], shard["tokens"]) == (2, 5)
    assert shard["columns"] == {"inputs": {"tokens": 2, "longest": 2}, "targets": {"tokens": 3, "longest": 2}}
    assert shard["bytes"] == (whole / shard["file"]).stat().st_size


def test_several_splits_and_an_empty_shard(tmp_path: Path) -> None:
    write_pairs(tmp_path, 0, 1)
    empty = pa.table({"inputs": pa.array([], pa.list_(pa.int64())), "targets": pa.array([], pa.list_(pa.int64()))})
    write_shard(tmp_path, 0, 1, "validation", empty)
    commit(tmp_path, "pairs", {}, {"train": 1, "validation": 1})
    assert open_cache(tmp_path, "validation").shard_rows == [0]
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        open_cache(tmp_path, "test")


def test_what_is_not_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="columns inputs and targets, or tokens"):
        write_shard(tmp_path, 0, 1, "train", pa.table({"inputs": [[1]]}))
    with pytest.raises(DataError, match="0 is padding, .*; found 0 to 5"):
        write_shard(tmp_path, 0, 1, "train", pa.table({"tokens": [[5, 0]]}))
    with pytest.raises(DataError, match="found a null"):
        write_shard(tmp_path, 0, 1, "train", pa.table({"tokens": [[5], None]}))
    write_shard(tmp_path, 0, 2, "train", pa.table({"tokens": [[5]]}))
    write_shard(tmp_path, 1, 2, "train", pairs(([5], [6])))
    with pytest.raises(DataError, match="of 2 kinds"):
        commit(tmp_path, "mixed", {}, {"train": 2})


def test_a_cache_is_named_by_its_task_and_what_it_was_made_from() -> None:
    made_from = {"vocabulary": "9f", "source": "3f"}
    assert cache_place("caches", "rte", made_from) == cache_place(Path("caches"), "rte", dict(made_from))
    assert cache_place("caches", "rte", made_from) != cache_place("caches", "rte", {"source": "3f"})
    assert cache_place("", "a/b", made_from) != cache_place("", "a_b", made_from)
    assert len(cache_key(made_from)) == 16


def test_the_maps_of_a_process_are_bounded(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_OPEN_MAPS", 2)
    monkeypatch.setattr(cache_module, "_maps", cache_module._Maps())
    cache = open_cache(whole)
    first = cache.column(0, "inputs")
    for shard in (1, 0, 2, 0):
        cache.column(shard, "inputs")
    assert cache.column(0, "inputs") is first, "0 was used again and again, 1 had to go"
    assert len(cache_module._maps._maps) == 2


TEXT = {"name": "text", "kind": "unsupervised", "made_from": {"source": {"train": "3f"}}}


def write_text(place: str | Path, index: int, count: int = 3) -> dict[str, Any]:
    return write_shard(place, index, count, "train", pa.table({"tokens": [[1 + index, 2], [3]]}))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_POLL_S", 0.01)


def test_an_open_cache_is_read_while_later_shards_are_made(tmp_path: Path, impatient: None) -> None:
    begin(tmp_path, **TEXT, counts={"train": 3})
    write_text(tmp_path, 1)
    cache = open_cache(tmp_path)
    assert (cache.name, cache.kind, cache.count, cache.closed) == ("text", "unsupervised", 3, False)
    assert [cache.is_committed(shard) for shard in range(3)] == [False, True, False]
    assert cache.column(1, "tokens").to_lists() == [[2, 2], [3]]
    later = threading.Timer(0.1, lambda: [write_text(tmp_path, index) for index in (2, 0)])
    later.start()
    assert cache.column(0, "tokens").to_lists() == [[1, 2], [3]]
    assert (cache.shard_rows, cache.tokens, cache.closed) == ([2, 2, 2], 9, True)
    later.join()
    assert not is_closed(tmp_path)
    commit(tmp_path, **{key: TEXT[key] for key in ("name", "made_from")}, splits={"train": 3})
    assert is_closed(tmp_path)
    assert [open_cache(tmp_path).entry(shard) for shard in range(3)] == [cache.entry(shard) for shard in range(3)]


def test_who_waits_for_a_shard_raises_the_error_that_preparing_ended_with(tmp_path: Path, impatient: None) -> None:
    begin(tmp_path, **TEXT, counts={"train": 2})
    write_text(tmp_path, 0, 2)
    later = threading.Timer(0.05, leave_failure, (tmp_path, ResourceError("the disk is full: free 3 GB")))
    later.start()
    cache = open_cache(tmp_path)
    with pytest.raises(ResourceError, match="the disk is full: free 3 GB"):
        cache.entry(1)
    assert cache.entry(0)["rows"] == 2, "what was committed before stays readable"
    begin(tmp_path, **TEXT, counts={"train": 2})
    write_text(tmp_path, 1, 2)
    assert cache.entry(1)["rows"] == 2, "a new preparation forgets the failure"


def test_waiting_has_an_end_where_one_is_asked_for(tmp_path: Path, impatient: None) -> None:
    begin(tmp_path, **TEXT, counts={"train": 2})
    cache = open_cache(tmp_path, timeout_s=0.05)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"shard 1 of 2 of text \(train\) was not prepared within 0.05 s"):
        cache.entry(1)
    assert time.monotonic() - started < 5


def test_a_supervised_cache_is_read_only_when_it_is_whole(tmp_path: Path) -> None:
    begin(tmp_path, "pairs", "supervised", {}, {"train": 1})
    write_pairs(tmp_path, 0, 1)
    with pytest.raises(DataError, match="still being prepared, and a supervised one is read only when it is whole"):
        open_cache(tmp_path)
    with pytest.raises(DataError, match="no finished token cache"):
        read_manifest(tmp_path)


def test_only_half_written_files_are_leftovers(whole: Path) -> None:
    (whole / "rejected").mkdir()
    (whole / ".lock").touch()
    left = [whole / ".train-00001-of-00004.arrow.x8f3", whole / "rejected/.train-00001-of-00004.jsonl.k2"]
    for path in left:
        path.write_bytes(b"half")
    before = sorted(path for path in whole.rglob("*") if path not in left)
    remove_leftovers(whole)
    assert sorted(whole.rglob("*")) == before


MADE_FROM = {
    "source": {"train": "3f0c9a1be55d0b42", "test": "77"},
    "preprocessing": "1+order=a",
    "preparing": "1",
    "vocabulary": "abcdef0123456789",
}


def closed_cache(root: Path, made_from: dict[str, Any], task: str = "glue/rte", *, age_s: int = 0) -> str:
    place = cache_place(root, task, made_from)
    begin(place, task, "supervised", made_from, {"train": 1})
    write_pairs(Path(place), 0, 1)
    commit(place, task, made_from, {"train": 1})
    os.utime(Path(place) / "listing.json", (time.time() - age_s,) * 2)
    return place


def test_a_cache_that_must_be_made_although_there_are_others_says_why(tmp_path: Path) -> None:
    assert why_new(tmp_path / "none", "glue/rte", MADE_FROM) is None
    other = closed_cache(tmp_path, MADE_FROM)
    closed_cache(tmp_path, {**MADE_FROM, "preparing": "0"}, age_s=100)
    closed_cache(tmp_path, {"source": {}}, "glue_rte")
    assert why_new(tmp_path, "glue/rte", MADE_FROM) is None
    assert why_new(tmp_path, "squad", MADE_FROM) is None
    now = {
        "source": {"train": "aaaaaaaaaaaaaaaa", "validation": "78"},
        "preprocessing": "2+order=a",
        "preparing": "1",
        "vocabulary": "0123456789abcdef",
    }
    reason = why_new(tmp_path, "glue/rte", now)
    assert reason is not None
    head, _, differences = reason.partition(": ")
    assert head == f"glue/rte is prepared anew, since {Path(other).name} was made from something else"
    assert differences.split("; ") == [
        "source of train changed",
        "source of test is not used any more",
        "preprocessing was '1+order=a', is '2+order=a'",
        "vocabulary changed",
        "source of validation is used too",
    ]
