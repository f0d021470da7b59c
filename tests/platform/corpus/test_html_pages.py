"""From a server's answer to text: charsets, codings of the transfer, and pages made to break parsers."""

from __future__ import annotations

import gzip
import zlib

import pytest

from mixtura.platform.corpus import html_pages
from mixtura.platform.corpus.html_pages import NoTextError, page_text

from .warc_bytes import answer

pytest.importorskip("resiliparse", reason="needs the extra `corpus`")
MOST = 1 << 20
TEXT = "Größe und Äpfel"
PAGE = f"<html><body><p>{TEXT}</p></body></html>"


def reason(response: bytes, most: int = MOST) -> str:
    with pytest.raises(NoTextError) as raised:
        page_text(response, most)
    return raised.value.reason


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (PAGE.encode("latin-1"), "text/html; charset=ISO-8859-1"),
        (PAGE.encode(), 'text/html; charset="UTF-8"'),
        (PAGE.encode(), "text/html; charset=no-such-charset"),
        (PAGE.encode(), "text/html; charset=unicode_escape"),
        (PAGE.encode(), "text/html"),
        (b'<meta charset="iso-8859-1">' + PAGE.encode("latin-1"), "text/html"),
        (b'<meta http-equiv="x" content="text/html; charset=windows-1252">' + PAGE.encode("cp1252"), "text/html"),
        (PAGE.replace("</p>", "</p><p>" + "Straße, Grüße, Öl. " * 20 + "</p>").encode("cp1252"), "text/html"),
        (PAGE.encode("utf-8-sig"), "text/html; charset=iso-8859-1"),
        (b"\xff\xfe" + PAGE.encode("utf-16-le"), "text/html"),
    ],
    ids=[
        *("header", "quoted", "unknown name", "no charset of the web", "utf-8", "meta", "old meta", "detected"),
        *("bom before header", "utf-16"),
    ],
)
def test_a_charset_is_found_by_mark_header_page_and_bytes(body: bytes, content_type: str) -> None:
    assert page_text(answer(body, content_type), MOST).startswith(TEXT)


def test_a_header_that_names_a_charset_that_does_not_fit_gives_way_to_one_that_does() -> None:
    body = b'<meta charset="shift_jis"><p>' + "日本語のページ".encode("shift_jis")
    assert page_text(answer(body, "text/html; charset=utf-8"), MOST) == "日本語のページ"


def test_a_character_that_was_cut_at_the_end_spoils_no_page() -> None:
    body = ("<p>" + "日本語" * 400).encode()[:-1]
    assert page_text(answer(body, "text/html; charset=utf-8"), MOST).count("日本語") == 399


def chunked(body: bytes) -> bytes:
    return b"5\r\n" + body[:5] + b"\r\n%x; name=value\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n"


RAW_DEFLATE = zlib.compressobj(wbits=-15)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (chunked(PAGE.encode()), {"Transfer_Encoding": "chunked"}),
        (PAGE.encode(), {"Transfer_Encoding": "chunked"}),
        (gzip.compress(PAGE.encode()), {"Content_Encoding": "gzip"}),
        (PAGE.encode(), {"Content_Encoding": "gzip"}),
        (zlib.compress(PAGE.encode()), {"Content_Encoding": "deflate"}),
        (RAW_DEFLATE.compress(PAGE.encode()) + RAW_DEFLATE.flush(), {"Content_Encoding": "deflate"}),
        (PAGE.encode(), {"Content_Encoding": "br"}),
        (chunked(gzip.compress(PAGE.encode())), {"Content_Encoding": "gzip", "Transfer_Encoding": "chunked"}),
    ],
)
def test_codings_are_undone_unless_the_crawler_did_that(body: bytes, fields: dict[str, str]) -> None:
    assert page_text(answer(body, "text/html; charset=utf-8", **fields), MOST) == TEXT


def test_compression_that_cannot_be_read_and_a_bomb_are_named() -> None:
    assert reason(answer(b"\x0b\x02\x80", Content_Encoding="br")) == html_pages.BAD_COMPRESSION
    bomb = answer(gzip.compress(b"x" * 20 * MOST), Content_Encoding="gzip")
    assert reason(bomb) == "page that is larger than its record may be"


def test_pages_made_to_break_a_parser_are_given_up() -> None:
    assert reason(answer(b"<div>" * 4000 + b"text")) == html_pages.DEEP_HTML
    assert reason(answer(b"<p>text</p>" * MOST), 32 << 20) == html_pages.LARGE_HTML
    assert page_text(answer(b"<p>text" * 4000), MOST).count("text") == 4000


def test_plain_text_stays_as_it_is_and_a_page_without_text_is_named() -> None:
    assert page_text(answer(b"<b> 1\n  2", "text/plain; charset=utf-8"), MOST) == "<b> 1\n  2"
    assert reason(answer(b"<html><script>x()</script></html>")) == html_pages.EMPTY
