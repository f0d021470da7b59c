"""Files that are whole or absent: atomic writes, digests, and locks that die with their holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from mixtura.platform.errors import ResourceError

_CHUNK_BYTES = 1 << 20


def _umask() -> int:
    """The process's: it can only be read by being set, so before there are threads."""
    os.umask(mask := os.umask(0))
    return mask


_UMASK = _umask()


def xxh3_128(path: Path) -> str:
    """The xxh3-128 digest of a file's bytes, as 32 hex digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_directory(path: Path) -> None:
    """Make the names in a directory survive a crash of the machine: a rename alone does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; a reader, or a crash at any moment, sees all of it or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(handle, 0o666 & ~_UMASK)  # those of a temporary file would keep others from reading it
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    fsync_directory(path.parent)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees all of it or none of it."""
    with atomic_file(path) as file:
        file.write(data)


def write_json_atomically(path: Path, value: Any) -> None:
    """The same for a JSON value, indented for people."""
    write_bytes_atomically(path, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


@contextlib.contextmanager
def disk_full_is_an_answer(path: Path, doing: str) -> Iterator[None]:
    """Turn "no space left" into an error that says where, while doing what, and how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"the disk is full while {doing} in {path}: free space there and run the same command"
        ) from error


@contextlib.contextmanager
def exclusive_lock(path: Path, refusal: str, *, wait: bool = False) -> Iterator[None]:
    """Hold `path` as a lock that the operating system frees when the process ends, however it ends.

    Raises ResourceError with `refusal` (and what the holder wrote of itself) where somebody else holds it,
    or waits for it with `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise ResourceError(f"{refusal}: held by {holder}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield
