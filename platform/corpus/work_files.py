"""Files between the stages of the work, in a folder or in a bucket: whole or absent, and read in ranges."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mixtura.platform.files import atomic_file, write_bytes_atomically
from mixtura.platform.filesystems import files_below, is_uri, opened, read_bytes, write_bytes, write_file


@contextlib.contextmanager
def writing(place: str) -> Iterator[BinaryIO]:
    """A file to write to, which is at its place when the context ends without an error, and not before."""
    if is_uri(place):
        with tempfile.TemporaryFile() as file:
            yield file
            write_file(place, file)
        return
    with atomic_file(Path(place)) as file:
        yield file


def write(place: str, data: bytes) -> None:
    """Put a small file at its place."""
    if is_uri(place):
        write_bytes(place, data)
    else:
        write_bytes_atomically(Path(place), data)


def read(place: str) -> bytes | None:
    """A small file; None if it is not there."""
    if is_uri(place):
        return read_bytes(place)
    path = Path(place)
    return path.read_bytes() if path.is_file() else None


def read_range(place: str, begin: int, end: int) -> bytes:
    """Some bytes of a file."""
    if end <= begin:
        return b""
    with _opened_without_buffer(place) as file:
        file.seek(begin)
        parts = []
        while begin < end and (part := file.read(end - begin)):
            parts.append(part)
            begin += len(part)
    if begin < end:
        raise EOFError(f"{place} ends {end - begin:,} bytes too early")
    return b"".join(parts)


def _opened_without_buffer(place: str) -> Any:
    return opened(place).detach() if is_uri(place) else open(place, "rb", buffering=0)


def names_below(place: str) -> set[str]:
    """The files below a folder, by their path in it, without those that a killed process had not ended."""
    if is_uri(place):
        return set(files_below(place))
    root = Path(place)
    found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names if not name.startswith("."))
    return {path.relative_to(root).as_posix() for path in found}
