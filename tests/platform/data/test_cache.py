from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mixtura.platform.data import cache as cache_module
from mixtura.platform.data.cache import cache_folder, cache_key, commit, committed_shards, open_cache, write_shard
from mixtura.platform.errors import CorruptCacheError, DataError


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


def test_pieces_run_across_documents_and_the_last_is_short(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, 2, "train", pa.table({"tokens": [[1, 2, 3], [], [4, 5, 6, 7]]}))
    write_shard(tmp_path, 1, 2, "train", pa.table({"tokens": [[8, 9]]}))
    commit(tmp_path, "text", {}, {"train": 2})
    cache = open_cache(tmp_path)
    assert cache.kind == "unsupervised"
    assert cache.pieces(3) == [3, 1]
    assert cache.fetch_pieces(0, np.array([2, 0, 1]), 3).to_lists() == [[7], [1, 2, 3], [4, 5, 6]]
    assert cache.fetch_pieces(1, np.array([0]), 3).to_lists() == [[8, 9]]
    assert cache.pieces(7) == [1, 1]


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
    assert cache_module.xxh3_128(shard) in message
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


def test_digests_are_compared_once_per_process(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(cache_module, "xxh3_128", lambda path: read.append(path) or _entry(path)["xxh3_128"])
    open_cache(whole)
    open_cache(whole)
    assert len(read) == 4


def _entry(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


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
    with pytest.raises(DataError, match="0 is padding; found 0"):
        write_shard(tmp_path, 0, 1, "train", pa.table({"tokens": [[5, 0]]}))
    with pytest.raises(DataError, match="found a null"):
        write_shard(tmp_path, 0, 1, "train", pa.table({"tokens": [[5], None]}))
    write_shard(tmp_path, 0, 2, "train", pa.table({"tokens": [[5]]}))
    write_shard(tmp_path, 1, 2, "train", pairs(([5], [6])))
    with pytest.raises(DataError, match="of 2 kinds"):
        commit(tmp_path, "mixed", {}, {"train": 2})


def test_a_folder_is_named_by_its_task_and_what_it_was_made_from() -> None:
    made_from = {"vocabulary": "9f", "source": "3f"}
    assert cache_folder(Path("caches"), "rte", made_from) == cache_folder(Path("caches"), "rte", made_from)
    assert cache_folder(Path("caches"), "rte", made_from) != cache_folder(Path("caches"), "rte", {"source": "3f"})
    assert cache_folder(Path(), "a/b", made_from) != cache_folder(Path(), "a_b", made_from)
    assert len(cache_key(made_from)) == 16
