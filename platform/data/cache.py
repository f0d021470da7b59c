"""Token caches: a task's tokens on disk, whole with a manifest or not listed.

    caches/squad-3f0c9a1be55d0b42/
      train-00000-of-00004.arrow        one record batch in the Arrow IPC file format
      train-00000-of-00004.json         its entry: rows, tokens, bytes, digest, what was rejected; written after it
      rejected/train-00000-of-00004.jsonl
      ...
      manifest.json                     all entries and what the cache was made from; written last

A supervised cache has the columns `inputs` and `targets` (token lists, untrimmed, without EOS; other columns are kept
as they are), an unsupervised one has `tokens`, one row a document. Shards with an entry need not be made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from mixtura.platform.data.ragged import Int64, Ragged, offsets_of, ranges
from mixtura.platform.errors import CorruptCacheError, DataError
from mixtura.platform.files import disk_full_is_an_answer, write_bytes_atomically, write_json_atomically, xxh3_128

FORMAT = 1
MANIFEST = "manifest.json"
TOKEN_COLUMNS = {"supervised": ("inputs", "targets"), "unsupervised": ("tokens",)}

Entry = dict[str, Any]


def cache_key(parts: Mapping[str, Any]) -> str:
    """What a cache was made from, as 16 hex digits; the order of the parts is without effect.

    >>> cache_key({"task": "rte", "vocabulary": "9f"}) == cache_key({"vocabulary": "9f", "task": "rte"})
    True
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def cache_folder(root: Path, task: str, parts: Mapping[str, Any]) -> Path:
    """Where the cache of a task lies.

    >>> cache_folder(Path("caches"), "glue/rte", {"vocabulary": "9f"}).name[:9]
    'glue_rte-'
    """
    return root / f"{re.sub(r'[^A-Za-z0-9.]+', '_', task)}-{cache_key({'task': task, **parts})}"


def shard_name(split: str, index: int, count: int) -> str:
    """The stem of a shard's files.

    >>> shard_name("train", 0, 4)
    'train-00000-of-00004'
    """
    return f"{split}-{index:05d}-of-{count:05d}"


def kind_of(column_names: Sequence[str]) -> str:
    """Whether columns make a supervised or an unsupervised cache."""
    for kind, needed in TOKEN_COLUMNS.items():
        if set(needed) <= set(column_names):
            return kind
    raise DataError(f"a token cache needs the columns inputs and targets, or tokens; found {', '.join(column_names)}")


def write_shard(
    directory: Path,
    index: int,
    count: int,
    split: str,
    table: pa.Table,
    *,
    rejected: Sequence[Mapping[str, Any]] = (),
    counters: Mapping[str, int] | None = None,
) -> Entry:
    """Write shard `index` of `count` and then its entry, which is returned; a shard already there is replaced.

    `rejected` are the rows left out, each with its `reason` and `origin`; `counters` are kept in the entry
    (rows read, for one).
    """
    name = shard_name(split, index, count)
    kind = kind_of(table.column_names)
    batch = _as_one_batch(table, TOKEN_COLUMNS[kind], name)
    entry = {"split": split, "index": index, "count": count, "kind": kind, "rows": batch.num_rows}
    columns = {column: _column_totals(batch.column(column)) for column in TOKEN_COLUMNS[kind]}
    entry |= {"tokens": sum(totals["tokens"] for totals in columns.values()), "columns": columns}
    with disk_full_is_an_answer(directory, f"writing the token cache shard {name}"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
        entry["rejected"] = dict(sorted(Counter(str(row["reason"]) for row in rejected).items()))
        entry["rejected_file"] = _write(directory, f"rejected/{name}.jsonl", lines.encode()) if rejected else None
        entry["counters"] = dict(counters or {})
        entry |= _write(directory, f"{name}.arrow", _arrow_file(batch))
        write_json_atomically(directory / f"{name}.json", entry)
    return entry


def _write(directory: Path, name: str, data: bytes) -> Entry:
    write_bytes_atomically(directory / name, data)
    return {"file": name, "bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}


def _as_one_batch(table: pa.Table, token_columns: Sequence[str], name: str) -> pa.RecordBatch:
    arrays = []
    for column_name in table.column_names:
        column = table.column(column_name)
        if column_name in token_columns:
            column = column.cast(pa.list_(pa.int32()))
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if column_name in token_columns:
            _refuse_bad_tokens(array, f"{name}, column {column_name}")
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=table.column_names)


def _refuse_bad_tokens(array: pa.ListArray, where: str) -> None:
    values = array.flatten()
    if array.null_count or values.null_count:
        raise DataError(f"{where}: a row without tokens must be an empty list, found a null")
    if len(values) and int(values.to_numpy().min()) <= 0:
        raise DataError(f"{where}: token ids must be at least 1, since 0 is padding; found {values.to_numpy().min()}")


def _column_totals(array: pa.ListArray) -> dict[str, int]:
    lengths = Ragged.from_arrow(array).lengths
    return {"tokens": int(lengths.sum()), "longest": int(lengths.max(initial=0))}


def _arrow_file(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def committed_shards(directory: Path, split: str, count: int) -> dict[int, Entry]:
    """The shards of a split that are whole: entry there, files of the right size and digest. The rest is to be made."""
    committed = {}
    for index in range(count):
        path = directory / f"{shard_name(split, index, count)}.json"
        if path.is_file():
            entry = json.loads(path.read_text())
            if all(_damage(directory, file) is None for file in _files(entry)):
                committed[index] = entry
    return committed


def _files(entry: Entry) -> list[Entry]:
    return [entry, entry["rejected_file"]] if entry["rejected_file"] else [entry]


def _damage(directory: Path, file: Entry, *, digest: bool = True) -> str | None:
    """What is wrong with a file of a manifest, or None."""
    path = directory / file["file"]
    if not path.is_file():
        return f"{file['file']} is missing"
    size = path.stat().st_size
    if size != file["bytes"]:
        return f"{file['file']} has {size} bytes, {file['bytes']} were committed"
    if digest and (found := xxh3_128(path)) != file["xxh3_128"]:
        return f"{file['file']} has the xxh3-128 digest {found}, {file['xxh3_128']} was committed"
    return None


def commit(directory: Path, name: str, made_from: Mapping[str, Any], splits: Mapping[str, int]) -> None:
    """Write the manifest of a cache whose splits have these numbers of shards; all must be committed."""
    listed = {}
    for split, count in splits.items():
        committed = committed_shards(directory, split, count)
        if missing := [shard_name(split, index, count) for index in range(count) if index not in committed]:
            raise DataError(f"the cache {directory} lacks {len(missing)} of {count} shards: {', '.join(missing[:8])}")
        listed[split] = _totals([committed[index] for index in range(count)])
    kinds = {entry["kind"] for split in listed.values() for entry in split["shards"]}
    if len(kinds) != 1:
        raise DataError(f"the shards of the cache {directory} are of {len(kinds)} kinds, must be one: {sorted(kinds)}")
    head = {"format": FORMAT, "name": name, "kind": kinds.pop(), "made_from": dict(made_from)}
    write_json_atomically(directory / MANIFEST, {**head, "splits": listed})


def _totals(entries: Sequence[Entry]) -> Entry:
    totals: Entry = {key: sum(entry[key] for entry in entries) for key in ("rows", "tokens", "bytes")}
    for key in ("rejected", "counters"):
        counted: Counter[str] = Counter()
        for entry in entries:
            counted.update(entry[key])
        totals[key] = dict(sorted(counted.items()))
    return {**totals, "shards": list(entries)}


def read_manifest(directory: Path) -> Entry:
    """The manifest of a committed cache."""
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(f"there is no finished token cache in {directory}: prepare it with `mixtura prepare RECIPE`")
    try:
        manifest: Entry = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CorruptCacheError(_remedy(directory, f"{MANIFEST} is not JSON ({error})")) from error
    if manifest["format"] != FORMAT:
        raise DataError(
            f"the token cache {directory} has format {manifest['format']}, this version reads format {FORMAT}: "
            f"remove it with `rm -r {directory}` and prepare it again"
        )
    return manifest


def _remedy(directory: Path, damage: str) -> str:
    return (
        f"the token cache {directory} is damaged: {damage}. Run `rm {directory / MANIFEST}` and then the same command "
        "again: whole shards are kept, damaged ones are made anew"
    )


_verified: set[tuple[str, str, str]] = set()


def _verify(directory: Path, split: str, entries: Sequence[Entry]) -> None:
    """Digests are compared once per process, sizes always."""
    digests = xxhash.xxh3_64_hexdigest("".join(entry["xxh3_128"] for entry in entries).encode())
    verified = (str(directory.resolve()), split, digests)
    for entry in entries:
        if damage := _damage(directory, entry, digest=verified not in _verified):
            raise CorruptCacheError(_remedy(directory, damage))
    _verified.add(verified)


def open_cache(directory: Path | str, split: str = "train") -> TokenCache:
    """A split of a committed cache, its shards verified; CorruptCacheError says what differs and what to do."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    if split not in manifest["splits"]:
        raise DataError(f"the token cache {directory} has no split {split!r}; it has {', '.join(manifest['splits'])}")
    shards = manifest["splits"][split]["shards"]
    _verify(directory, split, shards)
    return TokenCache(directory, manifest["name"], split, manifest["kind"], tuple(shards))


@dataclass(frozen=True)
class TokenCache:
    """One split of a committed cache, read through memory maps."""

    directory: Path
    name: str
    split: str
    kind: str
    shards: tuple[Entry, ...]

    @property
    def shard_rows(self) -> list[int]:
        """Rows of every shard: examples, or documents."""
        return [entry["rows"] for entry in self.shards]

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(self.shard_rows)

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(entry["tokens"] for entry in self.shards)

    def table(self, shard: int) -> pa.Table:
        """A whole shard with all its columns, text columns for metrics among them."""
        return pa.Table.from_batches([_map_batch(self.directory / self.shards[shard]["file"])])

    def _column(self, shard: int, column: str) -> Ragged:
        return _map_column(self.directory / self.shards[shard]["file"], column)

    def examples(self, shard: int, rows: Int64) -> tuple[Ragged, Ragged]:
        """Inputs and targets of these rows of a supervised cache."""
        return self._column(shard, "inputs").take(rows), self._column(shard, "targets").take(rows)

    def pieces(self, length: int) -> list[int]:
        """How many pieces of `length` tokens each shard has; the last piece of a shard may be shorter."""
        return [-(-entry["tokens"] // length) for entry in self.shards]

    def fetch_pieces(self, shard: int, pieces: Int64, length: int) -> Ragged:
        """Pieces of the shard's text, cut in order and across documents, without separators."""
        tokens = self._column(shard, "tokens").values
        starts = pieces * length
        lengths = np.minimum(length, len(tokens) - starts)
        return Ragged(tokens[ranges(starts, lengths)], offsets_of(lengths))


# Maps hold no memory of their own, but each holds an open file.
@functools.lru_cache(maxsize=256)
def _map_batch(path: Path) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0)


@functools.lru_cache(maxsize=512)
def _map_column(path: Path, column: str) -> Ragged:
    return Ragged.from_arrow(_map_batch(path).column(column))
