"""The corpus as it is given on: shards of even size, and a manifest that names them."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet
import xxhash

from mixtura.platform.corpus.stages import DOCUMENTS, Job, byte_length, entry_place
from mixtura.platform.corpus.tables import columns_of, read_rows
from mixtura.platform.corpus.work_files import write, writing
from mixtura.platform.filesystems import joined, opened

SPLITS = ("train", "validation")
_ENDINGS = {"parquet": "parquet", "jsonl": "json.gz"}
_FIELDS = tuple(name for name in DOCUMENTS.names if name != "split")
_GROUP_BYTES = 16 << 20
_GZIP_LEVEL = 4


def shard_name(split: str, number: int, count: int, kind: str) -> str:
    """The name of a shard, as C4's own are: what reads C4 reads it.

    >>> shard_name("train", 3, 1024, "jsonl")
    'c4-train.00003-of-01024.json.gz'
    """
    return f"c4-{split}.{number:05d}-of-{count:05d}.{_ENDINGS[kind]}"


def shard_jobs(
    entries: Sequence[Mapping[str, Any]], stage: str, work: str, output: str, kind: str, size: int
) -> list[Job]:
    """A job for each shard: of each split as many as give about `size` bytes of text. `entries` has for
    each file that has pages its number and what `finish` or `thin` said of its documents, in the order of the files."""
    jobs: list[Job] = []
    for which, split in enumerate(SPLITS):
        total = sum(entry["bytes"][which] for entry in entries)
        count = -(-total // size)  # none where a small corpus has no page for validation
        for number in range(count):
            begin, end = total * number // count, total * (number + 1) // count
            parts = list(_parts(entries, which, begin, end))
            place = joined(output, shard_name(split, number, count, kind))
            jobs.append(
                {
                    "index": len(jobs),
                    "work": work,
                    "stage": stage,
                    "place": place,
                    "kind": kind,
                    "split": split,
                    "range": [begin, end],
                    "parts": parts,
                }
            )
    return jobs


def _parts(entries: Sequence[Mapping[str, Any]], which: int, begin: int, end: int) -> Iterator[list[int]]:
    """The files that have documents in a range of a split's bytes: file, first batch to read, bytes before it."""
    before = 0
    for entry in entries:
        size = entry["bytes"][which]
        if size and before < end and before + size > begin:
            starts = [before + batch[which] for batch in entry["batches"]]
            first = max(number for number, start in enumerate(starts) if start <= max(begin, before))
            yield [entry["index"], first, starts[first]]
        before += size


def write_shard(job: Job) -> Job:
    """Write the documents that begin in a range of a split's bytes."""
    begun = time.perf_counter()
    begin, end = job["range"]
    documents = size = 0
    with writing(job["place"]) as file:
        shard = (_Parquet if job["kind"] == "parquet" else _JsonLines)(file)
        for number, first_batch, before in job["parts"]:
            at = before
            for row in read_rows(
                joined(job["work"], job["stage"], f"{number:06d}.arrow"), DOCUMENTS.names, first_batch
            ):
                if at >= end:
                    break
                if row[-1] != job["split"]:
                    continue
                length = byte_length(row[0])
                if at >= begin:
                    shard.add(row[:-1], length)
                    documents, size = documents + 1, size + length
                at += length
        shard.close()
    digest, length = digest_of(job["place"])
    entry = {
        "index": job["index"],
        "split": job["split"],
        "name": job["place"].rpartition("/")[2].partition("?")[0],
        "documents": documents,
        "text_bytes": size,
        "bytes": length,
        "xxh3_128": digest,
        "seconds": time.perf_counter() - begun,
    }
    write(entry_place(job["work"], "pack", job["index"]), json.dumps(entry).encode())
    return entry


def digest_of(place: str) -> tuple[str, int]:
    """A file's xxh3-128 and its size, from all of its bytes."""
    digest, size = xxhash.xxh3_128(), 0
    with opened(place) as file:
        while data := file.read(1 << 20):
            digest.update(data)
            size += len(data)
    return digest.hexdigest(), size


class _Shard(Protocol):
    def add(self, row: Sequence[Any], size: int) -> None: ...
    def close(self) -> None: ...


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        self._schema = pa.schema([DOCUMENTS.field(name) for name in _FIELDS])
        self._writer = pa.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[Sequence[Any]] = []
        self._bytes = 0

    def add(self, row: Sequence[Any], size: int) -> None:
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_arrays(columns_of(self._rows, self._schema), schema=self._schema))
        self._rows, self._bytes = [], 0


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)

    def add(self, row: Sequence[Any], _: int) -> None:
        values = dict(zip(_FIELDS, row, strict=True))
        self._file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()
