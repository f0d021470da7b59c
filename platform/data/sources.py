"""Where the rows of a task come from: files in their original formats, wherever they are.

A task names files in two ways: its public home on the hub, and the original files as their authors pack them, which
are looked for below `data.root` (a folder or a bucket), also gzipped or inside zip archives. Files that the user names
for a split win over both. A listing is cut into shards by a fixed rule, and one function reads a shard, on any machine:
`FileSource.read`.
"""

from __future__ import annotations

import functools
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, cast

import xxhash

from mixtura.platform import filesystems
from mixtura.platform.containers import plain_bytes
from mixtura.platform.data import formats
from mixtura.platform.data.formats import LineReader, Table
from mixtura.platform.data.row_groups import parquet_groups
from mixtura.platform.data.task import BadRecord, Row, Shard
from mixtura.platform.errors import ConfigError, DataError
from mixtura.platform.filesystems import Found, absolute, glob, opened, shown

_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 100_000
_NAMES_SHOWN = 12
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")

Files = tuple[Found, ...]
"""What makes records together: one file, or the files of a line-aligned group in the order of their fields."""


@dataclass(frozen=True)
class FileSource:
    """Rows of files: tables, JSON, Parquet, plain and line-aligned text, by their suffixes.

    >>> source = FileSource({}, original={"train": ("SST-2/train.tsv",), "validation": ("SST-2/dev.tsv",)})
    >>> bound = source.bound("/data/glue", {})        # the files of /data/glue, SST-2/train.tsv.gz or SST-2.zip as well
    >>> bound = source.bound(None, {"train": ["s3://bucket/reviews/train-*.jsonl.gz"]})
    """

    hub: Mapping[str, tuple[str, ...]]
    """The public home: for each split places with patterns, of which all matches are read."""
    original: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each split ways in which the original files are packed, below `root`; the first with a match counts."""
    header: tuple[str, ...] = ()
    """Words by which the first line of a table is known to be its header."""
    headerless: tuple[tuple[str, ...], ...] = ()
    """Column names of tables without a header, told apart by their number."""
    aligned: tuple[str, ...] = ()
    """The fields that line-aligned files give: the n-th word in the braces of a pattern names the n-th field's file."""
    lines: LineReader | None = None
    """How the lines of a text file make records; None makes `{"text": line}` of each."""
    root: str | None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Files named for a split: below `root`, absolute, or URIs, with patterns; all matches are read."""

    def bound(self, root: str | None, files: Mapping[str, Sequence[str]]) -> FileSource:
        """The same source, reading below `root`, or the `files` named for each split."""
        return replace(self, root=root, files={split: tuple(names) for split, names in files.items()})

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of the public home, or those that have files where the user says."""
        if self.root is None and not self.files:
            return tuple(self.hub)
        names = dict.fromkeys((*self.hub, *self.original, *self.files))
        return tuple(split for split in names if self._found(split))

    def check(self) -> None:
        """Raise DataError, with what was looked for and what is there, if there is nothing to read."""
        self._check_root()
        wanted = self.files or self.splits
        missing = [split for split in wanted if not self._found(split)]
        if missing or not self.splits:
            raise DataError(self._missing(missing[0] if missing else None))

    def shards(self, split: str) -> list[Shard]:
        """The listing of a split, cut by a fixed rule: ranges of 64 MiB of plain lines, groups of about 100,000 rows
        of Parquet, everything else whole."""
        self._check_root()
        found = self._found(split)
        if not found:
            raise DataError(self._missing(split))
        return [shard for files in found for shard in self._cut(files)]

    def read(self, shard: Shard) -> Iterator[Row | BadRecord]:
        """The rows of one shard, with its unreadable records in their places."""
        kind, *place = cast("tuple[Any, ...]", shard.locator)
        rows = self._read_aligned(*place) if kind == "aligned" else self._read_file(kind, *place)
        return formats.undamaged(rows)

    def fingerprint(self, split: str) -> str:
        """Changes whenever the rows do; names count as they stand below the root, so a copied folder has the same."""
        self._check_root()
        listing = [
            (self._name(file), file.size, filesystems.digest(file)) for files in self._found(split) for file in files
        ]
        declared = [listing, self.header, self.headerless, self.aligned]
        return xxhash.xxh3_128(json.dumps(declared).encode()).hexdigest()

    # Finding files

    def _patterns(self, split: str) -> tuple[str, ...]:
        """The places that are looked at for a split."""
        if split in self.files:
            return tuple(absolute(name, self.root) for name in self.files[split])
        if self.root is not None:
            return tuple(absolute(way, self.root) for name in self.original.get(split, ()) for way in _ways(name))
        return () if self.files else self.hub.get(split, ())

    def _found(self, split: str) -> list[Files]:
        """What there is to read of a split, in its order."""
        matches = (self._matching(pattern) for pattern in self._patterns(split))
        if split in self.files or self.root is None:
            return [files for match in matches for files in match]
        return next(filter(None, matches), [])

    def _matching(self, pattern: str) -> list[Files]:
        spelled = _spelled(pattern)
        if not self.aligned or len(spelled) == 1:
            return [(file,) for name in spelled for file in glob(name)]
        if len(spelled) != len(self.aligned):
            raise ConfigError(
                f"{shown(pattern)} names {len(spelled)} files in its braces, but a record has {len(self.aligned)} "
                f"fields ({', '.join(self.aligned)}): name one file for each, in this order"
            )
        return _grouped(spelled)

    def _name(self, file: Found) -> str:
        """A file's name for people, and for fingerprints: below the root, or in its data set."""
        if file.uri.startswith("hf://"):
            return file.path.split("/", 3)[-1]
        root = filesystems.split_uri(absolute(self.root))[1].rstrip("/") + "/" if self.root is not None else ""
        if root and file.path.startswith(root):
            return file.path.removeprefix(root)
        return posixpath.basename(file.path.removesuffix(f"/{file.member}")) + f"/{file.member}" * bool(file.member)

    # Saying what is missing

    def _check_root(self) -> None:
        if self.root is not None and filesystems.folder_names(root := absolute(self.root)) is None:
            raise DataError(f"data.root is {root}, but there is no such folder: create it or name another")

    def _missing(self, split: str | None) -> str:
        if split in self.files:
            looked, remedy = self._patterns(str(split)), f"correct mixture.tasks.NAME.files.{split}"
        elif self.root is not None:
            of_split = self.original.get(split) if split else None
            ways = self.original.values() if of_split is None else [of_split]
            looked = tuple(absolute(name, self.root) for names in ways for name in names)
            remedy = "correct data.root, or name the files of each split in mixture.tasks.NAME.files.SPLIT"
        elif self.hub:
            looked = self.hub.get(split, ()) if split else ()
            remedy = "put the original files into a folder or a bucket and name it in data.root"
        else:
            return "this task has no public home: name a folder or a bucket with its original files in data.root"
        names = ", ".join(dict.fromkeys(map(shown, looked))) or "nothing (the task knows no original files)"
        also = " (also with .gz, and in zip archives)" if self.root is not None and split not in self.files else ""
        what = f"no files of split {split!r}" if split else "no files"
        return f"{what}; looked for {names}{also}\n{self._there(looked)}\n{remedy}"

    def _there(self, looked: Sequence[str]) -> str:
        folders = [absolute(self.root)] if self.root is not None else []
        folders += [folder for pattern in looked if "*" not in (folder := _folder(pattern))]
        told = []
        for folder in list(dict.fromkeys(folders))[:3]:
            names = filesystems.folder_names(folder)
            if names is None:
                told.append(f"{shown(folder)} is not there")
            else:
                more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
                told.append(f"{shown(folder)} holds {', '.join(names[:_NAMES_SHOWN]) or 'nothing'}{more}")
        return "; ".join(told) or "no folder was looked into"

    # Cutting into shards

    def _cut(self, files: Files) -> list[Shard]:
        name = " + ".join(self._name(file) for file in files)
        if len(files) > 1:
            return [Shard(name, ("aligned", *(part for file in files for part in (file.uri, file.member))))]
        file, kind = files[0], self._kind(files[0])
        place = (kind, file.uri, file.member)
        compressed = bool(file.member) or file.path.lower().endswith(".gz")
        if compressed or kind in ("csv", "json") or (kind == "text" and self.lines is not None):
            return [Shard(name, place)]
        ends = _row_group_ends(file) if kind == "parquet" else byte_ends(file.size, _SHARD_BYTES)
        names = [name] if len(ends) == 1 else [f"{name} (part {n} of {len(ends)})" for n in range(1, len(ends) + 1)]
        starts = (0, *ends[:-1])
        return [Shard(part, (*place, *where)) for part, *where in zip(names, starts, ends, strict=True)]

    def _kind(self, file: Found) -> str:
        kind = formats.kind_of(file.path)
        if kind is None:
            raise DataError(
                f"{shown(file.uri)} has none of the suffixes that say how to read it ({', '.join(formats.KINDS)}, each "
                "also with .gz): rename or convert it"
            )
        is_table = kind == "text" and self.lines is None and (self.header or self.headerless)
        return "tsv" if is_table else kind

    # Reading

    def _read_file(self, kind: str, uri: str, member: str, *range_: int) -> Iterator[Row | BadRecord]:
        """The records of a whole file or member, or of what lies between two of its bytes or row groups."""
        name = shown(uri) + f"/{member}" * bool(member)
        start, stop = range_ or (0, None)
        with opened(uri) as file, plain_bytes(file, shown(uri), member) as plain:
            yield from formats.records(
                kind, plain, name, Table(self.header, self.headerless), self.lines, start=start, stop=stop
            )

    def _read_aligned(self, *place: str) -> Iterator[Row | BadRecord]:
        files = list(zip(place[::2], place[1::2], strict=True))
        names = [shown(uri) + f"/{member}" * bool(member) for uri, member in files]
        with ExitStack() as stack:
            opened_files = [stack.enter_context(opened(uri)) for uri, _ in files]
            plain = [
                stack.enter_context(plain_bytes(file, shown(uri), member))
                for file, (uri, member) in zip(opened_files, files, strict=True)
            ]
            yield from formats.read_aligned(plain, names, self.aligned)


def byte_ends(size: int, shard_bytes: int) -> tuple[int, ...]:
    """Where ranges of `shard_bytes` end in a file.

    >>> byte_ends(250, 100), byte_ends(0, 100)
    ((100, 200, 250), (0,))
    """
    return (*range(shard_bytes, size, shard_bytes), size)


def group_ends(rows: Sequence[int], shard_rows: int) -> tuple[int, ...]:
    """Where groups of row groups end that hold at most `shard_rows` rows, or a single row group.

    >>> group_ends([40, 40, 40, 500, 10], 100)
    (2, 3, 4, 5)
    """
    ends, held = [], 0
    for index, count in enumerate(rows):
        if held and held + count > shard_rows:
            ends.append(index)
            held = 0
        held += count
    return (*ends, len(rows))


@functools.lru_cache(maxsize=4096)
def _row_group_ends(file: Found) -> tuple[int, ...]:
    with opened(file.uri) as content:
        return group_ends(parquet_groups(content, shown(file.uri)), _SHARD_ROWS)


def _ways(name: str) -> Iterator[str]:
    """A file as it is, gzipped, and inside a zip archive of one of its folders, which may or may not have the folder.

    >>> list(_ways("CoLA/train.tsv"))
    ['CoLA/train.tsv', 'CoLA/train.tsv.gz', 'CoLA.zip/CoLA/train.tsv', 'CoLA.zip/train.tsv']
    """
    yield name
    if not name.endswith(".gz"):
        yield f"{name}.gz"
    parts = name.split("/")
    for depth in range(len(parts) - 1, 0, -1):
        archive, rest = "/".join(parts[:depth]) + ".zip", "/".join(parts[depth:])
        yield f"{archive}/{parts[depth - 1]}/{rest}"
        yield f"{archive}/{rest}"


def _spelled(pattern: str) -> list[str]:
    """The patterns that one with braces stands for: the n-th takes the n-th word of all braces.

    >>> _spelled("wmt14/{src,tgt}-train.{en,de}")
    ['wmt14/src-train.en', 'wmt14/tgt-train.de']
    """
    words = [braces.split(",") for braces in _BRACES.findall(pattern)]
    if len({len(choice) for choice in words}) > 1:
        raise ConfigError(f"the braces of {shown(pattern)} hold different numbers of words")
    if not words:
        return [pattern]
    spelled = []
    for chosen in zip(*words, strict=True):
        remaining = iter(chosen)
        spelled.append("".join(next(remaining) if n % 2 else part for n, part in enumerate(_BRACES.split(pattern))))
    return spelled


def _grouped(patterns: Sequence[str]) -> list[Files]:
    """Files of different patterns that belong together: the same text stands where the patterns have `*`."""
    sides = [{_stars(pattern, file): file for file in glob(pattern)} for pattern in patterns]
    if not all(sides):
        return []
    for side, pattern in zip(sides, patterns, strict=True):
        for key in set().union(*sides) - set(side):
            one = next(other[key] for other in sides if key in other)
            raise DataError(f"{shown(one.uri)} has no counterpart {shown(pattern)}: add it, or leave out both")
    return [tuple(side[key] for side in sides) for key in sides[0]]


def _stars(pattern: str, file: Found) -> tuple[str, ...]:
    parts = re.split(r"([*?])", filesystems.split_uri(pattern)[1])
    wildcards = {"*": "([^/]*)", "?": "([^/])"}
    found = re.fullmatch("".join(wildcards.get(part, re.escape(part)) for part in parts), file.path)
    return found.groups() if found else (file.path,)


def _folder(pattern: str) -> str:
    return filesystems.with_path(pattern, posixpath.dirname(filesystems.split_uri(pattern)[1]))
