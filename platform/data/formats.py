"""Records from the bytes of files: tables, JSON, Parquet, plain and line-aligned text, also compressed.

Records come exactly as the file has them: a table's fields as text under its column names, JSON and Parquet in their
own types. What cannot be read comes as a `BadRecord` in its place, whose reason names the fault and never the data; all
records around it arrive. Memory holds one line, one CSV record or one Parquet row group at a time, and none of the
first two of more than 16 MiB; only a `.json` file that is a single document, and Parquet inside gzip or zip, are read
whole. A file that is not of its kind at all (a web page, a Git LFS pointer) is a DataError.
"""

from __future__ import annotations

import collections
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader

from mixtura.platform.containers import FOREIGN, HEAD_BYTES, DamagedError, refusal, what_begins
from mixtura.platform.data.json_records import read_json, read_jsonl
from mixtura.platform.data.lines import (
    LINE_BYTES,
    LONG_RECORD,
    SAMPLE_CHARACTERS,
    Marks,
    raw_lines,
    text_lines,
    without_bom,
)
from mixtura.platform.data.row_groups import read_parquet
from mixtura.platform.data.task import BadRecord, Row
from mixtura.platform.errors import DataError

LineReader = Callable[[Iterable[str]], Iterator[Row | BadRecord]]

KINDS = {
    ".tsv": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
_FIRST_LINES = 20
_LINES_TRIED = 10_000
_FIELDS_COUNTED = 100
_READ_AGAIN = 4


def kind_of(name: str) -> str | None:
    """How a file is read, by its suffix (and beneath `.gz`).

    >>> kind_of("c4-train.00000-of-01024.json.gz"), kind_of("train.TSV"), kind_of("README")
    ('json', 'tsv', None)
    """
    plain = name.lower().removesuffix(".gz")
    return next((kind for suffix, kind in KINDS.items() if plain.endswith(suffix)), None)


@dataclass(frozen=True)
class Table:
    """How the names of a table's columns are known.

    With neither `header` nor `headerless` the first line names the columns.

    >>> table = Table(header=("label",), headerless=(("source", "label", "mark", "sentence"),))
    >>> table.columns([["sentence", "label"], ["It rains.", "1"]], "train.tsv")
    (('sentence', 'label'), True)
    >>> table.columns([["bc01", "1", "", "It rains."]], "train.tsv")
    (('source', 'label', 'mark', 'sentence'), False)
    """

    header: tuple[str, ...] = ()
    """Words of which at least one stands in a header and in no other line."""
    headerless: tuple[tuple[str, ...], ...] = ()
    """Column names of tables without a header, told apart by how many there are in most of the first lines."""

    def columns(self, first: Sequence[list[str]], name: str) -> tuple[tuple[str, ...], bool]:
        """The column names, and whether the first line gave them."""
        if not first:
            raise refusal(name, "an empty file", "a table")
        if not (self.header or self.headerless) or not set(self.header).isdisjoint(first[0]):
            twice = [word for word, count in collections.Counter(first[0]).items() if count > 1]
            if twice:
                raise DataError(f"{name} names two columns {twice[0]!r} in its header: rename one")
            return tuple(first[0]), True
        usual = collections.Counter(map(len, first)).most_common(1)[0][0]
        for columns in self.headerless:
            if len(columns) == usual:
                return columns, False
        raise refusal(name, f"a table of {usual} columns that begins {self._shown(first[0])}", self._expected())

    @staticmethod
    def _shown(fields: list[str]) -> str:
        return ", ".join(repr(field[:40]) for field in fields[:4]) + (" ..." if len(fields) > 4 else "")

    def _expected(self) -> str:
        known = [f"a header with {' or '.join(map(repr, self.header))}"] if self.header else []
        known += [f"{len(columns)} columns without a header ({', '.join(columns)})" for columns in self.headerless]
        return ", or ".join(known)


def read_tsv(
    file: BufferedReader, name: str, table: Table, start: int = 0, stop: int | None = None
) -> Iterator[Row | BadRecord]:
    """Fields between tabs, quotes being ordinary characters; a range of bytes has the columns of the file's start."""
    if stop is None:
        return _table_records(_tsv_rows(file, 0, None), table, name)
    columns, has_header = table.columns(_good(_first_rows(_tsv_rows(file, 0, None))), name)
    file.seek(0)
    rows = _tsv_rows(file, start, stop)
    return _as_records(_without_header(rows) if has_header and start == 0 else rows, columns)


def _tsv_rows(file: BufferedReader, start: int, stop: int | None) -> Iterator[list[str] | BadRecord]:
    lines = raw_lines(file, start, stop)
    for line in text_lines(without_bom(lines) if start == 0 else lines):
        if isinstance(line, BadRecord):
            yield line
        else:
            yield line.split("\t") if line else BadRecord("empty line", "")


def _first_rows(rows: Iterator[list[str] | BadRecord]) -> list[list[str] | BadRecord]:
    """As many as show what a table is, with the unreadable ones among them."""
    first: list[list[str] | BadRecord] = []
    good = 0
    for row in itertools.islice(rows, _LINES_TRIED):
        first.append(row)
        good += isinstance(row, list)
        if good == _FIRST_LINES:
            break
    return first


def _good(rows: Iterable[list[str] | BadRecord]) -> list[list[str]]:
    return [row for row in rows if isinstance(row, list)]


def _table_records(rows: Iterator[list[str] | BadRecord], table: Table, name: str) -> Iterator[Row | BadRecord]:
    first = _first_rows(rows)
    good = _good(first)
    if first and not good and len(first) < _LINES_TRIED:
        yield from _as_records(first, ())
        return
    columns, has_header = table.columns(good, name)
    yield from _as_records(_without_header(first) if has_header else first, columns)
    yield from _as_records(rows, columns)


def _without_header(rows: Iterable[list[str] | BadRecord]) -> Iterator[list[str] | BadRecord]:
    """All but the first line that could be read."""
    met = False
    for row in rows:
        if met or isinstance(row, BadRecord):
            yield row
        else:
            met = True


def _as_records(rows: Iterable[list[str] | BadRecord], columns: Sequence[str]) -> Iterator[Row | BadRecord]:
    for row in rows:
        if isinstance(row, BadRecord):
            yield row
        elif len(row) != len(columns):
            yield BadRecord(f"{_counted(row)}, the table has {len(columns)}", "\t".join(row)[:SAMPLE_CHARACTERS])
        else:
            yield dict(zip(columns, row, strict=True))


def _counted(row: Sequence[str]) -> str:
    """How many fields, so that there are not as many reasons as there are lines."""
    if len(row) > _FIELDS_COUNTED:
        return f"more than {_FIELDS_COUNTED} fields"
    return "1 field" if len(row) == 1 else f"{len(row)} fields"


class _Again:
    """An iterator over the lines of one record at a time, which can be put back.

    Lines that are put back after a quote that is never closed are read again, all of them for each such quote. Where
    that would take longer than a few readings of the file, records get no more than one line.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._back = lines, collections.deque[str]()
        self.taken: list[str] = []
        self._held = self._passed = self._put_back = 0
        """Characters: of this record, of those before it, and of all lines that were put back."""

    def __iter__(self) -> _Again:
        return self

    def __next__(self) -> str:
        if self.taken and self._put_back > _READ_AGAIN * (LINE_BYTES + self._passed):
            raise csv.Error
        line = self._back.popleft() if self._back else next(self._lines)
        self.taken.append(line)
        self._held += len(line)
        if self._held > LINE_BYTES:
            raise csv.Error(LONG_RECORD)
        return line

    def begin_record(self) -> None:
        """What is taken from here on belongs to another record."""
        self._passed += self._held
        self._held = 0
        self.taken.clear()

    def put_back(self) -> str:
        """Give back all lines taken but the first, which is returned."""
        first, *rest = self.taken
        self._back.extendleft(reversed(rest))
        self._put_back += self._held - len(first)
        self._held = len(first)
        return first


def read_csv(file: BufferedReader, name: str, table: Table) -> Iterator[Row | BadRecord]:
    """Comma-separated fields with quotes (RFC 4180), which may hold line ends."""
    return _table_records(_csv_rows(file), table, name)


def _csv_rows(file: BufferedReader) -> Iterator[list[str] | BadRecord]:
    """Where quotes do not fit, one line is the bad record and reading goes on with the next one."""
    csv.field_size_limit(max(csv.field_size_limit(), 2 * LINE_BYTES))  # records are limited before their fields
    marks = Marks()
    lines = _Again(marks.text(without_bom(raw_lines(file))))
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_record()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRecord(_misfit(error), _printable(lines.put_back()))
            continue
        reason = marks.reason(row)
        if reason:
            yield BadRecord(reason, _printable("".join(lines.taken)))
        else:
            yield row or BadRecord("empty line", "")


def _misfit(error: csv.Error) -> str:
    if str(error) == LONG_RECORD:
        return LONG_RECORD
    return "a carriage return outside quotes" if "new-line" in str(error) else "quotes that do not fit"


def _printable(text: str) -> str:
    return text[:SAMPLE_CHARACTERS].encode(errors="replace").decode()


def read_text(file: BufferedReader, start: int = 0, stop: int | None = None) -> Iterator[Row | BadRecord]:
    """One record a line: `{"text": line}`."""
    lines = raw_lines(file, start, stop)
    for line in text_lines(without_bom(lines) if start == 0 else lines):
        yield line if isinstance(line, BadRecord) else {"text": line}


def read_with(reader: LineReader, file: BufferedReader) -> Iterator[Row | BadRecord]:
    """The records that a task's own `reader` makes of the lines; one that holds an unreadable line is a bad record."""
    marks = Marks()
    lines = marks.text(without_bom(raw_lines(file, past_damage=False)))
    for record in reader(line.removesuffix("\n").removesuffix("\r") for line in lines):
        if isinstance(record, BadRecord):
            yield BadRecord(record.reason, _printable(record.text))
            continue
        reason = marks.reason(record.values())
        yield BadRecord(reason, _printable(json.dumps(record, ensure_ascii=False))) if reason else record


def read_aligned(
    files: Sequence[BufferedReader], names: Sequence[str], fields: Sequence[str]
) -> Iterator[Row | BadRecord]:
    """One record of the n-th lines of all files; files of different lengths are refused."""
    counts = [0] * len(files)
    sides = [text_lines(without_bom(raw_lines(file, past_damage=False))) for file in files]
    for lines in itertools.zip_longest(*sides):
        counts = [count + (line is not None) for count, line in zip(counts, lines, strict=True)]
        if len(set(counts)) == 1:
            yield _aligned_record(fields, lines)
    if len(set(counts)) > 1:
        told = ", ".join(f"{name} has {count:,} lines" for name, count in zip(names, counts, strict=True))
        raise DataError(f"files that belong together line by line differ in length: {told}; fetch or unpack them again")


def _aligned_record(fields: Sequence[str], lines: Sequence[str | BadRecord]) -> Row | BadRecord:
    texts = [line.text if isinstance(line, BadRecord) else line for line in lines]
    bad = next((line.reason for line in lines if isinstance(line, BadRecord)), None)
    if bad is None and not all(text.strip() for text in texts):
        bad = "empty line"
    return BadRecord(bad, " ||| ".join(texts)[:SAMPLE_CHARACTERS]) if bad else dict(zip(fields, texts, strict=True))


def records(
    kind: str,
    file: BufferedReader,
    name: str,
    table: Table,
    lines: LineReader | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Row | BadRecord]:
    """The records of a file; or of a range of its bytes (tables without quotes, JSON lines, plain text) or of its row
    groups (Parquet)."""
    if start == 0 and kind != "parquet":
        try:
            found = what_begins(file.peek(HEAD_BYTES)[:HEAD_BYTES])
        except DamagedError as damage:
            behind = records(kind, file, name, table, lines)
            return itertools.chain([BadRecord(damage.reason, "")], behind)
        if found in FOREIGN and not (kind == "text" and "HTML" in found):
            raise refusal(name, found, f"{kind} (by its name)")
    return _records_of(kind, file, name, table, lines, start, stop)


def _records_of(
    kind: str, file: BufferedReader, name: str, table: Table, lines: LineReader | None, start: int, stop: int | None
) -> Iterator[Row | BadRecord]:
    if kind == "tsv":
        return read_tsv(file, name, table, start, stop)
    if kind == "csv":
        return read_csv(file, name, table)
    if kind == "jsonl":
        return read_jsonl(file, start, stop)
    if kind == "json":
        return read_json(file, name)
    if kind == "parquet":
        file = file if file.seekable() else BufferedReader(io.BytesIO(file.read()))
        return read_parquet(file, name, start, stop)
    return read_with(lines, file) if lines is not None else read_text(file, start, stop)


def undamaged(read: Iterable[Row | BadRecord]) -> Iterator[Row | BadRecord]:
    """The records up to where damage ends their reading, and then one bad record that says so."""
    try:
        yield from read
    except DamagedError as damage:
        yield BadRecord(damage.reason, "")
