"""Records from the bytes of files: tables, JSON, Parquet, plain and line-aligned text, also compressed.

Records come exactly as the file has them: a table's fields as text under its column names, JSON and Parquet in their
own types. What cannot be read comes as a `BadRecord` in its place, whose reason names the fault and never the data; all
records around it arrive. Memory holds one line, one CSV record or one Parquet row group at a time; only a `.json` file
that is a single document, and Parquet inside gzip or zip, are read whole. A file that is not of its kind at all (a web
page, a Git LFS pointer) is a DataError.
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
from typing import Any

from mixtura.platform.data.containers import FOREIGN, HEAD_BYTES, UTF8_BOM, DamagedError, refusal, what_begins
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
_LINE_BYTES = 16 << 20
_LONG_LINE = f"line of more than {_LINE_BYTES >> 20} MiB"
_FIRST_LINES = 20
_SAMPLE_CHARACTERS = 300
_BUFFER_BYTES = 1 << 20
# A lone high surrogate, which no decoding gives: stands for a line too long to hold where plain text is wanted.
_TOO_LONG = "\ud800"


def kind_of(name: str) -> str | None:
    """How a file is read, by its suffix (and beneath `.gz`).

    >>> kind_of("c4-train.00000-of-01024.json.gz"), kind_of("train.TSV"), kind_of("README")
    ('json', 'tsv', None)
    """
    plain = name.lower().removesuffix(".gz")
    return next((kind for suffix, kind in KINDS.items() if plain.endswith(suffix)), None)


def raw_lines(file: BufferedReader, start: int = 0, stop: int | None = None) -> Iterator[bytes | BadRecord]:
    """The lines that begin at a byte in [start, stop), each with its line end; overlong ones as bad records.

    Ranges that meet therefore give each line once: a line that reaches over a border belongs to where it begins.

    >>> [list(raw_lines(io.BytesIO(b"ab\\ncd\\ne"), *part)) for part in ((0, 4), (4, 7))]
    [[b'ab\\n', b'cd\\n'], [b'e']]
    """
    position = start
    if start:
        file.seek(start - 1)
        position = start - 1 + _skip_line(file)
    while stop is None or position < stop:
        line = file.readline(_LINE_BYTES + 1)
        if not line:
            return
        position += len(line)
        if len(line) <= _LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        position += _skip_line(file)
        yield BadRecord(_LONG_LINE, line[:_SAMPLE_CHARACTERS].decode(errors="replace"))


def _skip_line(file: BufferedReader) -> int:
    """Read to behind the next line end, holding no more than a piece; how many bytes that were."""
    count = 0
    while piece := file.readline(_BUFFER_BYTES):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def _without_bom(lines: Iterable[bytes | BadRecord]) -> Iterator[bytes | BadRecord]:
    for number, line in enumerate(lines):
        yield line.removeprefix(UTF8_BOM) if number == 0 and isinstance(line, bytes) else line


def text_lines(lines: Iterable[bytes | BadRecord]) -> Iterator[str | BadRecord]:
    """Lines as text without their line ends (LF or CRLF, and nothing else ends a line)."""
    for line in lines:
        if isinstance(line, BadRecord):
            yield line
            continue
        bare = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield bare.decode()
        except UnicodeDecodeError:
            yield BadRecord("not UTF-8", bare[:_SAMPLE_CHARACTERS].decode(errors="replace"))


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
    first = list(itertools.islice(_tsv_rows(file, 0, None), _FIRST_LINES))
    columns, has_header = table.columns(_good(first), name)
    file.seek(0)
    rows = _tsv_rows(file, start, stop)
    return _as_records(_without_header(rows) if has_header and start == 0 else rows, columns)


def _tsv_rows(file: BufferedReader, start: int, stop: int | None) -> Iterator[list[str] | BadRecord]:
    lines = raw_lines(file, start, stop)
    for line in text_lines(_without_bom(lines) if start == 0 else lines):
        if isinstance(line, BadRecord):
            yield line
        else:
            yield line.split("\t") if line else BadRecord("empty line", "")


def _good(rows: Iterable[list[str] | BadRecord]) -> list[list[str]]:
    return [row for row in rows if isinstance(row, list)]


def _table_records(rows: Iterator[list[str] | BadRecord], table: Table, name: str) -> Iterator[Row | BadRecord]:
    """Rows from the first on, with their column names; damage in the first lines is met again after them."""
    first: list[list[str] | BadRecord] = []
    damage: DamagedError | None = None
    try:
        first.extend(itertools.islice(rows, _FIRST_LINES))
    except DamagedError as error:
        damage = error
    if damage and not first:
        raise damage
    columns, has_header = table.columns(_good(first), name)
    yield from _as_records(_without_header(first) if has_header else first, columns)
    if damage:
        raise damage
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
            fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
            yield BadRecord(f"{fields}, the table has {len(columns)}", "\t".join(row)[:_SAMPLE_CHARACTERS])
        else:
            yield dict(zip(columns, row, strict=True))


class _Again:
    """An iterator over lines that can be put back."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._back = lines, collections.deque[str]()
        self.taken: list[str] = []

    def __iter__(self) -> _Again:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self.taken.append(line)
        return line

    def put_back(self) -> str:
        """Give back all lines taken but the first, which is returned."""
        first, *rest = self.taken
        self._back.extendleft(reversed(rest))
        return first


def read_csv(file: BufferedReader, name: str, table: Table) -> Iterator[Row | BadRecord]:
    """Comma-separated fields with quotes (RFC 4180), which may hold line ends."""
    return _table_records(_csv_rows(file), table, name)


def _csv_rows(file: BufferedReader) -> Iterator[list[str] | BadRecord]:
    """Where quotes do not fit, one line is the bad record and reading goes on with the next one."""
    csv.field_size_limit(max(csv.field_size_limit(), _LINE_BYTES))
    lines = _Again(_escaped(_without_bom(raw_lines(file))))
    reader = csv.reader(lines, strict=True)
    while True:
        lines.taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield BadRecord("quotes that do not fit", lines.put_back()[:_SAMPLE_CHARACTERS])
            continue
        reason = _unreadable(row)
        if reason:
            yield BadRecord(reason, _printable("".join(lines.taken)))
        else:
            yield row or BadRecord("empty line", "")


def _escaped(lines: Iterable[bytes | BadRecord]) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 stand in them as lone surrogates, found again in the records."""
    for line in lines:
        yield _TOO_LONG + "\n" if isinstance(line, BadRecord) else line.decode(errors="surrogateescape")


def _unreadable(values: Iterable[Any]) -> str | None:
    texts = [value for value in values if isinstance(value, str) and not value.isascii()]
    if any(_TOO_LONG in text for text in texts):
        return _LONG_LINE
    return "not UTF-8" if any("\udc80" <= char <= "\udcff" for text in texts for char in text) else None


def _printable(text: str) -> str:
    return text[:_SAMPLE_CHARACTERS].encode(errors="replace").decode()


def read_text(file: BufferedReader, start: int = 0, stop: int | None = None) -> Iterator[Row | BadRecord]:
    """One record a line: `{"text": line}`."""
    lines = raw_lines(file, start, stop)
    for line in text_lines(_without_bom(lines) if start == 0 else lines):
        yield line if isinstance(line, BadRecord) else {"text": line}


def read_with(reader: LineReader, file: BufferedReader) -> Iterator[Row | BadRecord]:
    """The records that a task's own `reader` makes of the lines; one that holds an unreadable line is a bad record."""
    bare = (line.removesuffix("\n").removesuffix("\r") for line in _escaped(_without_bom(raw_lines(file))))
    for record in reader(bare):
        if isinstance(record, BadRecord):
            yield BadRecord(record.reason, _printable(record.text))
            continue
        reason = _unreadable(record.values())
        yield BadRecord(reason, _printable(json.dumps(record, ensure_ascii=False))) if reason else record


def read_jsonl(file: BufferedReader, start: int = 0, stop: int | None = None) -> Iterator[Row | BadRecord]:
    """One JSON object a line."""
    lines = raw_lines(file, start, stop)
    return _json_lines(_without_bom(lines) if start == 0 else lines)


def _json_lines(lines: Iterable[bytes | BadRecord]) -> Iterator[Row | BadRecord]:
    for line in text_lines(lines):
        if isinstance(line, BadRecord):
            yield line
        elif not line.strip():
            yield BadRecord("empty line", "")
        else:
            yield _parsed_line(line)


def _parsed_line(line: str) -> Row | BadRecord:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return BadRecord("not JSON", line[:_SAMPLE_CHARACTERS])
    fault = _fault(value, doubtful="\\u" in line)
    return BadRecord(fault, line[:_SAMPLE_CHARACTERS]) if fault else value


def _fault(value: Any, doubtful: bool) -> str | None:
    """Why a JSON value is no row; an escape may give half a character, which no file could hold again."""
    if not isinstance(value, dict):
        return "not an object"
    if doubtful:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half of a surrogate pair"
    return None


def read_json(file: BufferedReader, name: str) -> Iterator[Row | BadRecord]:
    """JSON in any of its layouts: one object a line, or one document, which is an array of objects, an object whose
    keys are numbers (its values, in order), or an object with the array `data` (its elements)."""
    first: list[bytes] = []
    while len([line for line in first if line.strip()]) < 2 and len(first) < _FIRST_LINES:
        first.append(file.readline(_LINE_BYTES + 1).removeprefix(b"" if first else UTF8_BOM))
        if not first[-1].endswith(b"\n"):
            break
    if _begins_document([line for line in first if line.strip()]):
        return _document(b"".join(first) + file.read(), name)
    return _json_lines(itertools.chain(filter(None, first), raw_lines(file)))


def _begins_document(first: Sequence[bytes]) -> bool:
    """Whether the first two lines are the begin of one document, rather than a record each."""
    if len(first) < 2 or first[0].lstrip().startswith(b"[") or first[0].strip() == b"{":
        return True
    return not (_is_object(first[0]) or _is_object(first[1]))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _document(data: bytes, name: str) -> Iterator[Row | BadRecord]:
    try:
        value = json.loads(data)
    except UnicodeDecodeError:
        raise refusal(name, "not UTF-8", "JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        found = what_begins(data[:HEAD_BYTES]) if not data.strip() else f"neither JSON lines nor one document{where}"
        raise refusal(name, found, "JSON") from None
    doubtful = b"\\u" in data
    del data
    for element in _elements(value):
        fault = _fault(element, doubtful)
        yield BadRecord(fault, json.dumps(element)[:_SAMPLE_CHARACTERS]) if fault else element


def _elements(value: Any) -> Iterable[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        if value and all(key.isdecimal() for key in value):
            return value.values()
        for key in ("data", "Data"):
            if isinstance(value.get(key), list):
                return list(value[key])
    return [value]


def read_aligned(
    files: Sequence[BufferedReader], names: Sequence[str], fields: Sequence[str]
) -> Iterator[Row | BadRecord]:
    """One record of the n-th lines of all files; files of different lengths are refused."""
    counts = [0] * len(files)
    sides = [text_lines(_without_bom(raw_lines(file))) for file in files]
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
    return BadRecord(bad, " ||| ".join(texts)[:_SAMPLE_CHARACTERS]) if bad else dict(zip(fields, texts, strict=True))


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
        found = what_begins(file.peek(HEAD_BYTES)[:HEAD_BYTES])
        if found in FOREIGN and not (kind == "text" and "HTML" in found):
            raise refusal(name, found, f"{kind} (by its name)")
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
    """The records up to where compressed data is damaged, and then one bad record that says so."""
    try:
        yield from read
    except DamagedError as damage:
        yield BadRecord(damage.reason, "")
