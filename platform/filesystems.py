"""Places of files: local folders, buckets (`s3://`, `gs://`) and the hub (`hf://`), all as pyarrow file systems.

A place is a URI, or an absolute path. A bucket's URI may end in the options that pyarrow takes, such as
`?endpoint_override=127.0.0.1:9000&scheme=http`; the hub is read with the user's own login (`HF_TOKEN`) at
`HF_ENDPOINT`. Single files of web servers (`https://`) are read too. Reading and writing over a network try again where
that may help, and then say what to do. What is written to a bucket is there whole or not at all.
"""

from __future__ import annotations

import fnmatch
import functools
import http.client
import io
import posixpath
import re
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import xxhash

from mixtura.platform.containers import open_zip
from mixtura.platform.errors import ConfigError, DataError

T = TypeVar("T")

_RETRY_DELAYS_S = (0.5, 2.0)
_LOCAL_BUFFER_BYTES = 1 << 20
_NETWORK_BUFFER_BYTES = 4 << 20
_WHOLE_DIGEST_BYTES = 256 << 20
_SAMPLE_BYTES = 1 << 20
_LISTING_AGE_S = 60.0
_RANGE_BYTES = 32 << 20
_WEB_TIMEOUT_S = 60

_TRANSIENT_WORDS = (
    *("timeout", "timed out", "reset", "broken pipe", "connection aborted", "ends early", "temporarily", "unavailable"),
    *("slow_down", "slowdown", "too many requests", "internal_failure", "internalerror"),
)


@dataclass(frozen=True)
class Found:
    """A file, or a member of a zip archive, as a listing shows it."""

    uri: str
    size: int
    version: str
    """Differs when the content does: the time of the last change, or the hub's own digest."""
    member: str = ""

    @property
    def path(self) -> str:
        """Path in its file system; a member's goes on behind the archive's."""
        path = split_uri(self.uri)[1]
        return f"{path}/{self.member}" if self.member else path


@dataclass(frozen=True)
class _Entry:
    name: str
    is_folder: bool
    size: int
    version: str


def is_uri(text: str) -> bool:
    """Whether a text is a URI rather than a path."""
    return "://" in text


def split_uri(uri: str) -> tuple[str, str]:
    """The part that says which file system, and the path in it (empty first part: a local path).

    >>> split_uri("s3://bucket/glue/CoLA/train.tsv?region=eu-west-1")
    ('s3://bucket?region=eu-west-1', 'glue/CoLA/train.tsv')
    >>> split_uri("hf://datasets/nyu-mll/glue/cola"), split_uri("file:///data/glue")
    (('hf://', 'datasets/nyu-mll/glue/cola'), ('', '/data/glue'))
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "", uri
    if scheme == "file":
        return "", urllib.parse.unquote(rest.removeprefix("localhost"))
    if scheme == "hf":
        return "hf://", rest.strip("/")
    # A `?` begins the options only where they follow: elsewhere it stands for one character of a name.
    options = found[1] if (found := re.search(r"\?(\w+=[^/?]*)$", rest)) else ""
    bucket, _, path = rest.removesuffix(f"?{options}").partition("/")
    return f"{scheme}://{bucket}" + (f"?{options}" if options else ""), path.strip("/")


def with_path(uri: str, path: str) -> str:
    """The place with this path in the file system of `uri`."""
    base, _ = split_uri(uri)
    head, mark, options = base.partition("?")
    return f"{head}/{path}{mark}{options}" if head and head != "hf://" else f"{head}{path}"


def joined(place: str | Path, *names: str) -> str:
    """The place of a file or folder below another one.

    >>> joined("s3://bucket/caches?scheme=http", "rte", "manifest.json"), joined(Path("caches"), "rte")
    ('s3://bucket/caches/rte/manifest.json?scheme=http', 'caches/rte')
    """
    path = posixpath.join(split_uri(str(place))[1], *names)
    return with_path(str(place), path) if is_uri(str(place)) else path


def absolute(place: str, root: str | None = None) -> str:
    """A path as the user writes it, below `root` if there is one, as a place that is the same for every process.

    >>> absolute("CoLA/train.tsv", "s3://bucket/glue?scheme=http"), absolute("/data/x.csv", "s3://bucket/glue")
    ('s3://bucket/glue/CoLA/train.tsv?scheme=http', '/data/x.csv')
    """
    if is_uri(place):
        return split_uri(place)[1] if place.startswith("file://") else place
    place = str(Path(place).expanduser()) if place.startswith("~") else place
    if root is not None and not place.startswith("/"):
        root = absolute(root)
        return with_path(root, posixpath.normpath(posixpath.join(split_uri(root)[1], place)))
    return posixpath.normpath(posixpath.join(Path.cwd().as_posix(), place))


def last_name(place: str) -> str:
    """The last part of a place's path.

    >>> last_name("s3://bucket/caches/rte-3f0c?scheme=http"), last_name("/data/caches/rte-3f0c/")
    ('rte-3f0c', 'rte-3f0c')
    """
    return posixpath.basename(split_uri(place)[1].rstrip("/"))


def shown(uri: str) -> str:
    """A place for people: without its options, and without a key that stands in it."""
    base, path = split_uri(uri)
    if not base:
        return uri
    scheme, _, bucket = base.partition("?")[0].partition("://")
    return f"{scheme}://{posixpath.join(bucket.rpartition('@')[2], path).rstrip('/')}"


@functools.lru_cache(maxsize=64)
def _file_system(base: str) -> tuple[Any, str]:
    """The file system, and its path of the bucket."""
    from pyarrow import fs

    if not base:
        return fs.LocalFileSystem(), ""
    if base == "hf://":
        return _hub(), ""
    if base.startswith("s3://"):  # one request for a small file that is written, in place of three
        base = base + ("&" if "?" in base else "?") + "allow_delayed_open=true"
    try:
        system, bucket = fs.FileSystem.from_uri(base)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"{shown(base)} is no place to read from ({error}); known are paths, file://, s3://, gs://, hf:// and, for "
            "single files that are read, https://"
        ) from error
    return system, bucket.strip("/")


def _hub() -> Any:
    """The hub's file system; its login and endpoint are the ones that its own tools use."""
    from pyarrow import fs

    try:
        import huggingface_hub
    except ImportError:
        raise DataError(
            "reading hf:// needs huggingface_hub: pip install huggingface_hub, or put the files into a folder or a "
            "bucket and name it in data.root"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(huggingface_hub.HfFileSystem()))


def _located(uri: str) -> tuple[Any, str]:
    base, path = split_uri(uri)
    system, bucket = _file_system(base)
    return system, f"{bucket}/{path}".strip("/") if base else path


def failures() -> tuple[type[Exception], ...]:
    """What file systems and the hub raise: the hub's client lets its HTTP library's errors out, which has two names."""
    libraries = [sys.modules[name] for name in ("httpx2", "httpx") if name in sys.modules]
    return (OSError, ValueError, NotImplementedError, *(library.HTTPError for library in libraries))


def _attempt(uri: str, action: Callable[[], T], doing: str = "read") -> T:
    """What `action` gives, tried again after faults of the network that may pass."""
    for delay_s in _RETRY_DELAYS_S:
        try:
            return action()
        except failures() as error:
            if not is_uri(uri) or not _is_transient(error):
                raise _refused(uri, error, doing) from error
            time.sleep(delay_s)
    try:
        return action()
    except failures() as error:
        raise _refused(uri, error, doing) from error


def _status(error: BaseException | None) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return error.code if isinstance(error, urllib.error.HTTPError) else status


def _is_transient(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if (status := _status(error)) is not None:
        return status == 429 or status >= 500
    if isinstance(error, TimeoutError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return True
    text = f"{type(error).__name__} {error}".lower()
    return any(word in text for word in _TRANSIENT_WORDS)


def may_pass(error: BaseException) -> bool:
    """Whether an error of this module came from a fault of the network, so that trying again later may help."""
    return isinstance(error.__cause__, failures()) and _is_transient(error.__cause__)


def _refused(uri: str, error: Exception, doing: str) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"cannot {doing} {shown(uri)}: {reason[:400]}\n{_remedy(uri, error, doing)}")


def is_web(uri: str) -> bool:
    """Whether a place is a file of a web server, which can be read but not listed."""
    return uri.startswith(("https://", "http://"))


def _remedy(uri: str, error: Exception, doing: str) -> str:
    if not is_uri(uri):
        return "check that the file is there and that you may read it"
    if uri.startswith("hf://"):
        return f"{_hub_remedy(error)}; or put the files into a folder or a bucket and name it in data.root"
    if is_web(uri):
        return "check the address and the network; the server must answer requests for ranges of bytes"
    if isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error):
        return f"check the credentials, and that they may list and {doing} the bucket"
    if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in str(error):
        return "check the name of the bucket"
    return "check the network, and the bucket's region or endpoint (such as ?endpoint_override=host:port&scheme=http)"


def _hub_remedy(error: Exception) -> str:
    if _status(error) in (401, 403) or _status(error.__cause__) in (401, 403):
        return (
            "check its name; if it is gated or private, ask for access and set HF_TOKEN, or log in with `hf auth login`"
        )
    if isinstance(error, FileNotFoundError):
        return "check the name of the data set"
    return "check the network (and HF_ENDPOINT, if you use a mirror)"


class _Listings:
    """What folders hold. A network's folders are remembered for a while: tasks look for many files in the same ones."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, tuple[_Entry, ...]]] = {}
        self._lock = threading.Lock()

    def of(self, folder: str) -> tuple[_Entry, ...]:
        """The entries of a folder, by name; none if it is not there."""
        if not is_uri(folder):
            return _attempt(folder, functools.partial(_entries, folder))
        with self._lock:
            seen_at, entries = self._known.get(folder, (-_LISTING_AGE_S, ()))
            if time.monotonic() - seen_at > _LISTING_AGE_S:
                entries = _attempt(folder, functools.partial(_entries, folder))
                self._known[folder] = (time.monotonic(), entries)
            return entries


_listings = _Listings()


def _entries(folder: str) -> tuple[_Entry, ...]:
    from pyarrow import fs

    system, path = _located(folder)
    if isinstance(system, fs.PyFileSystem):
        return _hub_entries(system.handler.fs, path)
    if not is_uri(folder) and not Path(path).is_dir():
        return ()
    entries = (
        _Entry(info.base_name, info.type == fs.FileType.Directory, info.size or 0, str(info.mtime_ns or 0))
        for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if info.type in (fs.FileType.File, fs.FileType.Directory)
    )
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _hub_entries(hub: Any, path: str) -> tuple[_Entry, ...]:
    """A listing with the digests that the hub gives, since its files have no times."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        infos = hub.ls(path, detail=True)
    except FileNotFoundError as error:
        if isinstance(error.__cause__, HfHubHTTPError):  # the whole data set is not there, or not for this user
            raise
        return ()
    entries = (
        _Entry(posixpath.basename(info["name"]), info["type"] == "directory", info["size"] or 0, _hub_version(info))
        for info in infos
    )
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _hub_version(info: Mapping[str, Any]) -> str:
    return str(info.get("blob_id") or info.get("xet_hash") or info.get("mtime") or "")


def folder_names(folder: str) -> list[str] | None:
    """The names in a folder, folders with a slash behind; None if there is no such folder."""
    entries = _listings.of(folder)
    if not entries and not is_uri(folder) and not Path(folder).is_dir():
        return None
    return [entry.name + "/" * entry.is_folder for entry in entries]


def _is_pattern(text: str) -> bool:
    return any(mark in text for mark in "*?[")


def _matches(name: str, pattern: str) -> bool:
    if name == pattern:
        return True
    return fnmatch.fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))


def glob(pattern: str) -> list[Found]:
    """The files that a place with `*`, `?` and `[...]` names, each inside one part of the path, sorted by name.

    Only folders that the pattern names are listed. Behind an archive's name (`data.zip/train.tsv`) go names of its
    members.
    """
    base, path = split_uri(pattern)
    parts = path.split("/")
    fixed = next((i for i, part in enumerate(parts[:-1]) if _is_pattern(part) or part.endswith(".zip")), len(parts) - 1)
    if base == "hf://":  # a data set is no folder that can be listed from above
        fixed = max(fixed, 3 if parts[0] in ("datasets", "spaces", "models", "buckets") else 2)
    folder = "/".join(parts[:fixed])
    found = _below(with_path(pattern, folder if base else folder or "/"), parts[fixed:])
    return sorted(found, key=lambda file: file.path)


def _below(folder: str, parts: Sequence[str]) -> Iterator[Found]:
    if not parts:
        return
    part, *rest = parts
    for entry in _listings.of(folder):
        if not _matches(entry.name, part):
            continue
        place = with_path(folder, posixpath.join(split_uri(folder)[1], entry.name))
        if entry.is_folder:
            yield from _below(place, rest)
        elif not rest:
            yield Found(place, entry.size, entry.version)
        elif entry.name.endswith(".zip"):
            yield from _members(Found(place, entry.size, entry.version), rest)


def _members(archive: Found, parts: Sequence[str]) -> Iterator[Found]:
    for member in zip_members(archive):
        names = member.split("/")
        if len(names) == len(parts) and all(map(_matches, names, parts)):
            yield replace(archive, member=member)


@functools.lru_cache(maxsize=256)
def zip_members(archive: Found) -> tuple[str, ...]:
    """The names of the files in a zip archive."""
    with opened(archive.uri) as file, open_zip(file, shown(archive.uri)) as opened_zip:
        return tuple(sorted(info.filename for info in opened_zip.infolist() if not info.is_dir()))


class _WebFile:
    """A file of a web server, each read of which is a request for a range of it."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0
        with self._range(0, 0) as answer:
            self._size = int(answer.headers["Content-Range"].rpartition("/")[2])

    def _range(self, first: int, last: int) -> http.client.HTTPResponse:
        request = urllib.request.Request(self._uri, headers={"Range": f"bytes={first}-{last}"})  # noqa: S310 (is_web)
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_WEB_TIMEOUT_S)  # noqa: S310
        if answer.status != 206:
            answer.close()
            raise NotImplementedError("the server sends whole files only, not ranges of them")
        return answer

    def size(self) -> int:
        return self._size

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, count: int) -> bytes:
        try:
            with self._range(self._position, self._position + count - 1) as answer:
                data = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"the answer ends early: {error!r}") from error
        self._position += len(data)
        return data

    def close(self) -> None:
        """Nothing stays open between reads."""


class _Resuming(io.RawIOBase):
    """A file read by ranges, which opens it again and goes on where the network fails."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0
        self._file: Any = None
        self.size = _attempt(uri, self._open)

    def _open(self) -> int:
        if is_web(self._uri):
            self._file = _WebFile(self._uri)
        else:
            system, path = _located(self._uri)
            self._file = system.open_input_file(path)
        return int(self._file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def next(self, most: int) -> bytes:
        """The next bytes in one request, without a copy; none at the end."""
        count = min(most, self.size - self._position)
        if count <= 0:
            return b""
        data = _attempt(self._uri, functools.partial(self._read, count))
        self._position += len(data)
        return data

    def _read(self, count: int) -> bytes:
        if self._file is None:
            self._open()
        try:
            self._file.seek(self._position)
            data: bytes = self._file.read(count)
        except failures():
            self._file = None
            raise
        if not data:
            self._file = None
            raise OSError(f"the answer ends early, at byte {self._position:,} of {self.size:,}")
        return data

    def close(self) -> None:
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()


def opened(uri: str) -> io.BufferedReader:
    """The bytes of a file anywhere, to be read from any position."""
    return io.BufferedReader(_Resuming(uri), _NETWORK_BUFFER_BYTES if is_uri(uri) else _LOCAL_BUFFER_BYTES)


def read_bytes(uri: str) -> bytes | None:
    """A small file of a bucket in two requests, or None after one if it is not there."""
    try:
        with _Resuming(uri) as file:
            return file.next(file.size)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_ranges(uri: str) -> Iterator[bytes]:
    """A large file of a bucket, in one request for every 32 MiB (and one for its size)."""
    with _Resuming(uri) as file:
        for _ in range(-(-file.size // _RANGE_BYTES)):
            yield file.next(_RANGE_BYTES)


def write_bytes(uri: str, data: bytes) -> None:
    """Put a small file into a bucket, in place of one that may be there."""
    _attempt(uri, functools.partial(_write_ranges, uri, io.BytesIO(data)), "write")


def write_file(uri: str, file: BinaryIO) -> None:
    """Put a file of any size into a bucket, from its beginning; a reader sees all of it or none of it."""
    _attempt(uri, functools.partial(_write_ranges, uri, file), "write")


def _write_ranges(uri: str, file: BinaryIO) -> None:
    system, path = _located(uri)
    file.seek(0)
    with system.open_output_stream(path, compression=None) as stream:
        while data := file.read(_RANGE_BYTES):
            stream.write(data)


def remove(uri: str) -> None:
    """Remove a file of a bucket, if it is there."""
    try:
        _attempt(uri, functools.partial(_remove, uri), "remove")
    except DataError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise


def _remove(uri: str) -> None:
    system, path = _located(uri)
    system.delete_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder of a bucket with everything in it, if it is there."""
    system, path = _located(uri)
    try:
        _attempt(uri, functools.partial(system.delete_dir, path), "remove")
    except DataError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise


def move(uri: str, to: str) -> None:
    """Give a file another name in its file system; a file that is there already, and not at its old place, stays."""
    _attempt(uri, functools.partial(_move, uri, to), "move")


def _move(uri: str, to: str) -> None:
    from pyarrow import fs

    (system, path), (_, target) = _located(uri), _located(to)
    missing = system.get_file_info(path).type == fs.FileType.NotFound
    if missing and system.get_file_info(target).type == fs.FileType.File:
        return
    system.move(path, target)


def files_below(folder: str) -> dict[str, Found]:
    """All files below a folder of a bucket as they are now, by their path in it."""
    from pyarrow import fs

    system, path = _located(folder)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
    found = {}
    for info in _attempt(folder, functools.partial(system.get_file_info, selector)):
        name = posixpath.relpath(info.path, path)
        if info.type == fs.FileType.File:
            found[name] = Found(joined(folder, name), info.size or 0, str(info.mtime_ns or 0))
    return found


def folders_in(folder: str) -> list[str]:
    """The names of the folders in a folder of a bucket as they are now."""
    return [entry.name for entry in _attempt(folder, functools.partial(_entries, folder)) if entry.is_folder]


def digest(file: Found) -> str:
    """What changes with a file's content: of a local file the bytes, elsewhere what the listing says of them.

    A local file of more than 256 MiB counts by its size and three of its parts.
    """
    return file.version if is_uri(file.uri) else _local_digest(file.uri, file.size, file.version)


@functools.lru_cache(maxsize=4096)
def _local_digest(path: str, size: int, version: str) -> str:  # noqa: ARG001 (another version is another entry)
    state = xxhash.xxh3_128()
    last = size - _SAMPLE_BYTES
    starts = range(0, size, _SAMPLE_BYTES) if size <= _WHOLE_DIGEST_BYTES else (0, last // 2, last)
    with opened(path) as file:
        for start in starts:
            file.seek(start)
            state.update(file.read(_SAMPLE_BYTES))
    return state.hexdigest()
