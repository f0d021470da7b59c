"""Files of a web server, as a crawl publishes them."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from mixtura.platform.corpus.documents import Document
from mixtura.platform.corpus.inputs import input_files
from mixtura.platform.corpus.readers import read_documents
from mixtura.platform.errors import DataError

from .warc_bytes import members, record

FILES = {
    "/wet.paths.gz": gzip.compress(b"segments/1/a.warc.wet.gz\nsegments/1/b.warc.wet.gz\n"),
    "/segments/1/a.warc.wet.gz": members(record(b"one"), record(b"two" * 3_000_000)),
    "/segments/1/b.warc.wet.gz": members(record(b"three")),
}


class Ranges(BaseHTTPRequestHandler):
    """Answers requests for ranges of bytes; the first one of each file fails."""

    failed: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        data = FILES.get(self.path)
        if data is None:
            self.send_error(404)
            return
        if self.path not in self.failed:
            self.failed.add(self.path)
            self.send_error(503)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = (int(asked[1]), int(asked[2] or len(data) - 1)) if asked else (0, len(data) - 1)
        part = data[begin : end + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_crawl_is_read_from_its_list_of_paths_over_faults_of_the_server(address: str) -> None:
    files = input_files([f"{address}/wet.paths.gz"], root=address)
    items = [item for file in files for item in read_documents(file.uri)]
    assert [item.text[:5] for item in items if isinstance(item, Document)] == ["one", "twotw", "three"]


def test_a_file_that_the_server_has_not_is_named(address: str) -> None:
    with pytest.raises(DataError, match=r"cannot read http://127.*/segments/2\.wet.*\n.*check the address"):
        next(read_documents(f"{address}/segments/2.wet"))
