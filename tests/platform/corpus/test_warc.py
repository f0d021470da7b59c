"""Records of WARC files: walked by their lengths, and what happens where these lie."""

from __future__ import annotations

import gzip
import random
from io import BufferedReader, BytesIO

import pyarrow as pa
import pytest

from mixtura.platform.containers import BAD_CHECKSUM, ENDS_EARLY, unpacked
from mixtura.platform.corpus import warc
from mixtura.platform.corpus.byte_stream import ByteStream
from mixtura.platform.corpus.warc import BrokenRecord, Record, read_records, too_large

from .warc_bytes import CRLF, members, record

MOST = 100_000
FAKE = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 4\r\n\r\nfake\r\n\r\n"


def walked(data: bytes, most: int = MOST) -> list[bytes | str]:
    """Bodies of the records, and reasons of the broken ones."""
    stream = ByteStream(unpacked(BufferedReader(BytesIO(data))))
    return [item.body if isinstance(item, Record) else item.reason for item in read_records(stream, most)]


def broken(data: bytes, most: int = MOST) -> list[BrokenRecord]:
    stream = ByteStream(unpacked(BufferedReader(BytesIO(data))))
    return [item for item in read_records(stream, most) if isinstance(item, BrokenRecord)]


THREE = (record(b"one", "a"), record(FAKE * 3, "b"), record(b"three", "c"))
BODIES = [b"one", FAKE * 3, b"three"]


@pytest.mark.parametrize(
    "packed",
    [
        b"".join(THREE),
        gzip.compress(b"".join(THREE)),
        members(*THREE),
        pa.compress(b"".join(THREE), "zstd", asbytes=True),
        b"".join(pa.compress(each, "zstd", asbytes=True) for each in THREE),
    ],
    ids=["plain", "one gzip member", "a member a record", "one zstd frame", "a frame a record"],
)
def test_the_same_records_however_they_are_packed(packed: bytes) -> None:
    assert walked(packed) == BODIES


def test_header_fields_have_lower_case_names_and_go_on_in_lines_that_begin_with_a_space() -> None:
    data = b"WARC/1.1\nWARC-TYPE:resource\nX-Long: a\n b\nContent-Length: 2\n\nhi\n\n"
    (found,) = read_records(ByteStream(BufferedReader(BytesIO(data))), MOST)
    assert isinstance(found, Record)
    assert found.fields == {"warc-type": "resource", "x-long": "a b", "content-length": "2"}


@pytest.mark.parametrize("end", [b"", CRLF, b"\n\n", CRLF * 2, CRLF * 5])
def test_line_ends_behind_a_record_may_be_missing_or_too_many(end: bytes) -> None:
    assert walked(record(b"one", end=end) + record(b"two", end=end)) == [b"one", b"two"]


@pytest.mark.parametrize("length", [1, 2, 30, 10_000])
def test_a_length_that_lies_costs_one_record(length: int) -> None:
    lying = record(b"a body of some bytes", "lie", length=length)
    data = record(b"one") + lying + record(b"three") + record(b"four" * 3000)
    assert walked(data) == [b"one", warc.WRONG_LENGTH, b"three", b"four" * 3000]
    assert walked(members(record(b"one"), lying, record(b"three"))) == [b"one", warc.WRONG_LENGTH, b"three"]


@pytest.mark.parametrize("length", ["-5", "many", "", "1e3", "9" * 40, "٣"])
def test_a_length_that_is_no_number_costs_one_record(length: str) -> None:
    data = record(b"one") + record(b"body", "lie", length=length) + record(b"three")
    assert walked(data) == [b"one", warc.NO_LENGTH, b"three"]


@pytest.mark.parametrize("length", [MOST + 1, 10**13])
def test_a_huge_length_that_lies_costs_one_record(length: int) -> None:
    data = record(b"one") + record(b"body", "lie", length=length) + record(b"three") + record(b"four")
    assert walked(data) == [b"one", too_large(MOST), b"three", b"four"]


@pytest.mark.parametrize("body", [b"x" * 3 * MOST, b"x" * MOST + FAKE * 1000, b"y" * 2 * MOST + FAKE])
def test_a_record_over_the_limit_is_passed_over_whole(body: bytes) -> None:
    data = record(b"one") + record(body, "large") + record(b"three")
    assert walked(data) == [b"one", too_large(MOST), b"three"]
    assert broken(data)[0].record_id == "<urn:uuid:large>"


def test_bytes_between_records_are_one_broken_record() -> None:
    data = b"garbage" + record(b"one") + b"\0\xff" * 50_000 + b"WARC/1.0 of old\n" + record(b"two") + b"more"
    assert walked(data) == [warc.NO_HEADER, b"one", warc.NO_HEADER, b"two", warc.NO_HEADER]


def test_a_file_that_ends_in_a_record_says_so() -> None:
    whole = record(b"one") + record(b"a body of some bytes", "cut")
    for left in (len(whole) - 10, len(whole) - 45, len(record(b"one")) + 40):
        assert walked(whole[:left]) == [b"one", warc.ENDS_INSIDE]
    assert broken(whole[:-10])[0].record_id == "<urn:uuid:cut>"


def test_a_header_without_end_is_given_up() -> None:
    endless = b"WARC/1.0\r\n" + b"X-Field: value\r\n" * 20_000
    assert walked(record(b"one") + endless + record(b"two"))[:2] == [b"one", warc.LONG_HEADER]
    assert walked(record(b"one") + endless + record(b"two"))[-1] == b"two"


def test_a_damaged_gzip_member_costs_its_own_records() -> None:
    two = bytearray(gzip.compress(record(bytes(range(256)) * 40, "two")))
    two[len(two) // 2] ^= 0xFF
    one, three = members(record(b"one")), members(record(b"three"))
    found = walked(one + bytes(two) + three)
    assert (found[0], found[-1]) == (b"one", b"three")
    assert len(found) == 3
    assert isinstance(found[1], str)


def test_a_member_that_differs_from_its_checksum_gives_no_record() -> None:
    two = bytearray(gzip.compress(record(b"two")))
    two[-8] ^= 0xFF
    one, three = members(record(b"one")), members(record(b"three"))
    assert walked(one + bytes(two) + three) == [b"one", BAD_CHECKSUM, b"three"]


def test_a_member_that_is_cut_off_does_not_take_the_record_before_with_it() -> None:
    one, two, three = (gzip.compress(record(body)) for body in (b"one", b"two" * 999, b"three"))
    assert walked(one + two[:30] + three) == [b"one", ENDS_EARLY, b"three"]
    assert walked(one + two[:30]) == [b"one", ENDS_EARLY]


def test_a_cut_zstd_file_gives_what_is_well_before_the_cut() -> None:
    frames = [pa.compress(record(random.Random(seed).randbytes(40_000)), "zstd", asbytes=True) for seed in (1, 2)]
    found = walked(b"".join([pa.compress(record(b"one"), "zstd", asbytes=True), *frames])[:-6])
    assert [len(item) for item in found if isinstance(item, bytes)] == [3, 40_000]
    assert found[-1] == ENDS_EARLY


def test_a_broken_record_shows_where_it_is_and_how_its_body_begins() -> None:
    (found,) = broken(record(b"one") + record("Größe".encode() * 99, "b", length=3) + record(b"three"))
    assert found.position == len(record(b"one"))
    assert found.sample.startswith("GrößeGröße")
    assert found.record_id == "<urn:uuid:b>"
