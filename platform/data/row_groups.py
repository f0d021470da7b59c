"""Rows of Parquet files, a row group at a time."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from mixtura.platform.data.containers import HEAD_BYTES, refusal, what_begins
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
    """The rows of some row groups; of a damaged group what can be read, and then one bad record."""
    import pyarrow as pa

    footer = _footer(file, name)
    for group in range(first_group, footer.num_row_groups if stop_group is None else stop_group):
        rows, read = footer.row_group(group).num_rows, 0
        with _row_group(file, footer, group) as parquet:
            try:
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False):
                    yield from batch.to_pylist()
                    read += batch.num_rows
            except (pa.ArrowException, OSError):
                yield BadRecord("damaged row group", f"row group {group}: {rows - read} of {rows} rows cannot be read")


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
