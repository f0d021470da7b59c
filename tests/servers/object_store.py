"""A bucket, played by a server on this machine that the real clients talk to; it counts what it is asked.

with serve_s3({"bucket/data/train.tsv": b"..."}) as store:
    open_cache(place(store, "bucket/caches/rte"))
    store.requests      # ["HEAD /bucket/caches/rte/manifest.json", ...]
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import itertools
import re
import threading
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import xxhash

_START = datetime(2024, 5, 1, tzinfo=UTC)


@dataclass
class Store:
    """The files of a store, what it was asked, and faults that it answers with first."""

    files: dict[str, bytes]
    requests: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    faults: dict[str, list[int]] = field(default_factory=dict)
    """Status codes to answer with, one after another, to requests whose line holds the text."""
    cut: dict[str, list[int]] = field(default_factory=dict)
    """After so many bytes the connection is cut, likewise."""
    needs_token: str | None = None
    port: int = 0
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """Parts of uploads that are not complete yet."""
    changed: dict[str, datetime] = field(default_factory=dict)
    """When files were written, a second apart; those that were there at the start at one fixed time."""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def put(self, name: str, body: bytes) -> None:
        """Replace a file at once, as a bucket does."""
        self.changed[name] = _START + timedelta(seconds=next(self.numbers))
        self.files[name] = body

    def asked(self, text: str) -> list[str]:
        """The requests so far whose line holds the text."""
        return [line for line in list(self.requests) if text in line]


class Handler(http.server.BaseHTTPRequestHandler, ABC):
    """Notes each request, answers with the faults that are due, and leaves the rest to `handle_path`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: Store
    body = b""

    def log_message(self, *_: object) -> None:
        """Tests look at `requests`."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        self.body = self._read_body()
        line = f"{self.command} {urllib.parse.unquote(self.path)} {self.headers.get('Range', '')}".strip()
        self.store.requests.append(line)
        self.store.tokens.append(self.headers.get("Authorization"))
        for text, codes in self.store.faults.items():
            if text in line and codes:
                code = codes.pop(0)
                name = "AccessDenied" if code in (401, 403) else "SlowDown"
                body = f"<Error><Code>{name}</Code></Error>".encode()
                self._answer(code, body, {"Content-Type": "application/xml"})
                return
        parsed = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parsed.query, keep_blank_values=True))
        self.handle_path(urllib.parse.unquote(parsed.path), query)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = self._read_chunks()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            return _without_aws_chunks(body)
        return body

    def _read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    @abstractmethod
    def handle_path(self, path: str, query: Mapping[str, str]) -> None:
        """Answer a request that meets no fault."""

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for text, sizes in self.store.cut.items():
            if text in self.store.requests[-1] and sizes:
                self.wfile.write(body[: sizes.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
        self.wfile.write(body)

    def _answer_file(self, body: bytes, headers: Mapping[str, str]) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            self._answer(200, body, {"Accept-Ranges": "bytes", **headers})
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(body) - int(last)
        stop = min(int(last), len(body) - 1) + 1 if first and last else len(body)
        if start >= len(body):
            self._answer(416)
            return
        place = {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}", "Accept-Ranges": "bytes"}
        self._answer(206, body[start:stop], {**place, **headers})


def _without_aws_chunks(body: bytes) -> bytes:
    """The bytes inside `SIZE;chunk-signature=...` chunks, and the trailer with a checksum left out."""
    chunks, position = [], 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(chunks)
        chunks.append(body[end + 2 : end + 2 + size])
        position = end + 4 + size


class S3Handler(Handler):
    """ListObjectsV2; HEAD, GET, PUT and DELETE of objects; copies; uploads in parts; DeleteObjects."""

    def handle_path(self, path: str, query: Mapping[str, str]) -> None:
        name = path.strip("/") + ("/" if path.endswith("/") and path.count("/") > 2 else "")
        if "list-type" in query:
            self._list(name.strip("/"), query)
        elif self.command == "PUT":
            self._put(name, query)
        elif self.command == "POST":
            self._post(name, query)
        elif self.command == "DELETE":
            self._delete(name, query)
        elif "/" not in name.strip("/"):
            known = any(key.startswith(f"{name.strip('/')}/") for key in self.store.files)
            self._answer(200 if known else 404)
        elif name in self.store.files:
            body = self.store.files[name]
            stamp = format_datetime(self.store.changed.get(name, _START), usegmt=True)
            self._answer_file(body, {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "Last-Modified": stamp})
        else:
            self._error(404, "NoSuchKey")

    def _error(self, status: int, code: str) -> None:
        self._xml(f"<Error><Code>{code}</Code></Error>", status)

    def _xml(self, body: str, status: int = 200) -> None:
        self._answer(status, f'<?xml version="1.0"?>{body}'.encode(), {"Content-Type": "application/xml"})

    def _put(self, name: str, query: Mapping[str, str]) -> None:
        if "uploadId" in query:
            if query["uploadId"] not in self.store.parts:
                self._error(404, "NoSuchUpload")
                return
            self.store.parts[query["uploadId"]][int(query["partNumber"])] = self.body
        elif source := self.headers.get("x-amz-copy-source"):
            copied = self.store.files.get(urllib.parse.unquote(source).strip("/"))
            if copied is None:
                self._error(404, "NoSuchKey")
                return
            self.store.put(name, copied)
            self._xml("<CopyObjectResult><ETag>&quot;x&quot;</ETag></CopyObjectResult>")
            return
        else:
            self.store.put(name, self.body)
        self._answer(200, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def _post(self, name: str, query: Mapping[str, str]) -> None:
        if "uploads" in query:
            upload = xxhash.xxh3_64_hexdigest(f"{name} {next(self.store.numbers)}".encode())
            self.store.parts[upload] = {}
            bucket, _, key = name.partition("/")
            self._xml(
                f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key>"
                f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
        elif "uploadId" in query:
            parts = self.store.parts.pop(query["uploadId"])
            named = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", self.body)]
            self.store.put(name, b"".join(parts[number] for number in named))
            self._xml('<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>')
        elif "delete" in query:
            for key in re.findall(rb"<Key>([^<]*)</Key>", self.body):
                self.store.files.pop(f"{name.strip('/')}/{key.decode()}", None)
            self._xml("<DeleteResult></DeleteResult>")
        else:
            self._error(501, "NotImplemented")

    def _delete(self, name: str, query: Mapping[str, str]) -> None:
        if "uploadId" in query:
            self.store.parts.pop(query["uploadId"], None)
        else:
            self.store.files.pop(name, None)
        self._answer(204)

    def _list(self, bucket: str, query: Mapping[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        limit = int(query.get("max-keys", 1000))
        keys = [name.removeprefix(f"{bucket}/") for name in sorted(self.store.files) if name.startswith(f"{bucket}/")]
        keys = [key for key in keys if key.startswith(prefix) and key > query.get("continuation-token", "")]
        folders = sorted({key[: key.index("/", len(prefix)) + 1] for key in keys if "/" in key[len(prefix) :]})
        folders = folders if delimiter else []
        keys = [key for key in keys if not delimiter or "/" not in key[len(prefix) :]]
        more, keys = len(keys) > limit, keys[:limit]
        contents = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{self._stamp(f'{bucket}/{key}')}</LastModified><ETag>x</ETag>"
            f"<Size>{len(self.store.files[f'{bucket}/{key}'])}</Size></Contents>"
            for key in keys
        )
        common = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
        following = f"<NextContinuationToken>{keys[-1]}</NextContinuationToken>" if more else ""
        self._xml(
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{prefix}</Prefix>"
            f"<KeyCount>{len(keys) + len(folders)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{following}{contents}{common}</ListBucketResult>"
        )

    def _stamp(self, name: str) -> str:
        return self.store.changed.get(name, _START).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@contextlib.contextmanager
def serve(handler: type[Handler], files: dict[str, bytes]) -> Iterator[Store]:
    """Answer on a free port of this machine while the block runs."""
    store = Store(files)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (handler,), {"store": store}))
    server.daemon_threads = True
    store.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serve_s3(files: dict[str, bytes]) -> contextlib.AbstractContextManager[Store]:
    """A bucket's server; names begin with the bucket's."""
    return serve(S3Handler, files)


def options(store: Store) -> str:
    """What the end of a URI must say to lead to this server."""
    return f"?endpoint_override=127.0.0.1:{store.port}&scheme=http"


def place(store: Store, path: str) -> str:
    """A URI into the bucket that carries its own key, so that it works in this process whatever the environment says.

    >>> place(Store({}, port=9000), "bucket/caches")
    's3://key:secret@bucket/caches?endpoint_override=127.0.0.1:9000&scheme=http'
    """
    return f"s3://key:secret@{path}{options(store)}"
