"""Where a token cache lies: a local folder, or a bucket with a bounded number of verified copies on each node.

A store knows files by name ("manifest.json", "rejected/train-00000-of-00004.jsonl") and nothing of what they hold.
Whatever is written appears whole or not at all: by a rename in a folder, by the upload itself in a bucket.
"""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import xxhash

from mixtura.platform import filesystems
from mixtura.platform.errors import CorruptCacheError, DataError, MixturaError, ResourceError
from mixtura.platform.files import disk_full_is_an_answer, exclusive_lock, fsync_directory, write_bytes_atomically
from mixtura.platform.files import xxh3_128 as file_digest

Place = str | Path

_THREADS = 2
_SETTLED_NS = 10**8
"""Clocks of file systems tick slowly: a file changed just now could change again and show the same time."""
_ABANDONED_S = 3600.0
"""Age of a half-fetched file after which nobody can be fetching it any more."""


def _default_folder() -> str:
    return str(Path(tempfile.gettempdir()) / f"mixtura-copies-{os.getuid()}")


@dataclass(frozen=True)
class Copies:
    """A node's local copies of the shards of buckets, shared by its processes."""

    folder: str = field(default_factory=_default_folder)
    size_bytes: int = 64 * 10**9
    """Most bytes of all of them; those that were not used for longest go first."""


class Store(ABC):
    """The files of one cache."""

    place: str

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A small file, or None if it is not there."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a small file, in place of one that may be there."""

    @abstractmethod
    def writing(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """A file of any size to be written; it takes its place at the end of the block, and not after an error."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The bytes of all files that are there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def changed_ns(self, name: str) -> int:
        """When a file was last written; 0 if it is not there."""

    @abstractmethod
    def local(self, name: str, size: int, digest: str) -> Path:
        """A file of this node with the file's bytes, which were compared with the digest once in this process.

        Raises CorruptCacheError where they differ.
        """

    @abstractmethod
    def used(self, path: Path) -> None:
        """Note that a file that `local` gave is still in use."""

    @abstractmethod
    def damage(self, name: str, size: int, digest: str | None) -> str | None:
        """What is wrong with a file that should have this size and digest, or None. No file of a bucket is read."""

    @abstractmethod
    def spool_folder(self) -> Path:
        """A local folder with room for a shard that is being written."""

    def at(self, name: str) -> str:
        """The file's place, for people."""
        return filesystems.shown(filesystems.joined(self.place, name))

    def corrupt(self, name: str, damage: str) -> CorruptCacheError:
        """The error for a damaged file, with what to do about it."""
        return CorruptCacheError(
            f"the token cache {filesystems.shown(self.place)} is damaged: {damage}. {self.remedy(name)} and then the "
            "same command again: whole shards are kept, damaged ones are made anew"
        )

    @abstractmethod
    def remedy(self, name: str) -> str:
        """What makes a damaged file be written again by the next preparation."""


def store_at(place: Place, copies: Copies | None = None) -> Store:
    """The files at a place: a path, or a URI of a bucket, of whose large files `copies` are made."""
    where = filesystems.absolute(str(place))
    return BucketStore(where, copies or Copies()) if filesystems.is_uri(where) else FolderStore(where)


_verified: set[tuple[str, int, int, str]] = set()


def _is_verified(path: Path, digest: str) -> bool:
    """Whether the bytes of a file have this digest; read once per process as long as the file does not change."""
    status = path.stat()
    seen = (str(path), status.st_ino, status.st_mtime_ns, digest)
    if seen not in _verified:
        if file_digest(path) != digest:
            return False
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            _verified.add(seen)
    return True


class FolderStore(Store):
    """Files in a local folder, mapped where they lie."""

    def __init__(self, place: str) -> None:
        self.place, self._folder = place, Path(place)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            return (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with disk_full_is_an_answer(self._folder, f"writing {name}"):
            write_bytes_atomically(self._folder / name, data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`."""
        path = self._folder / name
        with disk_full_is_an_answer(self._folder, f"writing {name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            fsync_directory(path.parent)

    def sizes(self) -> dict[str, int]:
        """See `Store`."""
        files = (path for path in self._folder.rglob("*") if path.is_file())
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in files}

    def remove(self, name: str) -> None:
        """See `Store`."""
        (self._folder / name).unlink(missing_ok=True)

    def changed_ns(self, name: str) -> int:
        """See `Store`."""
        path = self._folder / name
        return path.stat().st_mtime_ns if path.is_file() else 0

    def local(self, name: str, size: int, digest: str) -> Path:
        """See `Store`."""
        if damage := self.damage(name, size, digest):
            raise self.corrupt(name, damage)
        return self._folder / name

    def damage(self, name: str, size: int, digest: str | None) -> str | None:
        """See `Store`."""
        path = self._folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes, {size} were committed"
        if digest is not None and not _is_verified(path, digest):
            return f"{name} has the xxh3-128 digest {file_digest(path)}, {digest} was committed"
        return None

    def spool_folder(self) -> Path:
        """See `Store`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def used(self, path: Path) -> None:
        """See `Store`. No file goes for want of use."""

    def remedy(self, name: str) -> str:  # noqa: ARG002 (what is damaged is found by its digest)
        """See `Store`."""
        return f"Run `rm {self._folder / 'manifest.json'}`"


class BucketStore(Store):
    """Files in a bucket; those that are mapped are copied to this node first."""

    def __init__(self, place: str, copies: Copies) -> None:
        self.place, self.copies = place, copies
        self._sizes: dict[str, int] | None = None

    def _uri(self, name: str) -> str:
        return filesystems.joined(self.place, name)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        return filesystems.read_bytes(self._uri(name))

    def write(self, name: str, data: bytes) -> None:
        """See `Store`."""
        filesystems.write_bytes(self._uri(name), data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """See `Store`."""
        folder = self.spool_folder()
        with disk_full_is_an_answer(folder, f"writing {self.at(name)}"), tempfile.TemporaryFile(dir=folder) as file:
            yield file
            file.flush()
            filesystems.write_file(self._uri(name), file)

    def sizes(self) -> dict[str, int]:
        """See `Store`."""
        self._sizes = {name: found.size for name, found in filesystems.files_below(self.place).items()}
        return self._sizes

    def remove(self, name: str) -> None:
        """See `Store`."""
        filesystems.remove(self._uri(name))

    def changed_ns(self, name: str) -> int:
        """See `Store`."""
        found = filesystems.files_below(self.place).get(name)
        return int(found.version) if found else 0

    def local(self, name: str, size: int, digest: str) -> Path:
        """See `Store`."""
        copy = _Copy(self.copies, size, digest)
        if copy.is_whole():
            return copy.path
        with copy.lock():
            for _ in range(2):
                if copy.is_whole() or copy.fetch(self._ranges(name)):
                    return copy.path
        raise self.corrupt(
            name, f"{name} was fetched twice, neither time with the committed {size} bytes and xxh3-128 digest {digest}"
        )

    def used(self, path: Path) -> None:
        """See `Store`."""
        _use_now(path)

    @property
    def room_ahead(self) -> int:
        """How many bytes may be copied before they are needed, so that those in use stay."""
        return self.copies.size_bytes // 2

    def _ranges(self, name: str) -> Iterator[bytes]:
        try:
            yield from filesystems.read_ranges(self._uri(name))
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise self.corrupt(name, f"{name} is missing") from error
            raise

    def damage(self, name: str, size: int, digest: str | None) -> str | None:  # noqa: ARG002 (nothing is read)
        """See `Store`. The listing is asked for once."""
        sizes = self.sizes() if self._sizes is None else self._sizes
        if (found := sizes.get(name)) is None:
            return f"{name} is missing"
        return None if found == size else f"{name} has {found} bytes, {size} were committed"

    def spool_folder(self) -> Path:
        """See `Store`."""
        return Path(tempfile.gettempdir())

    def remedy(self, name: str) -> str:
        """See `Store`. Digests of a bucket's files are not compared before they are used, so both must go."""
        manifest = self.at("manifest.json")
        return f"Delete the object {manifest}" + ("" if name == "manifest.json" else f" and the object {self.at(name)}")


class _Copy:
    """A local copy of a bucket's file, named by its digest: caches that hold the same shard share it."""

    def __init__(self, copies: Copies, size: int, digest: str) -> None:
        self._copies, self._size, self._digest = copies, size, digest
        self._folder = Path(copies.folder)
        self.path = self._folder / digest

    def is_whole(self) -> bool:
        """Whether it is here with the right bytes; if so it counts as used now."""
        try:
            status = self.path.stat()
            if status.st_size != self._size or not _is_verified(self.path, self._digest):
                return False
        except FileNotFoundError:
            return False
        _use_now(self.path)
        return True

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """One process of the node fetches while the others wait. Few lock files are enough: they need not be removed,
        which could not be done safely while somebody waits for one."""
        return self._lock(self._digest[:2])

    def _lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        return exclusive_lock(self._folder / ".locks" / name, f"{self._folder} is locked", wait=True)

    def fetch(self, ranges: Iterator[bytes]) -> bool:
        """Write the copy, and say whether it came with the right bytes; under `lock` only."""
        partial = self._folder / f".{self._digest}.partial"
        state, left = xxhash.xxh3_128(), self._size
        with disk_full_is_an_answer(self._folder, f"copying {self._size:,} bytes of a token cache"):
            self.path.unlink(missing_ok=True)
            self._reserve(partial)
            try:
                with open(partial, "r+b") as file:
                    for data in ranges:
                        left -= len(data)
                        if left < 0:
                            break
                        state.update(data)
                        file.write(data)
                        del data  # so that only one range is in memory
                if left != 0 or state.hexdigest() != self._digest:
                    return False
                status = partial.stat()
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)
        _verified.add((str(self.path), status.st_ino, status.st_mtime_ns, self._digest))
        return True

    def _reserve(self, partial: Path) -> None:
        """Make room, and take it at once by a file of the full length, so that another process counts it too."""
        if self._size > self._copies.size_bytes:
            raise ResourceError(
                f"a shard of {self._size:,} bytes is larger than all local copies may be together, "
                f"{self._copies.size_bytes:,} bytes in {self._folder}: raise data.copies_size"
            )
        with self._lock("room"):
            partial.unlink(missing_ok=True)
            copies = sorted(_files_of(self._folder), key=lambda found: found[1].st_atime_ns)
            excess = sum(status.st_size for _, status in copies) + self._size - self._copies.size_bytes
            for path, status in copies:
                if path.name.startswith(".") and time.time() - status.st_mtime < _ABANDONED_S:
                    continue
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)  # whoever has mapped it keeps its bytes
                excess -= status.st_size
            with open(partial, "wb") as file:
                file.truncate(self._size)


def _use_now(path: Path) -> None:
    """The time of the last access says which copies to keep; the time of the last change says that one is verified."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _files_of(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file():
                yield Path(entry.path), entry.stat()


class ReadAhead:
    """A few threads that do what will be needed soon; they do not keep the process from ending."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[object, Callable[[], object]]] = queue.SimpleQueue()
        self._known: set[object] = set()
        self._lock = threading.Lock()
        self._threads = 0

    def begin(self, key: object, action: Callable[[], object]) -> None:
        """Do this soon, unless the same is waiting already. What fails is left to whoever needs it later."""
        with self._lock:
            if key in self._known:
                return
            self._known.add(key)
            self._waiting.put((key, action))
            if self._threads < min(_THREADS, len(self._known)):
                self._threads += 1
                threading.Thread(target=self._run, name="read-ahead", daemon=True).start()

    def _run(self) -> None:
        while True:
            key, action = self._waiting.get()
            try:
                with contextlib.suppress(MixturaError, OSError):
                    action()
            finally:
                with self._lock:
                    self._known.discard(key)


read_ahead = ReadAhead()
