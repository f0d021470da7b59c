"""Rows between the stages, as Arrow files that are read and written a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc

from mixtura.platform.filesystems import opened

_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 4096
_NO_TEXT_BYTES = 200
"""Of a row beside its text, more or less."""


def columns_of(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> list[pa.Array]:
    """The arrays of at least one row, in the order of the schema."""
    return [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)]


class TableWriter:
    """Writes rows to an Arrow file in batches of bounded size, compressed."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(file, schema, options=options)
        self._schema = schema
        self._rows: list[Sequence[Any]] = []
        self._bytes = 0
        self.rows = 0
        self.batches: list[int] = []
        """The first row of each batch."""

    def add(self, row: Sequence[Any], size: int) -> None:
        """A row in the order of the schema, with the bytes of its text."""
        self._rows.append(row)
        self.rows += 1
        self._bytes += size + _NO_TEXT_BYTES
        if self._bytes >= _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.record_batch(columns_of(self._rows, self._schema), schema=self._schema))
            self.batches.append(self.rows - len(self._rows))
        self._rows, self._bytes = [], 0


def read_rows(place: str, columns: Sequence[str], first_batch: int = 0) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row."""
    with opened(place) as file, pa.ipc.open_file(file) as reader:
        for number in range(first_batch, reader.num_record_batches):
            batch = reader.get_batch(number)
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
