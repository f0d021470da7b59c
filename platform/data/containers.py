"""What stands around records: the first bytes that tell what a file is, gzip, and zip archives.

Damaged data is read up to where the damage is: `DamagedError` comes after everything that could be read.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from mixtura.platform.errors import DataError

HEAD_BYTES = 512
"""As many first bytes tell what a file is."""
_BUFFER_BYTES = 1 << 20
UTF8_BOM = b"\xef\xbb\xbf"


class DamagedError(Exception):
    """Compressed data that cannot be read on; everything before it has been handed out."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def what_begins(head: bytes) -> str:
    """What a file is, in words, by its first bytes.

    >>> what_begins(b"version https://git-lfs.github.com/spec/v1"), what_begins(b"")
    ('a Git LFS pointer (the file itself was not fetched)', 'an empty file')
    """
    start = head.removeprefix(UTF8_BOM).lstrip().lower()
    known: tuple[tuple[bool, str], ...] = (
        (not head, "an empty file"),
        (head.startswith(b"version https://git-lfs"), "a Git LFS pointer (the file itself was not fetched)"),
        (start.startswith((b"<!doctype html", b"<html")), "an HTML page"),
        (head.startswith(b"\x1f\x8b"), "gzip data"),
        (head.startswith(b"PK\x03\x04"), "a zip archive"),
        (head.startswith(b"PAR1"), "a Parquet file"),
        (head.startswith((b"\xff\xfe", b"\xfe\xff")), "UTF-16 text"),
        (b"\0" in head, "binary data"),
        (start.startswith((b"{", b"[")), "JSON"),
    )
    return next((words for holds, words in known if holds), "text")


FOREIGN = {
    "a Git LFS pointer (the file itself was not fetched)",
    "an HTML page",
    "gzip data",
    "a zip archive",
    "a Parquet file",
    "UTF-16 text",
}
"""What no text is, not even a table or JSON."""


def refusal(name: str, found: str, expected: str) -> DataError:
    """The error for a file that is no such thing."""
    return DataError(f"{name} is {found}; expected {expected}")


class _Decompressed(io.RawIOBase):
    """Decompressed bytes, up to where the data is damaged; the next read then raises DamagedError."""

    def __init__(self, file: zipfile.ZipExtFile | gzip.GzipFile, what: str) -> None:
        self._file, self._what = file, what

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read1(len(buffer))
        except EOFError as error:
            raise DamagedError("the compressed file ends early") from error
        except (zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
            raise DamagedError(f"corrupt {self._what} data") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextlib.contextmanager
def plain_bytes(file: BufferedReader, name: str, member: str = "") -> Iterator[BufferedReader]:
    """The bytes to read records from: of the file, or of a member of a zip archive, and decompressed where gzipped."""
    with contextlib.ExitStack() as stack:
        if member:
            archive = stack.enter_context(open_zip(file, name))
            unzipped = _Decompressed(_open_member(archive, name, member), "zip")
            file = stack.enter_context(BufferedReader(unzipped, _BUFFER_BYTES))
            name = f"{name}/{member}"
        if name.lower().endswith(".gz"):
            head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
            if head and not head.startswith(b"\x1f\x8b"):
                raise refusal(name, what_begins(head), "gzip data")
            gunzipped = _Decompressed(gzip.GzipFile(fileobj=file), "gzip")
            file = stack.enter_context(BufferedReader(gunzipped, _BUFFER_BYTES))
        yield file


def open_zip(file: BufferedReader, name: str) -> zipfile.ZipFile:
    """A zip archive; a file that is none is refused."""
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        file.seek(0)
        found = what_begins(file.read(HEAD_BYTES))
        raise refusal(name, "a zip archive that is cut off" if "zip" in found else found, "a zip archive") from None


def _open_member(archive: zipfile.ZipFile, name: str, member: str) -> zipfile.ZipExtFile:
    try:
        opened = archive.open(member)
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{name} holds {member}, but not so that it can be read: {error}; unpack it") from error
    assert isinstance(opened, zipfile.ZipExtFile)
    return opened
