"""Lines of files that may hold anything: none of more than 16 MiB is held, and what cannot be read is a bad record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BufferedReader
from typing import Any

from mixtura.platform.containers import UTF8_BOM, DamagedError
from mixtura.platform.data.task import BadRecord

LINE_BYTES = 16 << 20
LONG_LINE = f"line of more than {LINE_BYTES >> 20} MiB"
LONG_RECORD = f"record of more than {LINE_BYTES >> 20} MiB"
SAMPLE_CHARACTERS = 300
HALF_A_CHARACTER = "half of a surrogate pair"
BUFFER_BYTES = 1 << 20
# Lone surrogates, which no decoding gives, stand for what cannot be read where plain text is wanted: from here on a
# whole line, with one for each reason; from the second on a byte that is not UTF-8, as `surrogateescape` has it.
_LINE_MARK, _BYTE_MARK = 0xD800, 0xDC80


def raw_lines(
    file: BufferedReader, start: int = 0, stop: int | None = None, *, past_damage: bool = True
) -> Iterator[bytes | BadRecord]:
    """The lines that begin at a byte in [start, stop), each with its line end; overlong ones as bad records.

    Ranges that meet therefore give each line once: a line that reaches over a border belongs to where it begins. Where
    compressed data is damaged, the line that it cuts is a bad record and lines go on behind the damage, as far as they
    can be read; without `past_damage` the DamagedError is raised, for lines whose places count.

    >>> import io
    >>> [list(raw_lines(io.BytesIO(b"ab\\ncd\\ne"), *part)) for part in ((0, 4), (4, 7))]
    [[b'ab\\n', b'cd\\n'], [b'e']]
    """
    position = start
    if start:
        file.seek(start - 1)
        position = start - 1 + _skip_line(file)
    while stop is None or position < stop:
        try:
            line = file.readline(LINE_BYTES + 1)
            if not line:
                return
            position += len(line)
            if len(line) <= LINE_BYTES or line.endswith(b"\n"):
                yield line
                continue
            yield BadRecord(LONG_LINE, line[:SAMPLE_CHARACTERS].decode(errors="replace"))
            position += _skip_line(file)
        except DamagedError as damage:
            if not past_damage:
                raise
            yield BadRecord(damage.reason, "")


def _skip_line(file: BufferedReader) -> int:
    """Read to behind the next line end, holding no more than a piece; how many bytes that were."""
    count = 0
    while piece := file.readline(BUFFER_BYTES):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def without_bom(lines: Iterable[bytes | BadRecord]) -> Iterator[bytes | BadRecord]:
    """The lines of a file, which may begin with a byte order mark."""
    for number, line in enumerate(lines):
        yield line.removeprefix(UTF8_BOM) if number == 0 and isinstance(line, bytes) else line


def text_lines(lines: Iterable[bytes | BadRecord]) -> Iterator[str | BadRecord]:
    """Lines as text without their line ends (LF or CRLF, and nothing else ends a line)."""
    for line in lines:
        if isinstance(line, BadRecord):
            yield line
            continue
        bare = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield bare.decode()
        except UnicodeDecodeError:
            yield BadRecord("not UTF-8", bare[:SAMPLE_CHARACTERS].decode(errors="replace"))


class Marks:
    """Lines as text, in which marks stand for what cannot be read, and what the marks in a record mean."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def text(self, lines: Iterable[bytes | BadRecord]) -> Iterator[str]:
        """Lines with their ends."""
        for line in lines:
            if isinstance(line, BadRecord):
                if line.reason not in self._reasons:
                    self._reasons.append(line.reason)
                yield chr(_LINE_MARK + self._reasons.index(line.reason)) + "\n"
            else:
                yield line.decode(errors="surrogateescape")

    def reason(self, values: Iterable[Any]) -> str | None:
        """Why a record with these values cannot be read, if it cannot."""
        for value in values:
            if isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    return self._meaning(ord(value[error.start]))
        return None

    def _meaning(self, mark: int) -> str:
        if mark >= _BYTE_MARK:
            return "not UTF-8"
        index = mark - _LINE_MARK
        return self._reasons[index] if index < len(self._reasons) else HALF_A_CHARACTER
