"""From what a user names to the files to read: files, patterns, and a crawl's own lists of paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mixtura.platform.containers import DamagedError, unpacked
from mixtura.platform.errors import DataError
from mixtura.platform.filesystems import Found, absolute, glob, is_uri, is_web, opened, shown, split_uri

COMMON_CRAWL = "https://data.commoncrawl.org"
_LIST = re.compile(r"\.paths(\.gz)?$")
_LISTED_PATH_BYTES = 4096


def input_files(places: Sequence[str], root: str = COMMON_CRAWL) -> list[Found]:
    """The files that places name, by their names, each once; the size of a file that no listing shows is 0.

    A place is a file, a pattern with `*`, `?` and `[...]`, or a list of paths such as a crawl's `wet.paths.gz`, whose
    lines are below `root`; with an absolute path or a URI as root, the same list reads a mirror or a bucket.
    """
    files = {file.uri: file for place in places for file in _files(absolute(place), root)}
    return [files[uri] for uri in sorted(files)]


def _files(place: str, root: str) -> Iterator[Found]:
    if _LIST.search(split_uri(place)[1]):
        yield from _listed(place, root)
    elif is_web(place):
        yield Found(place, 0, "")
    else:
        found = glob(place)
        if not found and not is_uri(place) and Path(place).is_dir():
            raise DataError(f"{place} is a folder: name the files in it, for example '{place}/*.warc.wet.gz'")
        if not found:
            raise DataError(f"no file {shown(place)}; check its name, and quote a pattern so that the shell leaves it")
        yield from found


def _listed(place: str, root: str) -> Iterator[Found]:
    with opened(place) as file:
        try:
            lines = unpacked(file).read().decode().splitlines()
        except (DamagedError, UnicodeDecodeError) as error:
            raise DataError(f"the list {shown(place)} cannot be read: {error}; fetch it again") from error
    for line in filter(None, map(str.strip, lines)):
        uri = line if is_uri(line) or line.startswith("/") else absolute(line, root)
        yield Found(uri, 0, "") if is_uri(uri) else _local(Path(uri))


def _local(path: Path) -> Found:
    status = path.stat() if path.is_file() else None  # one that is missing is told of where it is read
    return Found(str(path), status.st_size, str(status.st_mtime_ns)) if status else Found(str(path), 0, "")
