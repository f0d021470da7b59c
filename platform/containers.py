"""What stands around records: the first bytes that tell what a file is, gzip, zstd and zip archives.

Damaged data is read up to where the damage is: `DamagedError` comes after everything that could be read. Whoever reads
on then gets what follows the damage: the next whole member of a gzip file, if there is one, or else the end.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from mixtura.platform.errors import DataError

HEAD_BYTES = 512
"""As many first bytes tell what a file is."""
ENDS_EARLY = "the compressed file ends early"
CORRUPT_GZIP = "corrupt gzip data"
_BUFFER_BYTES = 1 << 20
_PACKED_BYTES = 64 << 10
_WITH_GZIP_HEAD = 31
# Method deflate, no reserved flag, a level and a system that are known: chance makes one in about 100 GB of data.
_GZIP_HEAD = re.compile(rb"\x1f\x8b\x08[\0-\x1f].{4}[\0\2\4][\0-\x0d\xff]", re.DOTALL)
_GZIP_HEAD_BYTES = 10
_CHECKSUM_FAULT = re.compile("incorrect (data|length) check")
_TRIED_BYTES = 4096
_ZSTD_PIECE_BYTES = 16 << 10
_ZSTD_FRAME, _ZSTD_SKIPPED = b"\x28\xb5\x2f\xfd", bytes(range(0x50, 0x60))
UTF8_BOM = b"\xef\xbb\xbf"


class DamagedError(Exception):
    """Compressed data that cannot be read; everything before it has been handed out."""

    def __init__(self, reason: str, *, is_wrong_checksum: bool = False) -> None:
        self.reason = reason
        self.is_wrong_checksum = is_wrong_checksum
        """What has been handed out is as long as what was written, but not the same."""
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
        (head.startswith(_ZSTD_FRAME), "zstd data"),
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
    "zstd data",
    "a zip archive",
    "a Parquet file",
    "UTF-16 text",
}
"""What no text is, not even a table or JSON."""


def refusal(name: str, found: str, expected: str) -> DataError:
    """The error for a file that is no such thing."""
    return DataError(f"{name} is {found}; expected {expected}")


class _UpToDamage(io.RawIOBase, ABC):
    """The bytes of compressed data up to where it is damaged; the read that meets it raises DamagedError, and the data
    ends."""

    _ended = False

    @abstractmethod
    def _next(self, most: int) -> bytes:
        """Some bytes more, or none at the end; DamagedError where there should be some."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._ended:
            return 0
        try:
            data = self._next(len(buffer))
        except DamagedError:
            self._ended = True
            raise
        buffer[: len(data)] = data
        return len(data)


class _Unzipped(_UpToDamage):
    """The bytes of a member of a zip archive."""

    def __init__(self, file: zipfile.ZipExtFile) -> None:
        self._file = file

    def _next(self, most: int) -> bytes:
        try:
            return self._file.read1(most)
        except EOFError as error:
            raise DamagedError(ENDS_EARLY) from error
        except (zlib.error, zipfile.BadZipFile, lzma.LZMAError, OSError) as error:
            raise DamagedError("corrupt zip data") from error

    def close(self) -> None:
        self._file.close()
        super().close()


class _Gunzipped(io.RawIOBase):
    """The bytes of all members of a gzip file, one after the other; where one is damaged, a read raises DamagedError.

    Files are often written by appending members, so one that was cut off by a crash may have whole ones behind it:

        1f 8b 08 ... first member | 1f 8b 08 ... cut off | 1f 8b 08 ... third member

    Whatever looks like the head of a member is therefore tried, even where the member in hand has not ended: if it can
    be decompressed, the member in hand was cut off there, and nothing of the next one is taken for a part of it.
    """

    def __init__(self, file: BufferedReader) -> None:
        self._file, self._at_end = file, False
        self._packed = b""
        self._searched = 0
        """In so many of the packed bytes no other member begins."""
        self._inflate: Any = None
        """Decompresses the member in hand; None between members."""
        self._damage: str | None = None
        self._is_wrong_checksum = False
        self._lost = False
        """Whether the next member has still to be found, behind damage."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._damage is None:
            self._fill(_GZIP_HEAD_BYTES)
            if self._lost:
                self._find_member()
            elif self._inflate is None:
                self._packed = self._packed.lstrip(b"\0")  # padding between members
                self._begin_member()
            if self._inflate is not None:
                if data := self._inflated(len(buffer)):
                    buffer[: len(data)] = data
                    return len(data)
            elif self._at_end and not self._packed:
                return 0
        damage = DamagedError(self._damage, is_wrong_checksum=self._is_wrong_checksum)
        self._damage, self._is_wrong_checksum = None, False
        raise damage

    def _fill(self, count: int) -> None:
        """Have as many packed bytes at hand, or all that are left."""
        while len(self._packed) < count and not self._at_end:
            more = self._file.read(_PACKED_BYTES)
            self._packed += more
            self._at_end = not more

    def _begin_member(self) -> None:
        self._inflate = zlib.decompressobj(_WITH_GZIP_HEAD) if self._packed else None
        self._searched, self._lost = 1, False

    def _find_member(self) -> None:
        """Drop bytes up to where a member begins."""
        self._packed, self._searched = self._packed[self._next_head() :], 0
        self._fill(_TRIED_BYTES)
        if self._member_begins():
            self._begin_member()
        else:
            self._searched = 1

    def _next_head(self) -> int:
        """Where in the packed bytes another member may begin: all before it belongs to the member in hand."""
        head = _GZIP_HEAD.search(self._packed, self._searched)
        reaching_over = 0 if self._at_end else _GZIP_HEAD_BYTES - 1
        self._searched = head.start() if head else max(self._searched, len(self._packed) - reaching_over)
        return self._searched

    def _member_begins(self) -> bool:
        """Whether the packed bytes can be decompressed from here on."""
        if not _GZIP_HEAD.match(self._packed):
            return False
        try:
            return bool(zlib.decompressobj(_WITH_GZIP_HEAD).decompress(self._packed[:_TRIED_BYTES], _TRIED_BYTES))
        except zlib.error:
            return False

    def _inflated(self, most: int) -> bytes:
        """What the next packed bytes hold, of the member in hand; says where it is damaged."""
        if (stop := self._next_head()) == 0 and self._packed:
            self._fill(_TRIED_BYTES)
            if not self._member_begins():
                self._searched = 1
                stop = self._next_head()
        feed, rest = self._packed[:stop], self._packed[stop:]
        before = self._inflate.copy()
        try:
            data: bytes = self._inflate.decompress(feed, most)
        except zlib.error as error:
            self._packed, self._searched = rest, 0
            self._damage = CORRUPT_GZIP
            self._is_wrong_checksum = bool(_CHECKSUM_FAULT.search(str(error)))
            self._inflate, self._lost = None, True
            return _up_to_error(before, feed)
        if self._inflate.eof:
            self._packed, self._searched = self._inflate.unused_data + rest, 0
            self._inflate = None
            return data
        self._packed = self._inflate.unconsumed_tail + rest
        self._searched = len(self._inflate.unconsumed_tail)
        if not data and not feed:
            self._damage = ENDS_EARLY
            self._begin_member()
        return data


def _up_to_error(inflate: Any, packed: bytes) -> bytes:
    """What can be decompressed of bytes that are known to be corrupt somewhere."""
    pieces: list[bytes] = []
    with contextlib.suppress(zlib.error):
        pieces.extend(inflate.decompress(packed[at : at + 1]) for at in range(len(packed)))
    return b"".join(pieces)


class _Unzstd(_UpToDamage):
    """The bytes of all frames of a zstd file.

    Up to a piece from before the damage is lost with it, so pieces are small.
    """

    def __init__(self, file: BufferedReader) -> None:
        import pyarrow as pa

        self._file: Any = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")

    def _next(self, most: int) -> bytes:
        try:
            data: bytes = self._file.read(min(most, _ZSTD_PIECE_BYTES))
        except OSError as error:
            raise DamagedError(ENDS_EARLY if "Truncated" in str(error) else "corrupt zstd data") from error
        return data


def unpacked(file: BufferedReader) -> BufferedReader:
    """The bytes of a file, decompressed where its first bytes are those of gzip or zstd."""
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    if head.startswith(b"\x1f\x8b"):
        return BufferedReader(_Gunzipped(file), _BUFFER_BYTES)
    if head.startswith(_ZSTD_FRAME) or (head[1:4] == b"\x2a\x4d\x18" and head[:1] in _ZSTD_SKIPPED):
        return BufferedReader(_Unzstd(file), _BUFFER_BYTES)
    return file


@contextlib.contextmanager
def plain_bytes(file: BufferedReader, name: str, member: str = "") -> Iterator[BufferedReader]:
    """The bytes to read records from: of the file, or of a member of a zip archive, and decompressed where gzipped."""
    with contextlib.ExitStack() as stack:
        if member:
            archive = stack.enter_context(open_zip(file, name))
            unzipped = _Unzipped(_open_member(archive, name, member))
            file = stack.enter_context(BufferedReader(unzipped, _BUFFER_BYTES))
            name = f"{name}/{member}"
        if name.lower().endswith(".gz"):
            head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
            if head and not head.startswith(b"\x1f\x8b"):
                raise refusal(name, what_begins(head), "gzip data")
            file = stack.enter_context(BufferedReader(_Gunzipped(file), _BUFFER_BYTES))
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
