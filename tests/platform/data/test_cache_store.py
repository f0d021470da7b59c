"""Shards written in bounded memory, and caches in a bucket with verified copies on each node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from object_store import Store, place, serve_s3

from mixtura.platform import filesystems
from mixtura.platform.data import cache as cache_module
from mixtura.platform.data.cache import begin, commit, committed_shards, leave_failure, open_cache, why_new, write_shard
from mixtura.platform.data.cache_store import Copies, ReadAhead
from mixtura.platform.data.ragged import Ragged, offsets_of
from mixtura.platform.data.shard_writer import ShardWriter
from mixtura.platform.errors import CorruptCacheError, DataError, ResourceError
from mixtura.platform.files import xxh3_128

ROWS = [([5, 6, 7], [8], "one"), ([], [9, 9], "zwei Größe"), ([70000], [], ""), ([1], [2], "four")]


def columns(rows: list[tuple[list[int], list[int], str]]) -> dict[str, Ragged | list[str]]:
    return {
        "inputs": Ragged.from_lists([inputs for inputs, _, _ in rows]),
        "targets": Ragged.from_lists([targets for _, targets, _ in rows], np.int64),
        "fields": [text for _, _, text in rows],
    }


def written(folder: Path, *sizes: int) -> dict[str, bytes]:
    """The bytes of all files when the rows are appended so many at a time."""
    with ShardWriter(folder, 0, 1, "test", "supervised", text=("fields",)) as writer:
        rows = list(ROWS)
        for size in sizes:
            writer.append(columns(rows[:size]))
            del rows[:size]
        writer.reject({"reason": "too_long", "origin": "x:1"})
        writer.reject({"reason": "half a character", "row": "\ud83d"})
        writer.close({"rows read": 6})
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_shard_has_the_same_bytes_whatever_the_sizes_of_the_appends(tmp_path: Path) -> None:
    whole = written(tmp_path / "a", 4)
    assert written(tmp_path / "b", 1, 0, 2, 1) == whole
    assert set(whole) == {"test-00000-of-00001.arrow", "test-00000-of-00001.json", "test-00000-of-00001.jsonl"}
    entry = json.loads(whole["test-00000-of-00001.json"])
    assert (entry["rows"], entry["tokens"], entry["counters"]) == (4, 9, {"rows read": 6})
    assert entry["columns"] == {"inputs": {"tokens": 5, "longest": 3}, "targets": {"tokens": 4, "longest": 2}}
    assert entry["rejected"] == {"half a character": 1, "too_long": 1}
    assert entry["xxh3_128"] == xxh3_128(tmp_path / "a/test-00000-of-00001.arrow")
    assert entry["bytes"] == len(whole["test-00000-of-00001.arrow"])
    kept = [json.loads(line) for line in whole["test-00000-of-00001.jsonl"].splitlines()]
    assert kept[1] == {"reason": "half a character", "row": "\ud83d"}


def test_a_shard_is_one_record_batch_and_gives_back_its_rows(tmp_path: Path) -> None:
    written(tmp_path, 2, 2)
    commit(tmp_path, "pairs", {}, {"test": 1})
    with pa.memory_map(str(tmp_path / "test-00000-of-00001.arrow")) as file:
        assert pa.ipc.open_file(file).num_record_batches == 1
    table = open_cache(tmp_path, "test").table(0)
    assert list(zip(*table.to_pydict().values(), strict=True)) == ROWS
    table.validate(full=True)


def test_a_shard_without_rows_has_its_columns_too(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 0, 1, "test", "supervised", text=("fields",)) as writer:
        writer.close()
    commit(tmp_path, "pairs", {}, {"test": 1})
    cache = open_cache(tmp_path, "test")
    assert cache.table(0).to_pydict() == {"inputs": [], "targets": [], "fields": []}
    assert cache.column(0, "inputs").to_lists() == []


def test_L4_an_error_while_a_shard_is_written_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path, 0, 1, "test", "supervised", text=("fields",)) as writer:
            writer.append(columns(ROWS))
            writer.reject({"reason": "any"})
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert list(tmp_path.rglob("*")) == []


def test_L4_a_process_killed_while_it_writes_leaves_no_spool(tmp_path: Path, repository: Path) -> None:
    script = """
import os, signal, sys
from mixtura.platform.data.ragged import Ragged
from mixtura.platform.data.shard_writer import ShardWriter
writer = ShardWriter(sys.argv[1], 0, 1, "train", "unsupervised")
writer.append({"tokens": Ragged.from_lists([[1] * 1_000_000])})
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, timeout=120)
    assert result.returncode == -9
    assert list(tmp_path.rglob("*")) == []


def test_memory_stays_bounded_however_large_a_shard_is(tmp_path: Path) -> None:
    tokens = Ragged(np.arange(1, 250_001, dtype=np.int32), offsets_of(np.full(1000, 250)))
    arrow_before = pa.total_allocated_bytes()
    with ShardWriter(tmp_path, 0, 1, "train", "unsupervised") as writer:
        tracemalloc.start()
        for _ in range(80):
            writer.append({"tokens": tokens})
            writer.reject({"reason": "too_long", "text": "x" * 10_000})
        entry = writer.close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert entry["bytes"] > 80_000_000
    assert peak < 6_000_000
    assert pa.total_allocated_bytes() - arrow_before < 1_000_000
    commit(tmp_path, "text", {}, {"train": 1})
    assert open_cache(tmp_path).column(0, "tokens").take(np.array([79_999, 1])).to_lists() == [
        list(range(249_751, 250_001)),
        list(range(251, 501)),
    ]


def test_what_no_shard_can_hold_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 0, 1, "test", "supervised", text=("fields",)) as writer:
        with pytest.raises(DataError, match="has the columns inputs, targets, fields, equally long; found rows"):
            writer.append({"inputs": Ragged.from_lists([[1]]), "targets": Ragged.from_lists([[1]])})
        with pytest.raises(DataError, match="column targets: token ids must be at least 1, .* found -3 to 4"):
            writer.append({**columns(ROWS[:1]), "targets": Ragged.from_lists([[4, -3]])})
        with pytest.raises(DataError, match="column fields: the text .* is not Unicode"):
            writer.append({**columns(ROWS[:1]), "fields": ["a\ud800"]})


@pytest.fixture
def s3() -> Iterator[Store]:
    with serve_s3({}) as store:
        yield store


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(str(tmp_path / "copies"), 1_000_000)


NAME = "bucket/caches/text-0123456789abcdef"


def write_text(where: str | Path, index: int, count: int = 4, rows: int = 100) -> None:
    tokens = Ragged.from_lists([[index + 1] * 20] * rows)
    with ShardWriter(where, index, count, "train", "unsupervised") as writer:
        writer.append({"tokens": tokens})
        writer.close({"rows read": rows})


@pytest.fixture
def text(s3: Store) -> str:
    """The place of a closed cache of four shards of about 9 kB."""
    where = place(s3, NAME)
    begin(where, "text", "unsupervised", {"source": "3f"}, {"train": 4})
    for index in range(4):
        write_text(where, index)
    commit(where, "text", {"source": "3f"}, {"train": 4})
    return where


def objects(store: Store) -> list[str]:
    return sorted(name.removeprefix(f"{NAME}/") for name in store.files)


def test_a_cache_in_a_bucket_has_the_same_bytes_as_one_in_a_folder(s3: Store, text: str, tmp_path: Path) -> None:
    begin(tmp_path, "text", "unsupervised", {"source": "3f"}, {"train": 4})
    for index in range(4):
        write_text(tmp_path, index)
    commit(tmp_path, "text", {"source": "3f"}, {"train": 4})
    assert {name: s3.files[f"{NAME}/{name}"] for name in objects(s3)} == {
        path.name: path.read_bytes() for path in tmp_path.iterdir()
    }


def test_preparing_again_into_a_bucket_goes_on_and_changes_nothing(s3: Store, text: str) -> None:
    before = dict(s3.files)
    del s3.files[f"{NAME}/manifest.json"], s3.files[f"{NAME}/train-00001-of-00004.json"]
    s3.files[f"{NAME}/train-00002-of-00004.arrow"] = b"short"
    assert set(committed_shards(text, "train", 4)) == {0, 3}
    with pytest.raises(DataError, match="the cache s3://bucket/caches/text-0123456789abcdef lacks 2 of 4 shards"):
        commit(text, "text", {"source": "3f"}, {"train": 4})
    for index in (1, 2):
        write_text(text, index)
    commit(text, "text", {"source": "3f"}, {"train": 4})
    s3.files.pop(f"{NAME}/", None)  # the client marks the folder of what it deletes
    assert s3.files == before


def test_two_runs_that_write_the_same_cache_at_once_do_not_spoil_it(s3: Store, text: str, copies: Copies) -> None:
    before = dict(s3.files)

    def prepare() -> None:
        begin(text, "text", "unsupervised", {"source": "3f"}, {"train": 4})
        for index in range(4):
            write_text(text, index)
        commit(text, "text", {"source": "3f"}, {"train": 4})

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
    reader = open_cache(text, copies=copies)
    assert [int(reader.column(shard, "tokens").values[0]) for shard in range(4)] == [1, 2, 3, 4]
    for thread in threads:
        thread.join()
    assert s3.files == before


def test_requests_are_few_and_bounded(s3: Store, text: str, copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(s3.asked("PUT")) == 2 + 2 * 4, "the listing, two files a shard, the manifest"
    s3.requests.clear()
    cache = open_cache(text, copies=copies)
    assert [line.split()[0] for line in s3.asked("manifest.json")] == ["HEAD", "GET"]
    assert (cache.rows, cache.tokens, cache.closed, cache.is_committed(3)) == (400, 8000, True, True)
    assert len(s3.requests) == 2, "the entries are in the manifest"
    s3.requests.clear()
    for _ in range(50):
        cache.column(2, "tokens").take(np.array([1, 2]))
        open_cache(text, copies=copies).table(2)
    assert [line.split()[0] for line in s3.asked(".arrow")] == ["HEAD", "GET"]
    monkeypatch.setattr(filesystems, "_RANGE_BYTES", 4096)
    size = cache.entry(1)["bytes"]
    cache.column(1, "tokens")
    assert len(s3.asked("GET /bucket/caches/text-0123456789abcdef/train-00001-of-00004.arrow")) == -(-size // 4096)


SCRIPT = """
import json, sys
from mixtura.platform.data.cache import open_cache
from mixtura.platform.data.cache_store import Copies
place, folder, size = json.loads(sys.argv[1])
cache = open_cache(place, copies=Copies(folder, size))
sys.stdin.readline()
print([int(cache.column(shard, "tokens").values.sum()) for shard in range(cache.count)])
"""


def test_a_shard_is_fetched_once_for_all_processes_of_a_node(
    s3: Store, text: str, copies: Copies, repository: Path
) -> None:
    arguments = [sys.executable, "-c", SCRIPT, json.dumps([text, copies.folder, copies.size_bytes])]
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(arguments, env=environment, **pipes) for _ in range(3)]
    for _ in range(600):
        if len(s3.asked("GET")) >= 3:
            break
        time.sleep(0.1)
    s3.requests.clear()
    assert {reader.communicate("\n", timeout=120)[0] for reader in readers} == {"[2000, 4000, 6000, 8000]\n"}
    assert len(s3.asked(".arrow bytes=")) == 4


def copied(copies: Copies) -> list[str]:
    return sorted(path.name for path in Path(copies.folder).iterdir() if path.is_file())


def test_the_copies_that_were_not_used_for_longest_make_room(s3: Store, text: str, tmp_path: Path) -> None:
    entries = [open_cache(text).entry(shard) for shard in range(4)]
    copies = Copies(str(tmp_path / "few"), 2 * entries[0]["bytes"] + 100)
    cache = open_cache(text, copies=copies)
    first = cache.column(0, "tokens")
    cache.column(1, "tokens")
    cache_module._maps._maps.clear()
    cache.column(0, "tokens")
    cache.column(2, "tokens")
    assert copied(copies) == sorted(entries[shard]["xxh3_128"] for shard in (0, 2))
    for shard in (3, 1):
        cache.column(shard, "tokens")
    assert copied(copies) == sorted(entries[shard]["xxh3_128"] for shard in (3, 1))
    assert first.to_lists() == [[1] * 20] * 100, "a map keeps the bytes of a copy that is gone"
    assert not any(mapped.path == Path(copies.folder) / entries[0]["xxh3_128"] for mapped in _maps())


def _maps() -> list[cache_module._Mapped]:
    return list(cache_module._maps._maps.values())


def test_a_shard_larger_than_all_copies_may_be_is_refused(s3: Store, text: str, tmp_path: Path) -> None:
    with pytest.raises(
        ResourceError, match="larger than all local copies may be together, 100 bytes .* data.copies_size"
    ):
        open_cache(text, copies=Copies(str(tmp_path), 100)).column(0, "tokens")


def test_a_spoilt_copy_is_fetched_again_once(
    s3: Store, text: str, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(text, copies=copies)
    cache.column(0, "tokens")
    path = Path(copies.folder) / cache.entry(0)["xxh3_128"]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, (time.time() + 1,) * 2)
    cache_module._maps._maps.clear()
    s3.requests.clear()
    assert cache.column(0, "tokens").to_lists() == [[1] * 20] * 100
    assert len(s3.asked(".arrow bytes=")) == 1


def test_an_object_that_is_damaged_is_told_with_what_to_delete_and_that_helps(
    s3: Store, text: str, copies: Copies
) -> None:
    name = f"{NAME}/train-00002-of-00004.arrow"
    s3.files[name] = s3.files[name][:-1] + b"!"
    cache = open_cache(text, copies=copies)
    s3.requests.clear()
    with pytest.raises(CorruptCacheError) as error:
        cache.column(2, "tokens")
    assert "train-00002-of-00004.arrow was fetched twice" in str(error.value)
    assert f"Delete the object s3://{NAME}/manifest.json and the object s3://{name}" in str(error.value)
    assert "secret" not in str(error.value)
    assert len(s3.asked(".arrow bytes=")) == 2
    assert copied(copies) == []
    del s3.files[name], s3.files[f"{NAME}/manifest.json"]
    assert set(committed_shards(text, "train", 4)) == {0, 1, 3}
    with pytest.raises(CorruptCacheError, match="train-00002-of-00004.arrow is missing"):
        cache.column(2, "tokens")


def test_read_ahead_copies_what_is_needed_next_and_returns_at_once(s3: Store, text: str, tmp_path: Path) -> None:
    size = open_cache(text).entry(0)["bytes"]
    copies = Copies(str(tmp_path / "copies"), 4 * size + 100)
    cache = open_cache(text, copies=copies)
    cache.read_ahead([3, 1, 0, 2])
    wanted = sorted(cache.entry(shard)["xxh3_128"] for shard in (3, 1))
    for _ in range(600):
        if Path(copies.folder).is_dir() and copied(copies) == wanted:
            break
        time.sleep(0.05)
    assert copied(copies) == wanted, "half of what copies may take"
    s3.requests.clear()
    cache.column(3, "tokens")
    assert s3.requests == []


def test_read_ahead_does_not_wait_twice_for_the_same_and_survives_errors() -> None:
    done, go = [], threading.Event()

    def act(number: int) -> None:
        go.wait(10)
        done.append(number)
        if number == 0:
            raise DataError("no network")

    ahead = ReadAhead()
    for number in (0, 1, 0, 1, 2):
        ahead.begin(number, lambda number=number: act(number))
    go.set()
    for _ in range(200):
        if len(done) == 3:
            break
        time.sleep(0.02)
    ahead.begin(0, lambda: done.append(9))
    time.sleep(0.1)
    assert sorted(done) == [0, 1, 2, 9]


def test_an_open_cache_in_a_bucket_is_waited_for_with_few_requests(
    s3: Store, copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_POLL_S", 0.05)
    where = place(s3, NAME)
    begin(where, "text", "unsupervised", {}, {"train": 2})
    cache = open_cache(where, copies=copies)
    cache.read_ahead([0, 1])
    later = threading.Timer(1.0, write_text, (where, 1, 2))
    later.start()
    assert cache.column(1, "tokens").to_lists()[0] == [2] * 20
    later.join()
    assert len(s3.asked("failure.json")) < 10, "later and later"
    leave_failure(where, DataError("the source is gone"))
    with pytest.raises(DataError, match="the source is gone"):
        cache.entry(0)
    begin(where, "text", "unsupervised", {}, {"train": 2})
    assert "failure.json" not in objects(s3)


def test_why_a_cache_in_a_bucket_is_made_anew(s3: Store, text: str) -> None:
    root = place(s3, "bucket/caches")
    reason = why_new(root, "text", {"source": "4e"})
    assert reason == (
        "text is prepared anew, since text-0123456789abcdef was made from something else: source was '3f', is '4e'"
    )
    write_shard(place(s3, "bucket/caches/rte-0123456789abcdef"), 0, 1, "train", pa.table({"tokens": [[5]]}))
    assert why_new(root, "rte", {"source": "4e"}) is None


def test_a_bucket_that_cannot_be_written_says_so(s3: Store) -> None:
    s3.faults["PUT"] = [403] * 1000
    with pytest.raises(DataError, match=r"cannot write s3://bucket/caches/text-0123456789abcdef/listing.json") as error:
        begin(place(s3, NAME), "text", "unsupervised", {}, {"train": 1})
    assert "secret" not in str(error.value)


def test_a_copy_that_cannot_be_fetched_leaves_nothing_and_is_tried_again_when_asked(
    s3: Store, text: str, copies: Copies
) -> None:
    cache = open_cache(text, copies=copies)
    s3.faults[".arrow bytes="] = [403]
    with pytest.raises(DataError, match=r"cannot read s3://bucket/caches/text-0123456789abcdef/train-00001-of-00004"):
        cache.column(1, "tokens")
    assert copied(copies) == []
    assert cache.column(1, "tokens").to_lists()[0] == [2] * 20
