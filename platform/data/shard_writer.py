"""Writing one shard of a token cache in bounded memory, however many rows it has.

Appended columns go to unlinked temporary files, which no crash can leave behind. At the end they are mapped and written
as the one record batch of an Arrow IPC file, so that a reader finds each column in one piece. What the shard holds, its
entry, is written last: a shard without an entry does not count.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash

from mixtura.platform.data.cache_store import Place, Store, store_at
from mixtura.platform.data.ragged import Int64, Ragged
from mixtura.platform.errors import DataError
from mixtura.platform.files import disk_full_is_an_answer

TOKEN_COLUMNS = {"supervised": ("inputs", "targets"), "unsupervised": ("tokens",)}

Entry = dict[str, Any]

_BUFFER_BYTES = 1 << 20
_PART_BYTES = 16 << 20
_LARGEST_ID = 2**31 - 1


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


def entry_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON value as caches keep it, indented for people."""
    return (json.dumps(value, indent=2, sort_keys=False) + "\n").encode()


class _Spool:
    """Bytes on disk without a name, written once and then mapped."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=_BUFFER_BYTES)  # noqa: SIM115 (closed by `close`)
        self._map: mmap.mmap | None = None
        self.size = 0

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self.size += len(view)

    def buffer(self) -> pa.Buffer:
        """All bytes as a map; it must not be used after `close`, and nothing may be written after it was made."""
        self._file.flush()
        if not self.size:
            return pa.py_buffer(b"")
        self._map = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
        return pa.py_buffer(self._map)

    def let_go(self) -> None:
        """Give back the memory of the map's pages that were read; it can be read again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def copy_to(self, file: BinaryIO) -> None:
        self._file.seek(0)
        while data := self._file.read(_BUFFER_BYTES):
            file.write(data)

    def close(self) -> None:
        self._file.close()


class _Column:
    """One column: the bytes of its rows one after the other, and where each row ends."""

    def __init__(self, name: str, folder: Path, width: int) -> None:
        self.name, self._width = name, width
        self._values, self._offsets = _Spool(folder), _Spool(folder)
        self._offsets.write(np.zeros(1, np.int64))
        self.rows, self.total, self.longest = 0, 0, 0

    def append(self, values: Any, lengths: Int64) -> None:
        """Rows of these lengths, with all their values in one array or bytes object."""
        self._values.write(values)
        self._offsets.write(self.total + np.cumsum(lengths, dtype=np.int64))
        self.rows += len(lengths)
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max(initial=0)))

    def array(self) -> pa.Array:
        """As an Arrow array over the maps: offsets of 64 bits, so that a reader needs no copy of them either."""
        offsets, values = self._offsets.buffer(), self._values.buffer()
        if self._width == 1:
            return pa.LargeStringArray.from_buffers(self.rows, offsets, values)
        tokens = pa.Array.from_buffers(pa.int32(), self.total, [None, values])
        return pa.Array.from_buffers(pa.large_list(pa.int32()), self.rows, [None, offsets], children=[tokens])

    def let_go(self) -> None:
        self._values.let_go()
        self._offsets.let_go()

    def close(self) -> None:
        self._values.close()
        self._offsets.close()


class _Digesting(io.RawIOBase):
    """Counts and digests what passes to a file, `after_part` of a large write as well."""

    def __init__(self, file: BinaryIO, after_part: Callable[[], None]) -> None:
        self._file, self._after_part = file, after_part
        self.state, self.size = xxhash.xxh3_128(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PART_BYTES):
            part = view[start : start + _PART_BYTES]
            self._file.write(part)
            self.state.update(part)
            self._after_part()
        self.size += len(view)
        return len(view)


class ShardWriter:
    """Writes shard `index` of `count` of a split; a shard already there is replaced.

        with ShardWriter("caches/rte-3f", 0, 4, "validation", "supervised", text=("fields",)) as writer:
            writer.append({"inputs": inputs, "targets": targets, "fields": texts})
            writer.reject({"reason": "no_answer", "origin": "dev.jsonl:7"})
            entry = writer.close({"rows read": 12})

    The bytes do not depend on how the rows are divided among the appends. Token ids must be at least 1, since 0 is
    padding. Without `close` nothing is left behind.
    """

    def __init__(
        self, place: Place, index: int, count: int, split: str, kind: str, *, text: Sequence[str] = ()
    ) -> None:
        self._store: Store = store_at(place)
        self.name = shard_name(split, index, count)
        self._head: Entry = {"split": split, "index": index, "count": count, "kind": kind}
        self._folder = self._store.spool_folder()
        self._open = contextlib.ExitStack()
        self._tokens = [self._column(name, 4) for name in TOKEN_COLUMNS[kind]]
        self._texts = [self._column(name, 1) for name in text]
        self._lines: _Spool | None = None
        self._reasons: Counter[str] = Counter()

    def _column(self, name: str, width: int) -> _Column:
        column = _Column(name, self._folder, width)
        self._open.callback(column.close)
        return column

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @contextlib.contextmanager
    def _spooling(self) -> Iterator[None]:
        with disk_full_is_an_answer(self._folder, f"writing the token cache shard {self.name}"):
            yield

    def append(self, columns: Mapping[str, Ragged | Sequence[str]]) -> None:
        """Rows at the end: token columns as `Ragged` of any integer type, text columns as texts."""
        known = [column.name for column in (*self._tokens, *self._texts)]
        sizes = {name: len(values) for name, values in columns.items()}
        if set(sizes) != set(known) or len(set(sizes.values())) > 1:
            raise DataError(f"{self.name} has the columns {', '.join(known)}, equally long; found rows {sizes}")
        with self._spooling():
            for column in self._tokens:
                rows = columns[column.name]
                assert isinstance(rows, Ragged), f"{column.name} holds tokens"
                column.append(_checked(rows.values, f"{self.name}, column {column.name}"), rows.lengths)
            for column in self._texts:
                texts = [_encoded(str(text), f"{self.name}, column {column.name}") for text in columns[column.name]]  # type: ignore[union-attr]
                column.append(b"".join(texts), np.array([len(text) for text in texts], dtype=np.int64))

    def reject(self, row: Mapping[str, Any]) -> None:
        """A row that was left out, with its `reason`: counted in the entry and kept beside the shard."""
        self._reasons[str(row["reason"])] += 1
        with self._spooling():
            if self._lines is None:
                self._lines = _Spool(self._folder)
                self._open.callback(self._lines.close)
            self._lines.write(_line(row))

    def close(self, counters: Mapping[str, int] | None = None) -> Entry:
        """Write the files and then the entry, which is returned; `counters` are kept in it (rows read, for one)."""
        columns = {column.name: {"tokens": column.total, "longest": column.longest} for column in self._tokens}
        entry = {**self._head, "rows": self._tokens[0].rows, "tokens": sum(column.total for column in self._tokens)}
        entry |= {"columns": columns, "rejected": dict(sorted(self._reasons.items()))}
        entry["rejected_file"] = None
        if self._lines is not None:
            with self._written(f"rejected/{self.name}.jsonl") as (file, entry["rejected_file"]):
                self._lines.copy_to(file)
        entry["counters"] = dict(counters or {})
        with self._written(f"{self.name}.arrow") as (file, written):
            self._write_arrow(file)
        self._store.write(f"{self.name}.json", entry_bytes(entry | written))
        self._open.close()
        return entry | written

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[tuple[BinaryIO, Entry]]:
        """A file, and what the entry says of it, which is filled in at the end of the block."""
        described: Entry = {}
        with self._store.writing(name) as file:
            digesting = _Digesting(file, self._let_go)
            yield digesting, described  # type: ignore[misc]
            described |= {"file": name, "bytes": digesting.size, "xxh3_128": digesting.state.hexdigest()}

    def _let_go(self) -> None:
        for column in (*self._tokens, *self._texts):
            column.let_go()

    def _write_arrow(self, file: BinaryIO) -> None:
        columns = [*self._tokens, *self._texts]
        arrays = [column.array() for column in columns]
        batch = pa.RecordBatch.from_arrays(arrays, names=[column.name for column in columns])
        with pa.ipc.new_file(pa.PythonFile(file, "w"), batch.schema) as writer:
            writer.write_batch(batch)


def _checked(values: np.ndarray[Any, np.dtype[Any]], where: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    if len(values) and (int(values.min()) < 1 or int(values.max()) > _LARGEST_ID):
        found = f"{values.min()} to {values.max()}"
        raise DataError(f"{where}: token ids must be at least 1, since 0 is padding, and below 2^31; found {found}")
    return np.ascontiguousarray(values, dtype=np.int32)


def _encoded(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: the text {text[:40]!r} is not Unicode ({error.reason}): reject the row") from None


def _line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON, readable where it can be: half a character is escaped, since UTF-8 has none."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode()
