"""Records of WARC files, walked by their Content-Length, byte for byte.

    WARC/1.0 CRLF
    WARC-Type: conversion CRLF
    Content-Length: 5 CRLF
    CRLF
    Hello CRLF CRLF

A body may hold anything, also what looks like a record, so a length is trusted wherever it leads to the end of the
record. Only where it does not, the next header is searched for, from behind the broken record's own header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mixtura.platform.containers import BAD_CHECKSUM, DamagedError
from mixtura.platform.corpus.byte_stream import ByteStream
from mixtura.platform.corpus.documents import sample_of

_HEADER_BYTES = 64 << 10
_VERSION = re.compile(rb"WARC/\d\.\d+[ \t]*\r?\n")
_VERSION_BYTES = 16
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_BLANK = re.compile(rb"[\r\n]*")
_END_OF_RECORD = b"\r\n\r\n"
_MOST_DIGITS = 18

NO_LENGTH = "Content-Length is missing or no number"
WRONG_LENGTH = "Content-Length does not lead to the end of the record"
ENDS_INSIDE = "the file ends inside the record"
NO_HEADER = "bytes that belong to no record"
LONG_HEADER = f"record header of more than {_HEADER_BYTES >> 10} KiB"


@dataclass(frozen=True, slots=True)
class Record:
    """A record: its header's fields, with names in lower case, and its body."""

    fields: Mapping[str, str]
    body: bytes
    position: int


@dataclass(frozen=True, slots=True)
class BrokenRecord:
    """A record, or what stands between two, that cannot be read."""

    reason: str
    position: int
    sample: str
    record_id: str = ""


def too_large(most: int) -> str:
    """The reason for records that are given up for their size."""
    return f"record of more than {most / (1 << 20):g} MiB"


def read_records(stream: ByteStream, most: int) -> Iterator[Record | BrokenRecord]:
    """All records of a WARC file; one with a body of more than `most` bytes is passed over in pieces."""
    while True:
        try:
            if not _drop_blank(stream):
                return
            yield _next_record(stream, most)
        except DamagedError as damage:
            yield _broken(damage.reason, stream)
            stream.drop()


def _drop_blank(stream: ByteStream) -> bool:
    """Pass over line ends; whether anything follows."""
    while stream.reach(1):
        blank = _BLANK.match(stream.data)
        stream.drop(blank.end() if blank else 0)
        if stream.data:
            return True
    return False


def _broken(reason: str, stream: ByteStream) -> BrokenRecord:
    """What is told of the record at hand: how its body begins, or its header if no body is known."""
    head = bytes(stream.data[:_HEADER_BYTES])
    fields, length = _header(head) or ({}, 0)
    return BrokenRecord(reason, stream.position, sample_of(head[length:] or head), fields.get("warc-record-id", ""))


def _next_record(stream: ByteStream, most: int) -> Record | BrokenRecord:
    """The record at hand. A broken one is passed over up to the next header."""
    stream.reach(_VERSION_BYTES)
    if not _VERSION.match(stream.data):
        broken = _broken(NO_HEADER, stream)
        _seek_header(stream)
        return broken
    header = _reach_header(stream)
    if header is None:
        broken = _broken(ENDS_INSIDE if len(stream.data) < _HEADER_BYTES else LONG_HEADER, stream)
        stream.drop(1)
        _seek_header(stream)
        return broken
    fields, header_bytes = header
    length = _length(fields)
    if length is not None and length <= most and _ends_at(stream, header_bytes + length):
        begin = stream.position
        stream.drop(header_bytes)
        return Record(fields, stream.take(length), begin)
    return _passed_over(stream, header_bytes, length, most)


def _passed_over(stream: ByteStream, header_bytes: int, length: int | None, most: int) -> BrokenRecord:
    if length is None:
        broken = _broken(NO_LENGTH, stream)
        stream.drop(header_bytes)
        _seek_header(stream)
        return broken
    if length > most:
        broken = _broken(too_large(most), stream)
        stream.drop(header_bytes)
        _skip_large(stream, length, most)
        return broken
    is_cut = len(stream.data) < header_bytes + length
    broken = _broken(WRONG_LENGTH, stream)
    stream.drop(header_bytes)
    return replace(broken, reason=ENDS_INSIDE) if not _seek_header(stream) and is_cut else broken


def _reach_header(stream: ByteStream) -> tuple[dict[str, str], int] | None:
    """The header at hand and its length, as far as one is there within its greatest length."""
    while not (header := _header(stream.data)):
        # No further than needed: damage behind a short record would take it along.
        if len(stream.data) >= _HEADER_BYTES or not stream.reach(len(stream.data) + 1):
            return None
    return header


def _header(data: bytes | bytearray) -> tuple[dict[str, str], int] | None:
    """A header's fields and its length with the blank line, if the bytes begin with one.

    >>> _header(b"WARC/1.0\\r\\nWARC-Type: response\\r\\nContent-Length: 2\\r\\n\\r\\nHi")
    ({'warc-type': 'response', 'content-length': '2'}, 52)
    """
    version = _VERSION.match(data)
    end = _HEADER_END.search(data, 0, _HEADER_BYTES)
    if not end or not version:
        return None
    return header_fields(bytes(data[version.end() : end.start()])), end.end()


def header_fields(lines: bytes) -> dict[str, str]:
    """The fields of a header's lines; a line that begins with a space goes on with the one before."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines.decode(errors="replace").split("\n"):
        if line[:1] in (" ", "\t") and name:
            fields[name] += " " + line.strip()
            continue
        key, colon, value = line.partition(":")
        if colon:
            name = key.strip().lower()
            fields[name] = value.strip()
    return fields


def _length(fields: Mapping[str, str]) -> int | None:
    text = fields.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def _ends_at(stream: ByteStream, length: int) -> bool:
    """Whether a record ends behind so many bytes: at two line ends, at the next header or at the end of the content."""
    end = length + len(_END_OF_RECORD)
    if not stream.reach(end):
        return len(stream.data) >= length and not stream.data[length:].strip(b"\r\n")
    if stream.data[length:end] == _END_OF_RECORD:
        _look_behind(stream, end)
        return True
    stream.reach(end + _VERSION_BYTES)
    blank = _BLANK.match(stream.data, length)
    behind = blank.end() if blank else length
    return len(stream.data) == behind or bool(_VERSION.match(stream.data, behind))


def _look_behind(stream: ByteStream, end: int) -> None:
    """Meet a checksum that says that the record is not what was written; other damage is the next record's."""
    try:
        stream.reach(end + 1)
    except DamagedError as damage:
        if damage.reason == BAD_CHECKSUM:
            raise
        stream.postpone(damage)


def _seek_header(stream: ByteStream, stop: int | None = None) -> bool:
    """Pass over bytes up to the next header of a record, if one begins before the position `stop`; whether it does."""
    searched = 0
    try:
        while stream.reach(searched + 1):
            within = len(stream.data) if stop is None else min(len(stream.data), stop - stream.position)
            if found := _VERSION.search(stream.data, searched, max(within, 0)):
                stream.drop(found.start())
                searched = 1
                if "warc-type" in (_reach_header(stream) or ({}, 0))[0]:
                    return True
            elif stop is not None and stream.position + within >= stop:
                stream.drop(within)
                return False
            else:  # the begin of a version line may stand at the end of what is at hand
                stream.drop(within - _VERSION_BYTES)
                searched = 0
                if not stream.reach(len(stream.data) + 1):
                    break
    except DamagedError as damage:
        stream.postpone(damage)
    stream.drop()
    return False


def _skip_large(stream: ByteStream, length: int, most: int) -> None:
    """Pass over a body that is too large to hold, as far as its length can be believed.

    Something in it that looks like a record means that the length may be wrong. It counts if the body does not end
    where it should, or if so much follows that it cannot be held to see that.
    """
    end = stream.position + length
    if _seek_header(stream, end) and end - stream.position <= most and _ends_at(stream, end - stream.position):
        stream.drop(end - stream.position)
