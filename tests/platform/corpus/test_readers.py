"""Files of every known kind as documents, and hostile ones in bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixtura.platform.corpus import readers
from mixtura.platform.corpus.documents import Damaged, Document, Origin
from mixtura.platform.corpus.readers import read_documents
from mixtura.platform.corpus.warc import too_large
from mixtura.platform.errors import DataError

from .warc_bytes import answer, members, record

WEB = Path(__file__).resolve().parents[4] / "shared/data/web"
needs_web = pytest.mark.skipif(not WEB.exists(), reason="needs the public web data beside the checkout")


def told(path: Path, **options: int) -> list[str]:
    """Texts of the documents, and reasons of what gives none."""
    items = read_documents(str(path), **options)
    return [item.text if isinstance(item, Document) else item.reason for item in items]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_wet_record_is_a_document_with_all_that_its_header_says(tmp_path: Path) -> None:
    body = "Größe".encode()
    data = record(body).replace(b"Content-Type", b"WARC-Identified-Content-Language: deu,eng\r\nContent-Type")
    path = written(tmp_path / "a.warc.wet.gz", members(record(b"", kind="warcinfo"), data))
    notes, document = read_documents(str(path))
    assert isinstance(notes, Damaged)
    assert (notes.reason, notes.is_intact) == ("record of type warcinfo", True)
    where = Origin(str(path), len(record(b"", kind="warcinfo")), "byte", "<urn:uuid:a>")
    assert document == Document("Größe", where, "http://example.org/a", "2024-05-18T01:58:10Z", "deu,eng")


def test_wet_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wet", record("Größe".encode("latin-1")) + record(b"\n \n") + record(b"fine"))
    assert told(path) == [readers.NOT_UTF8, readers.EMPTY, "fine"]


def test_a_file_is_known_by_its_first_bytes_where_its_name_says_nothing(tmp_path: Path) -> None:
    line = json.dumps({"text": "a line"}).encode()
    pq.write_table(pa.table({"text": ["a row"]}), tmp_path / "table")
    assert told(written(tmp_path / "part-0", record(b"hello"))) == ["hello"]
    assert told(written(tmp_path / "part-1", gzip.compress(line))) == ["a line"]
    assert told(written(tmp_path / "part-2.jsonl", pa.compress(line, "zstd", asbytes=True))) == ["a line"]
    assert told(tmp_path / "table") == ["a row"]


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.bin", b"\0\1\2\3", "binary data"),
        ("a.wet.gz", b"", "an empty file"),
        ("a.html", b"<!DOCTYPE html><p>Hello", "an HTML page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("a.json", b'[\n{"text": "one"}\n]', "a JSON array"),
        ("a.zip", b"PK\x03\x04....", "a zip archive"),
    ],
)
def test_a_file_of_an_unknown_kind_is_refused_with_what_is_known(
    name: str, data: bytes, found: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"{found}.*; expected WET, WARC, JSON lines, Parquet"):
        told(written(tmp_path / name, data))


def test_json_lines_are_read_by_the_names_that_published_corpora_use(tmp_path: Path) -> None:
    rows = [
        {"text": "c4", "timestamp": "2019-04-21 10:07:13", "url": "http://a.org"},
        {"text": "dolma", "id": "7", "metadata": {"warc_url": "http://b.org", "warc_date": "2019-07-17T12:15:59.000Z"}},
        {"text": "fineweb", "url": "http://c.org", "date": "2024", "language": "en", "language_score": 0.97},
    ]
    path = written(tmp_path / "a.jsonl", "\r\n".join(map(json.dumps, rows)).encode())
    c4, dolma, fineweb = (item for item in read_documents(str(path)) if isinstance(item, Document))
    assert (c4.url, c4.timestamp, c4.language) == ("http://a.org", "2019-04-21T10:07:13Z", None)
    assert (dolma.url, dolma.timestamp) == ("http://b.org", "2019-07-17T12:15:59Z")
    assert dolma.origin == Origin(str(path), 2, "line", "7")
    assert (fineweb.timestamp, fineweb.language, fineweb.language_probability) == ("", "en", 0.97)


def test_each_line_of_json_that_gives_no_document_is_named(tmp_path: Path) -> None:
    lines = [
        *(b'\xef\xbb\xbf{"text": "one"}', b"", b"{", b"[1]", b'{"body": "x"}', b'{"text": 5}', b'{"text": " "}'),
        *(b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"[" * 100_000, b'{"text": "' + b"x" * 200_000 + b'"}'),
        b'{"text": "last"}',
    ]
    expected = [
        *("one", "empty line", "not JSON", "JSON that is no object", readers.NO_TEXT, readers.NO_TEXT, readers.EMPTY),
        *(readers.NOT_UTF8, "text with half of a surrogate pair", "not JSON", too_large(150_000), "last"),
    ]
    assert told(written(tmp_path / "a.jsonl", b"\n".join(lines)), largest=150_000) == expected


def test_json_lines_go_on_behind_a_damaged_gzip_member(tmp_path: Path) -> None:
    line = b'{"text": "%s"}\n'
    one, two, three = (gzip.compress(line % body) for body in (b"one", b"two" * 500, b"three"))
    found = told(written(tmp_path / "a.jsonl.gz", one + two[:20] + three))
    assert (found[0], len(found), found[-1]) == ("one", 3, "three")


def test_damage_at_the_begin_of_a_file_costs_what_is_there(tmp_path: Path) -> None:
    assert told(written(tmp_path / "a.wet.gz", b"\x1f\x8b\x08" + bytes(30) + members(record(b"one")))) == [
        "corrupt gzip data",
        "one",
    ]
    cut = pa.compress(b'{"text": "one"}', "zstd", asbytes=True)[:-4]
    assert told(written(tmp_path / "a.jsonl.zst", cut)) == ["the compressed file ends early"]
    with pytest.raises(DataError, match="expected WET, WARC"):
        told(written(tmp_path / "a.gz", gzip.compress(b"")))


def test_a_plain_text_file_is_one_document(tmp_path: Path) -> None:
    assert told(written(tmp_path / "a.txt", "Größe\r\nzwei".encode("utf-8-sig"))) == ["Größe\nzwei"]
    assert told(written(tmp_path / "b.txt", "Größe".encode("utf-16"))) == ["Größe"]
    assert told(written(tmp_path / "c.txt", "Größe".encode("latin-1"))) == [readers.NOT_UTF8]
    assert told(written(tmp_path / "d.txt.gz", gzip.compress(b"x" * 999))) == ["x" * 999]
    assert told(written(tmp_path / "e.txt", b"x" * 999), largest=998) == [too_large(998)]


def test_rows_of_parquet_are_documents(tmp_path: Path) -> None:
    table = pa.table(
        {
            "content": ["one", None, "x" * 200],
            "warc_target_uri": ["http://a.org"] * 3,
            "warc_date": [datetime(2024, 5, 18, 1, 58, 10)] * 3,
            "unused": [1, 2, 3],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    first, second, third = read_documents(str(tmp_path / "a.parquet"), largest=100)
    where = Origin(str(tmp_path / "a.parquet"), 0, "row")
    assert first == Document("one", where, "http://a.org", "2024-05-18T01:58:10Z")
    assert isinstance(second, Damaged)
    assert isinstance(third, Damaged)
    assert (second.reason, third.reason, third.where.position) == (readers.NO_TEXT, too_large(100), 2)


def test_a_table_without_a_column_of_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["one"], "url": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of text; expected one of text, .*found body, url"):
        told(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-3])
    with pytest.raises(DataError, match=r"b\.parquet is a Parquet file that cannot be read"):
        told(tmp_path / "b.parquet")


def test_responses_of_a_warc_give_the_text_of_their_pages(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse", reason="needs the extra `corpus`")
    page = b"<html><head><title>T</title></head><body><p>Hello <b>world</b>.</p><script>x()</script></body></html>"
    data = [
        record(b"GET / HTTP/1.1\r\n\r\n", kind="request"),
        record(answer(page), kind="response"),
        record(answer(b"not here", status="404 Not Found"), kind="response"),
        record(answer(b"\x89PNG", "image/png"), kind="response"),
        record(b"20080430204825\nwww.archive.org. 589 IN A 207.241.229.39", kind="response"),
    ]
    items = list(read_documents(str(written(tmp_path / "a.warc.gz", members(*data)))))
    assert [item.text if isinstance(item, Document) else item.reason for item in items] == [
        "record of type request",
        "Hello world.",
        "answered with another status than 200",
        "neither HTML nor plain text",
        "response without an HTTP header",
    ]
    assert all(item.is_intact for item in items if isinstance(item, Damaged))


REAL = {
    "wet/filter_test_1.wet.gz": {"document": 25, "record of type warcinfo": 1},
    "wet/fragment3.wet.gz": {"document": 5, "record of type warcinfo": 1},
    "wet/whirlwind.warc.wet.gz": {"document": 1, "record of type warcinfo": 1},
    "wet_from_html/trafilatura-cache.warc.wet.gz": {"document": 110, "record of type warcinfo": 1},
    "wet_from_html/trafilatura-eval.warc.wet.gz": {"document": 921, "record of type warcinfo": 1},
    "c4/c4-train.sample-1000.json.gz": {"document": 1000},
    "openwebtext/openwebtext-1000.jsonl.gz": {"document": 1000},
    "common_crawl_docs/CC-MAIN-20190717121559-20190717143559-00140.jsonl.gz": {"document": 670, "empty text": 27},
}


@needs_web
@pytest.mark.parametrize("name", REAL)
def test_real_files_give_as_many_documents_as_they_hold(name: str) -> None:
    items = read_documents(str(WEB / name))
    assert Counter("document" if isinstance(item, Document) else item.reason for item in items) == REAL[name]


@needs_web
def test_a_real_crawl_gives_pages_and_accounts_for_every_record() -> None:
    pytest.importorskip("resiliparse", reason="needs the extra `corpus`")
    items = list(read_documents(str(WEB / "warc/example.warc.gz")))
    reasons = Counter("document" if isinstance(item, Document) else item.reason for item in items)
    notes = {"record of type warcinfo": 1, "record of type request": 261, "record of type metadata": 261}
    assert {reason: reasons[reason] for reason in notes} == notes
    assert sum(reasons.values()) - sum(notes.values()) == 299
    assert reasons["document"] >= 127
    assert all(item.is_intact for item in items if isinstance(item, Damaged))


READ_HOSTILE = """
import re, sys
from collections import Counter
from mixtura.platform.corpus.readers import read_documents
from mixtura.platform.corpus.documents import Document
found = Counter("document" if isinstance(item, Document) else item.reason for item in read_documents(sys.argv[1]))
# Of this program alone: what `resource` says begins with the memory of the process that started it.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(sorted(found.items()), int(peak[1]) >> 10)
"""
MOST_MIB = 512


def repeated(first: bytes, filler: bytes, megabytes: int, last: bytes) -> bytes:
    """A gzip file of very few bytes with a content of very many."""
    piece = gzip.compress(filler * ((1 << 20) // len(filler)), mtime=0)
    return gzip.compress(first) + piece * megabytes + gzip.compress(last)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        (
            "bomb.wet.gz",
            repeated(record(b"one") + record(b"", length=1 << 30, end=b""), b"x", 1024, b"\r\n\r\n" + record(b"two")),
            [("document", 2), ("record of more than 32 MiB", 1)],
        ),
        (
            "one_emoji.wet.gz",
            repeated(record("😀".encode(), length=(31 << 20) + 4, end=b""), b"x", 31, b"\r\n\r\n" + record(b"two")),
            [("document", 2)],
        ),
        (
            "endless_line.jsonl.gz",
            repeated(b'{"text": "one"}\n{"text": "', b"x", 1024, b'"}\n{"text": "two"}\n'),
            [("document", 2), ("record of more than 32 MiB", 1)],
        ),
        (
            "heavy_page.warc.gz",
            gzip.compress(
                record(answer(b"<p>a" * 299_000 + "😀".encode() * (1 << 20) + b"a" * (2 << 20)), kind="response")
                + record(answer(b"<p>" * (10 << 20)), kind="response")
            ),
            [("HTML page of more than 8 MiB", 1), ("document", 1)],
        ),
        ("endless.txt.gz", repeated(b"one", b"x", 1024, b"two"), [("record of more than 32 MiB", 1)]),
        (
            "garbage.wet.gz",
            repeated(record(b"one"), b"\0\r\nWARC/1.0\r\n\r\n", 16, record(b"two")),
            [("bytes that belong to no record", 1), ("document", 2)],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_files_are_read_in_bounded_memory(
    name: str, data: bytes, expected: list[tuple[str, int]], tmp_path: Path
) -> None:
    if ".warc" in name:
        pytest.importorskip("resiliparse", reason="needs the extra `corpus`")
    path = written(tmp_path / name, data)
    assert len(data) < 8 << 20
    result = subprocess.run([sys.executable, "-c", READ_HOSTILE, str(path)], capture_output=True, text=True, check=True)
    found, _, memory = result.stdout.strip().rpartition(" ")
    assert found == str(expected)
    assert int(memory) < MOST_MIB


def test_halves_of_characters_in_names_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pages.jsonl"
    path.write_text('{"text": "It was dark.", "url": "http://x.org/\\ud800", "id": "\\udfff"}\n')
    (document,) = read_documents(str(path))
    assert isinstance(document, Document)
    assert (document.url, document.origin.record_id) == ("http://x.org/?", "?")
