"""From the answer of a web server to the text of its page.

Text is extracted by resiliparse: it is maintained by those who run a large web index, is licensed under Apache 2.0,
needs about a millisecond a page, and finds the charset too. It takes time with the square of how deep elements are
nested, and more than half a kilobyte of memory for each, so pages that no author would write are given up before.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from mixtura.platform.corpus.warc import header_fields
from mixtura.platform.errors import ConfigError

_HTML_BYTES = 8 << 20
_TAGS = 300_000
_DEPTH = 3000
_META_BYTES = 4096
_CHARACTERS_PER_FAULT = 500
_HEAD = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})[^\n]*\n((?:[^\r\n][^\n]*\n)*)\r?\n?")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_META_CHARSET = re.compile(rb"<(?:meta\s[^>]*charset|\?xml\s[^>]*encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
# Elements that hold nothing, or that the next one closes.
_FLAT = {
    *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"),
    *("p", "li", "dt", "dd", "tr", "td", "th", "option", "optgroup", "thead", "tbody", "tfoot", "colgroup"),
}
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_HTML_TYPES = ("text/html", "application/xhtml+xml")

NO_HTTP = "response without an HTTP header"
NOT_FOUND = "answered with another status than 200"
NO_TEXT_TYPE = "neither HTML nor plain text"
EMPTY = "page without text"
LARGE_HTML = f"HTML page of more than {_HTML_BYTES >> 20} MiB"
FULL_HTML = f"HTML of more than {_TAGS:,} tags"
DEEP_HTML = f"HTML nested more than {_DEPTH:,} deep"
UNKNOWN_CHARSET = "text in no charset that fits it"
BAD_COMPRESSION = "page compressed in a way that cannot be read"


class NoTextError(Exception):
    """An answer that gives no text; `is_intact` if nothing is wrong with it."""

    def __init__(self, reason: str, *, is_intact: bool = False) -> None:
        self.reason, self.is_intact = reason, is_intact
        super().__init__(reason)


def check_extractor() -> None:
    """Refuse to begin where HTML could not be read."""
    _resiliparse()


def _resiliparse() -> tuple[Callable[..., str], Any]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse import encoding
    except ImportError:
        raise ConfigError(
            "reading the HTML of WARC files needs resiliparse: pip install 'mixtura[corpus]', or read the WET files "
            "of the same crawl"
        ) from None
    return extract_plain_text, encoding


def page_text(answer: bytes, most: int) -> str:
    r"""The text of the page that a server answered with.

    >>> page_text(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nHello", most=1000)
    'Hello'
    """
    head = _HEAD.match(answer)
    if not head:
        raise NoTextError(NO_HTTP, is_intact=not answer.startswith(b"HTTP/"))
    if head[1] != b"200":
        raise NoTextError(NOT_FOUND, is_intact=True)
    fields = header_fields(head[2])
    content_type = fields.get("content-type", "").partition(";")[0].strip().lower()
    body = _payload(answer[head.end() :], fields, most)
    is_html = content_type in _HTML_TYPES or (not content_type and _looks_like_html(body))
    if not is_html and content_type != "text/plain":
        raise NoTextError(NO_TEXT_TYPE, is_intact=True)
    if is_html and len(body) > _HTML_BYTES:
        raise NoTextError(LARGE_HTML)
    text = _decoded(body, fields.get("content-type", ""), is_html=is_html)
    if is_html:
        text = html_text(text)
    if not text or text.isspace():
        raise NoTextError(EMPTY, is_intact=True)
    return text


def html_text(html: str) -> str:
    """The main text of a page, a paragraph or item a line."""
    tags = html.count("<")
    if tags > _TAGS:
        raise NoTextError(FULL_HTML)
    if tags > _DEPTH and _depth(html) > _DEPTH:
        raise NoTextError(DEEP_HTML)
    extract, _ = _resiliparse()
    try:
        return extract(html, preserve_formatting=True, main_content=True, list_bullets=False, alt_texts=False)
    except (ValueError, RuntimeError) as error:
        raise NoTextError("HTML that cannot be parsed") from error


def _depth(html: str) -> int:
    """About how deep elements are nested.

    >>> _depth("<div><p>a<p>b<br><div><b>c</b></div></div>")
    3
    """
    depth = deepest = 0
    for closes, name in _TAG.findall(html):
        if name.lower() not in _FLAT:
            depth = max(depth - 1, 0) if closes else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _looks_like_html(body: bytes) -> bool:
    return body[:_META_BYTES].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _payload(body: bytes, fields: dict[str, str], most: int) -> bytes:
    """What was sent, without what the way there put around it. Crawlers often undid that and left the header."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _joined_chunks(body)
    for coding in reversed(fields.get("content-encoding", "").lower().split(",")):
        if (coding := coding.strip()) in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
            body = _inflated(body, zlib.MAX_WBITS | 16, most)
        elif coding == "deflate":
            body = _deflated(body, most)
        elif coding not in ("", "identity", "gzip", "x-gzip") and not _looks_like_html(body):
            raise NoTextError(BAD_COMPRESSION, is_intact=True)
    return body


def _joined_chunks(body: bytes) -> bytes:
    r"""The chunks of a chunked body; the body itself if it is not chunked.

    >>> _joined_chunks(b"3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n"), _joined_chunks(b"<html>")
    (b'abcde', b'<html>')
    """
    return b"".join(_chunks(body)) if _CHUNK.match(body) else body


def _chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while (head := _CHUNK.match(body, at)) and (size := int(head[1], 16)):
        yield body[head.end() : head.end() + size]
        at = head.end() + size
        at += 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] == b"\n" else 0


def _deflated(body: bytes, most: int) -> bytes:
    """Servers send deflate with zlib's header or without; what is neither was undone by the crawler."""
    for window in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return _inflated(body, window, most)
        except NoTextError as error:
            if error.reason != BAD_COMPRESSION:
                raise
    return body


def _inflated(body: bytes, window: int, most: int) -> bytes:
    """As much as can be decompressed of a page that may have been cut off."""
    inflate = zlib.decompressobj(window)
    try:
        data = inflate.decompress(body, most + 1)
    except zlib.error as error:
        raise NoTextError(BAD_COMPRESSION) from error
    if len(data) > most:
        raise NoTextError("page that is larger than its record may be")
    return data


def _decoded(body: bytes, content_type: str, *, is_html: bool) -> str:
    """Text by its byte order mark, or the first charset that fits of: what the header says, what the page says, UTF-8,
    and what its bytes look like."""
    for mark, charset in _BOMS.items():
        if body.startswith(mark):
            return body[len(mark) :].decode(charset, errors="replace")
    said = [found[1] for found in [_CHARSET.search(content_type)] if found]
    if is_html and (found := _META_CHARSET.search(body[:_META_BYTES])):
        said.append(found[1].decode("ascii", "ignore"))
    for charset in [*said, "utf-8"]:
        if (text := _fitting(body, charset)) is not None:
            return text
    _, encoding = _resiliparse()
    detected = encoding.detect_encoding(body, from_html_meta=False) or "utf-8"
    if (text := _fitting(body, detected)) is not None:
        return text
    for charset in [*said, detected]:  # few wrong bytes, such as a character that was cut at the end, spoil no page
        text = _fitting(body, charset, errors="replace")
        if text is not None and text.count("\N{REPLACEMENT CHARACTER}") * _CHARACTERS_PER_FAULT <= len(text):
            return text
    raise NoTextError(UNKNOWN_CHARSET)


def _fitting(body: bytes, charset: str, errors: str = "strict") -> str | None:
    """The text if all bytes fit the charset. Browsers' names count, in which Latin-1 means Windows-1252."""
    name = _BROWSER_CHARSETS.get(charset.lower(), charset.lower())
    try:
        if name in _NO_CHARSETS or not codecs.lookup(name)._is_text_encoding:
            return None
        return body.decode(name, errors)
    except (LookupError, ValueError):
        return None


_BROWSER_CHARSETS = {
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii"), "cp1252"),
    **dict.fromkeys(("gb2312", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis"), "cp932"),
    **dict.fromkeys(("ks_c_5601-1987", "euc-kr", "korean"), "cp949"),
    "iso-8859-9": "cp1254",
    "tis-620": "cp874",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac_cyrillic",
}
# Python's own ways of writing text down, which no page is sent in.
_NO_CHARSETS = {
    *("unicode_escape", "raw_unicode_escape", "unicode-escape", "raw-unicode-escape", "idna", "punycode", "utf-7"),
    *("utf7", "undefined", "mbcs", "oem", "palmos"),
}
