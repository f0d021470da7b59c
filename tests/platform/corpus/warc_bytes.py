"""Makes WARC files for tests, honest ones and others."""

from __future__ import annotations

import gzip

CRLF = b"\r\n"


def record(
    body: bytes, name: str = "a", kind: str = "conversion", length: object = None, end: bytes = CRLF * 2
) -> bytes:
    """A record whose header says `length`, by default the truth."""
    header = [
        b"WARC/1.0",
        b"WARC-Type: " + kind.encode(),
        b"WARC-Target-URI: http://example.org/" + name.encode(),
        b"WARC-Date: 2024-05-18T01:58:10Z",
        b"WARC-Record-ID: <urn:uuid:" + name.encode() + b">",
        b"Content-Type: text/plain",
        b"Content-Length: " + str(len(body) if length is None else length).encode(),
    ]
    return CRLF.join(header) + CRLF * 2 + body + end


def answer(body: bytes, content_type: str = "text/html", status: str = "200 OK", **fields: str) -> bytes:
    """What a web server answers."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode() + CRLF * 2 + body


def members(*records: bytes) -> bytes:
    """One gzip member for each record."""
    return b"".join(gzip.compress(each, mtime=0) for each in records)
