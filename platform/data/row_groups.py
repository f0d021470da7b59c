"""Rows of Parquet files, a row group at a time."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from mixtura.platform.containers import HEAD_BYTES, refusal, what_begins
from mixtura.platform.data.lines import LINE_BYTES, LONG_RECORD, SAMPLE_CHARACTERS
from mixtura.platform.data.task import BadRecord, Row

_BATCH_ROWS = 1024


def parquet_groups(file: BufferedReader, name: str) -> tuple[int, ...]:
    """The number of rows in each row group, from the file's footer."""
    footer = _footer(file, name)
    return tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))


def _footer(file: BufferedReader, name: str) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        file.seek(0)
        found = what_begins(file.read(HEAD_BYTES))
        cut_off = "Parquet" in found
        raise refusal(name, "a Parquet file that is cut off or damaged" if cut_off else found, "Parquet") from error


def read_parquet(
    file: BufferedReader, name: str, first_group: int = 0, stop_group: int | None = None
) -> Iterator[Row | BadRecord]:
    """The rows of some row groups; of a damaged group what can be read, and then one bad record.

    A value that is no text although its column says so, a time before the year 1, and more than 16 MiB cost their row.
    """
    import pyarrow as pa

    footer = _footer(file, name)
    for group in range(first_group, footer.num_row_groups if stop_group is None else stop_group):
        rows, read = footer.row_group(group).num_rows, 0
        mean_bytes = footer.row_group(group).total_byte_size // max(rows, 1)
        batch_rows = max(1, min(_BATCH_ROWS, LINE_BYTES // max(mean_bytes, 1)))
        with _row_group(file, footer, group) as parquet:
            try:
                for batch in parquet.iter_batches(batch_rows, row_groups=[group], use_threads=False):
                    yield from _rows(batch)
                    read += batch.num_rows
            except (pa.ArrowException, OSError):
                yield BadRecord("damaged row group", f"row group {group}: {rows - read} of {rows} rows cannot be read")


def _rows(batch: Any) -> Iterator[Row | BadRecord]:
    try:
        if batch.nbytes <= LINE_BYTES:
            yield from batch.to_pylist()
            return
    except (ValueError, OverflowError):
        pass
    for index in range(batch.num_rows):
        yield _row(batch.slice(index, 1))


def _row(batch: Any) -> Row | BadRecord:
    if batch.nbytes > LINE_BYTES:
        return BadRecord(LONG_RECORD, "")
    try:
        row: Row = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord("not UTF-8", bytes(error.object[:SAMPLE_CHARACTERS]).decode(errors="replace"))
    except (ValueError, OverflowError) as error:
        return BadRecord("a value that Python cannot hold", str(error)[:SAMPLE_CHARACTERS])
    return row


@contextlib.contextmanager
def _row_group(file: BufferedReader, footer: Any, group: int) -> Iterator[Any]:
    """One row group in memory, at its place in an otherwise empty image of the file.

    Arrow's threads then meet no Python object, which they could outlive when the process ends, and a fault of the
    network comes while the bytes are fetched, where it cannot be taken for damaged data.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = [footer.row_group(group).column(index) for index in range(footer.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    start, end = min(starts, default=0), max(ends, default=1)
    file.seek(start)
    image = mmap.mmap(-1, end, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # what is not written takes no memory
    data = file.read(end - start)
    image[start : start + len(data)] = data
    del data
    yield parquet.ParquetFile(
        pa.BufferReader(pa.py_buffer(image)), metadata=footer, page_checksum_verification=True, pre_buffer=False
    )
