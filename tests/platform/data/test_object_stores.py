"""Buckets and the hub, played by servers on this machine that the real clients talk to."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import Handler, Store, options, serve, serve_s3

from mixtura.platform import filesystems
from mixtura.platform.data import sources
from mixtura.platform.data.task import Shard
from mixtura.platform.errors import DataError

ROWS = [{"text": f"row {number} Größe", "label": number % 2} for number in range(500)]
TSV = "text\tlabel\n" + "".join(f'{row["text"]} "odd\t{row["label"]}\n' for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=100)
    return buffer.getvalue()


class HubHandler(Handler):
    """What the hub answers about one data set, `someone/reviews`: that it exists, a folder's listing, a file."""

    NAME = "datasets/someone/reviews"

    def handle_path(self, path: str, query: Mapping[str, str]) -> None:
        if self.store.needs_token and self.headers.get("Authorization") != f"Bearer {self.store.needs_token}":
            words = "Access to dataset someone/reviews is restricted. You must be authenticated to access it."
            body = json.dumps({"error": words}).encode()
            self._answer(401, body, {"X-Error-Code": "GatedRepo", "X-Error-Message": words})
        elif path.startswith(f"/api/{self.NAME}/tree/main"):
            self._tree(path.removeprefix(f"/api/{self.NAME}/tree/main").strip("/"))
        elif path.startswith(f"/api/{self.NAME}") and "paths-info" not in path:
            self._json({"id": "someone/reviews", "sha": "0" * 40, "siblings": [], "private": False, "tags": []})
        elif (name := path.removeprefix(f"/{self.NAME}/resolve/main/")) in self.store.files:
            body = self.store.files[name]
            self._answer_file(body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": "0" * 40})
        else:
            code = "EntryNotFound" if self.NAME in path else "RepoNotFound"
            self._answer(404, b'{"error": "not found"}', {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _tree(self, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = {name.removeprefix(prefix): body for name, body in self.store.files.items() if name.startswith(prefix)}
        if not inside:
            self._answer(
                404, b'{"error": "no entry"}', {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no entry"}
            )
            return
        folders = sorted({name.partition("/")[0] for name in inside if "/" in name})
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": prefix + name, "oid": "1" * 40, "size": 0} for name in folders
        ]
        entries += [
            {"type": "file", "path": prefix + name, "oid": hashlib.sha1(body).hexdigest(), "size": len(body)}
            for name, body in inside.items()
            if "/" not in name
        ]
        self._json(entries)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def s3() -> Iterator[Store]:
    files = {
        "bucket/data/reviews/train.tsv": TSV.encode(),
        "bucket/data/reviews/train-00000.jsonl.gz": gzip.compress(JSONL),
        "bucket/data/reviews/rows.parquet": parquet_of(ROWS),
        "bucket/data/reviews/deep/er/other.tsv": b"never\tlisted\n",
        "bucket/elsewhere/x.tsv": b"never\tlisted\n",
    }
    with serve_s3(files) as store:
        yield store


@pytest.fixture
def hub() -> Iterator[Store]:
    files = {
        "README.md": b"# Reviews",
        "plain/train-00000-of-00002.parquet": parquet_of(ROWS[:300]),
        "plain/train-00001-of-00002.parquet": parquet_of(ROWS[300:]),
        "plain/validation-00000-of-00001.parquet": parquet_of(ROWS[:5]),
        "en/docs.00000-of-00001.json.gz": gzip.compress(JSONL),
    }
    with serve(HubHandler, files) as store:
        yield store


SCRIPT = """
import json, sys
from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.task import BadRecord
from mixtura.platform.errors import MixturaError
hub, root, files, split = json.loads(sys.argv[1])
source = FileSource(hub, original={"train": ("reviews/train.tsv",)}).bound(root, files)
try:
    source.check()
    shards = source.shards(split)
    rows = [row for shard in shards for row in source.read(shard)]
    answer = {
        "shards": [shard.name for shard in shards],
        "rows": [row for row in rows if not isinstance(row, BadRecord)],
        "bad": [row.reason for row in rows if isinstance(row, BadRecord)],
        "fingerprint": source.fingerprint(split),
    }
except MixturaError as error:
    answer = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(answer))
"""

Answer = dict[str, Any]


@pytest.fixture
def read(repository: Path, tmp_path: Path) -> Callable[..., Answer]:
    """What a source gives in a process of its own, since the clients read their settings when they are loaded."""

    def run(
        environment: Mapping[str, str],
        *,
        hub: object = None,
        root: str | None = None,
        files: object = None,
        split: str = "train",
    ) -> Answer:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps([hub or {}, root, files or {}, split])],
            env={**kept, "PYTHONPATH": str(repository / "src"), "HOME": str(tmp_path), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        answer: Answer = json.loads(result.stdout.splitlines()[-1])
        return answer

    return run


KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


def test_original_files_are_found_below_a_bucket(s3: Store, read: Callable[..., Answer]) -> None:
    answer = read(KEYS, root=f"s3://bucket/data{options(s3)}")
    assert answer["shards"] == ["reviews/train.tsv"]
    assert answer["rows"] == [{"text": f'{row["text"]} "odd', "label": str(row["label"])} for row in ROWS]
    # Two folders are listed once each, although the listing is asked for many times; nothing below them is.
    assert [line.split()[1].partition("&prefix=")[2] for line in s3.requests if "list-type" in line] == [
        "data/",
        "data/reviews/",
    ]
    assert len(s3.requests) <= 4


def test_a_bucket_is_found_by_the_environment_as_well(s3: Store, read: Callable[..., Answer]) -> None:
    files = {"train": ["s3://bucket/data/*/train-*.jsonl.gz"]}
    answer = read({**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}"}, files=files)
    assert answer["shards"] == ["train-00000.jsonl.gz"]
    assert answer["rows"] == ROWS
    assert not any("elsewhere" in line or "deep/er" in line for line in s3.requests)
    assert len(s3.requests) <= 6


def test_parquet_is_read_from_a_bucket_by_ranges(s3: Store, read: Callable[..., Answer]) -> None:
    answer = read(KEYS, files={"train": [f"s3://bucket/data/reviews/rows.parquet{options(s3)}"]})
    assert answer["rows"] == ROWS
    assert all("bytes=" in line for line in s3.requests if line.startswith("GET /bucket/data/reviews/rows.parquet"))
    assert len(s3.requests) <= 8


@pytest.mark.parametrize("fault", ["busy", "cut"])
def test_a_fault_of_the_network_that_passes_is_survived(s3: Store, read: Callable[..., Answer], fault: str) -> None:
    if fault == "busy":
        s3.faults["GET /bucket/data/reviews/train.tsv"] = [503]
    else:
        s3.cut["GET /bucket/data/reviews/train.tsv"] = [2000]
    answer = read(KEYS, root=f"s3://bucket/data{options(s3)}")
    assert len(answer["rows"]) == len(ROWS)
    assert sum(line.startswith("GET /bucket/data/reviews/train.tsv") for line in s3.requests) == 2


@pytest.mark.slow
def test_a_fault_that_stays_is_told_with_the_place_and_without_the_key(s3: Store, read: Callable[..., Answer]) -> None:
    s3.faults["train.tsv"] = [503] * 1000
    error = read({}, root=f"s3://key:hidden@bucket/data{options(s3)}")["error"]
    assert error.startswith("DataError: cannot read s3://bucket/data/reviews/train.tsv")
    assert "503" in error
    assert "check the network" in error
    assert "hidden" not in error


def test_a_bucket_without_the_files_is_told_with_what_is_there(s3: Store, read: Callable[..., Answer]) -> None:
    error = read(KEYS, root=f"s3://bucket{options(s3)}")["error"]
    assert "looked for s3://bucket/reviews/train.tsv" in error
    assert "s3://bucket holds data/, elsewhere/" in error
    assert "data.root" in error


def test_the_fingerprint_of_a_bucket_follows_its_listing(s3: Store, read: Callable[..., Answer]) -> None:
    root = f"s3://bucket/data{options(s3)}"
    before = read(KEYS, root=root)["fingerprint"]
    assert read(KEYS, root=root)["fingerprint"] == before
    s3.files["bucket/data/reviews/train.tsv"] += b"one more\t1\n"
    assert read(KEYS, root=root)["fingerprint"] != before


HOME = "hf://datasets/someone/reviews"


def test_parquet_is_read_from_the_hub(hub: Store, read: Callable[..., Answer]) -> None:
    answer = read({"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}"}, hub={"train": [f"{HOME}/plain/train-*.parquet"]})
    assert answer["shards"] == ["plain/train-00000-of-00002.parquet", "plain/train-00001-of-00002.parquet"]
    assert answer["rows"] == ROWS
    assert set(hub.tokens) == {None}
    assert sum("/tree/" in line for line in hub.requests) == 1


def test_gzipped_json_is_read_from_the_hub_with_the_users_token(hub: Store, read: Callable[..., Answer]) -> None:
    hub.needs_token = "hf_secret"
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}", "HF_TOKEN": "hf_secret"}
    answer = read(environment, hub={"train": [f"{HOME}/en/docs.*.json.gz"]})
    assert answer["rows"] == ROWS
    assert "Bearer hf_secret" in hub.tokens


def test_a_gated_data_set_says_what_to_do(hub: Store, read: Callable[..., Answer]) -> None:
    hub.needs_token = "hf_secret"
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}"}
    error = read(environment, hub={"train": [f"{HOME}/plain/train-*.parquet"]})["error"]
    assert error.startswith(f"DataError: cannot read {HOME}/plain")
    assert "HF_TOKEN" in error
    assert "data.root" in error


def test_a_data_set_or_folder_that_is_not_there_is_named(hub: Store, read: Callable[..., Answer]) -> None:
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}"}
    error = read(environment, hub={"train": ["hf://datasets/someone/absent/train-*.parquet"]})["error"]
    assert "hf://datasets/someone/absent" in error
    assert "check the name" in error
    error = read(environment, hub={"train": [f"{HOME}/none/train-*.parquet"]})["error"]
    assert f"looked for {HOME}/none/train-*.parquet" in error


def test_without_a_network_the_way_out_is_named(read: Callable[..., Answer]) -> None:
    error = read({"HF_ENDPOINT": "http://127.0.0.1:9"}, hub={"train": [f"{HOME}/train-*.parquet"]})["error"]
    assert "check the network" in error
    assert "data.root" in error


def test_the_fingerprint_of_the_hub_follows_its_digests(hub: Store, read: Callable[..., Answer]) -> None:
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}"}
    home = {"train": [f"{HOME}/en/docs.*.json.gz"]}
    before = read(environment, hub=home)["fingerprint"]
    name = "en/docs.00000-of-00001.json.gz"
    same_size = bytearray(hub.files[name])
    same_size[4] ^= 1  # the time in the gzip header
    hub.files[name] = bytes(same_size)
    assert read(environment, hub=home)["fingerprint"] != before


class FlakyFiles:
    """Stands for a bucket: each file opened fails after so many reads."""

    def __init__(self, path: Path, reads: list[int]) -> None:
        self.path, self.reads, self.opens = path, reads, 0

    def open_input_file(self, _: str) -> Any:
        from pyarrow import fs

        self.opens += 1
        file = fs.LocalFileSystem().open_input_file(str(self.path))
        return FlakyFile(file, self.reads.pop(0)) if self.reads else file


class FlakyFile:
    def __init__(self, file: Any, reads: int) -> None:
        self.file, self.reads = file, reads
        self.size, self.seek, self.close = file.size, file.seek, file.close

    def read(self, count: int) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise OSError("AWS Error NETWORK_CONNECTION: Connection reset by peer")
        return bytes(self.file.read(count))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, list[int]], FlakyFiles]:
    def make(path: Path, reads: list[int]) -> FlakyFiles:
        files = FlakyFiles(path, reads)
        monkeypatch.setattr(filesystems, "_file_system", lambda base: (files, "bucket"))
        return files

    monkeypatch.setattr(filesystems, "_RETRY_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(filesystems, "_NETWORK_BUFFER_BYTES", 1 << 16)
    return make


def test_a_range_that_fails_is_read_again_from_where_it_was(flaky: Any, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 4_000)
    files = flaky(tmp_path / "data.bin", [3, 0, 5])
    with filesystems.opened("s3://bucket/data.bin") as file:
        pieces = list(iter(lambda: file.read(1000), b""))
    assert b"".join(pieces) == (tmp_path / "data.bin").read_bytes()
    assert files.opens == 4


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl.gz"])
def test_a_network_that_stays_broken_is_no_bad_record(flaky: Any, tmp_path: Path, name: str) -> None:
    rows = [{"text": f"{number**9}"} for number in range(20_000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / name).write_bytes(parquet_of(rows) if name.endswith("parquet") else gzip.compress(lines))
    flaky(tmp_path / name, [2, 0, 0, 0, 0])
    source = sources.FileSource({})
    place = (
        ("parquet", f"s3://bucket/{name}", "", 0, 200) if "parquet" in name else ("jsonl", f"s3://bucket/{name}", "")
    )
    with pytest.raises(DataError, match=rf"cannot read s3://bucket/{name}: .*reset by peer"):
        list(source.read(Shard(name, place)))
