"""Raw web text as documents: WET and WARC, JSON lines, Parquet and plain text, compressed or not.

A file is read as a stream: no record of more than a limit is ever held. A record that cannot be read comes as Damaged,
and reading goes on behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mixtura.platform.containers import HEAD_BYTES, UTF8_BOM, DamagedError, refusal, unpacked, what_begins
from mixtura.platform.corpus.byte_stream import ByteStream
from mixtura.platform.corpus.documents import Damaged, Document, Origin, sample_of, utc_timestamp
from mixtura.platform.corpus.html_pages import NoTextError, check_extractor, page_text
from mixtura.platform.corpus.warc import BrokenRecord, Record, read_records, too_large
from mixtura.platform.errors import DataError
from mixtura.platform.filesystems import last_name, opened, shown

Item = Document | Damaged

LARGEST_RECORD_BYTES = 32 << 20
_PARQUET_ROWS = 64
NOT_UTF8 = "text that is not UTF-8"
NO_TEXT = "no text under any known name"
EMPTY = "empty text"
NO_ADDRESS = "record without an address"
NO_DATE = "record without a date"

# Names of fields in published corpora, the surest first; a dot goes into an object.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "raw_content", "content", "maintext"),
    "url": (
        *("url", "warc_url", "warc_target_uri", "WARC-Target-URI", "uri", "source_url"),
        *("metadata.warc_url", "metadata.url", "meta.url", "warc_headers.warc-target-uri"),
    ),
    "timestamp": (
        *("timestamp", "warc_date", "WARC-Date", "date_download", "fetch_time", "crawl_date", "date"),
        *("metadata.warc_date", "metadata.timestamp", "metadata.date", "meta.timestamp", "warc_headers.warc-date"),
    ),
    "language": ("language", "lang", "metadata.language", "warc_identified_content_language"),
    "language_probability": ("language_probability", "language_score", "lang_score", "metadata.language_score"),
    "record_id": ("warc_record_id", "WARC-Record-ID", "record_id", "id"),
}
_JSON_LINES = ("jsonl", "json", "ndjson", "jsonlines")
_EXPECTED = "WET, WARC, JSON lines, Parquet or plain text (.wet, .warc, .jsonl, .json, .parquet, .txt, and .gz or .zst)"


def read_documents(path: str, largest: int = LARGEST_RECORD_BYTES) -> Iterator[Item]:
    """The documents of a file anywhere, and the records that give none, in the file's order.

    A file that is no known format is refused with a DataError as soon as the first one is asked for.
    """
    with opened(path) as file:
        if file.peek(4)[:4] == b"PAR1":
            yield from _read_parquet(file, shown(path), largest)
            return
        stream = ByteStream(unpacked(file))
        try:
            stream.reach(1)
        except DamagedError as damage:
            stream.postpone(damage)
        head = bytes(stream.data[:HEAD_BYTES])
        yield from _format(path, head, is_empty=stream.has_ended and not head)(stream, shown(path), largest)


def _format(path: str, head: bytes, *, is_empty: bool) -> Callable[[ByteStream, str, int], Iterator[Item]]:
    """Which reader a file needs: by its first bytes where these are sure, then by its name.

    A file that is not empty may have no first bytes, if it is damaged there.
    """
    ending = re.sub(r"\.(gz|zst|zstd)$", "", last_name(path).lower()).rpartition(".")[2]
    begin = head.removeprefix(UTF8_BOM).lstrip()
    found = what_begins(head) if head or is_empty else "text"
    found = "a JSON array" if begin.startswith(b"[") and ending in _JSON_LINES else found
    if begin.startswith(b"WARC/") or (ending in ("wet", "warc") and not is_empty):
        return _read_warc
    if found in ("text", "JSON") and ending in _JSON_LINES:
        return _read_json_lines
    if found in ("text", "JSON", "UTF-16 text") and ending in ("txt", "text", "md"):
        return _read_text
    if begin.startswith(b"{"):
        return _read_json_lines
    raise refusal(shown(path), found, _EXPECTED)


def _read_warc(stream: ByteStream, file: str, largest: int) -> Iterator[Item]:
    for record in read_records(stream, largest):
        if isinstance(record, BrokenRecord):
            where = Origin(file, record.position, "byte", record.record_id)
            yield Damaged(record.reason, where, record.sample)
            continue
        fields = record.fields
        where = Origin(file, record.position, "byte", fields.get("warc-record-id", ""))
        kind = fields.get("warc-type", "").lower()
        if kind == "conversion":
            yield _document_of_wet(record, where)
        elif kind == "response":
            yield _document_of_response(record, where, largest)
        else:
            yield Damaged(f"record of type {_known(kind)}", where, sample_of(record.body), is_intact=True)


def _known(kind: str) -> str:
    """A record's type as a reason may name it: reasons are counted, so they are few."""
    return kind if kind in ("warcinfo", "request", "metadata", "revisit", "resource", "continuation") else "unknown"


def _document_of_wet(record: Record, where: Origin) -> Item:
    try:
        text = record.body.decode()
    except UnicodeDecodeError:
        return Damaged(NOT_UTF8, where, sample_of(record.body))
    return _dated(_document(text, record.fields, where))


def _document_of_response(record: Record, where: Origin, largest: int) -> Item:
    check_extractor()
    try:
        return _dated(_document(page_text(record.body, largest), record.fields, where))
    except NoTextError as error:
        return Damaged(error.reason, where, sample_of(record.body), error.is_intact)


def _dated(item: Item) -> Item:
    """A page of a crawl, which has an address and a date: C4's code leaves out those that have none."""
    if isinstance(item, Damaged):
        return item
    missing = NO_DATE if item.url and not item.timestamp else None if item.url else NO_ADDRESS
    return item if missing is None else Damaged(missing, item.origin, sample_of(item.text))


def _document(text: str, fields: Mapping[str, str], where: Origin) -> Item:
    if not text or text.isspace():
        return Damaged(EMPTY, where, is_intact=True)
    return Document(
        text=text,
        origin=where,
        url=fields.get("warc-target-uri", "").strip("<>"),
        timestamp=utc_timestamp(fields.get("warc-date", "")),
        language=fields.get("warc-identified-content-language") or None,
    )


def _lines(stream: ByteStream, largest: int) -> Iterator[bytes | tuple[str, bytes]]:
    """The lines of a stream without their ends (LF or CRLF); for one that cannot be read the reason and its begin."""
    searched = 0
    while True:
        try:
            end = stream.data.find(b"\n", searched)
            if end >= 0 or stream.has_ended:
                if end < 0 and not stream.data:
                    return
                line = stream.take(end + 1 if end >= 0 else len(stream.data))
                searched = 0
                yield line.rstrip(b"\r\n") if len(line) <= largest else (too_large(largest), line[:400])
                continue
            searched = len(stream.data)
            if searched > largest:
                yield too_large(largest), bytes(stream.data[:400])
                _skip_line(stream)
                searched = 0
            else:
                stream.reach(searched + 1)
        except DamagedError as damage:
            yield damage.reason, bytes(stream.data[:400])
            stream.drop()
            searched = 0


def _skip_line(stream: ByteStream) -> None:
    while (end := stream.data.find(b"\n")) < 0:
        stream.drop()
        if not stream.reach(1):
            return
    stream.drop(end + 1)


def _read_json_lines(stream: ByteStream, file: str, largest: int) -> Iterator[Item]:
    for number, line in enumerate(_lines(stream, largest), start=1):
        where = Origin(file, number, "line")
        if isinstance(line, tuple):
            yield Damaged(line[0], where, sample_of(line[1]))
        elif line := line.removeprefix(UTF8_BOM) if number == 1 else line:
            yield _parsed(line, where)
        else:
            yield Damaged("empty line", where, is_intact=True)


def _parsed(line: bytes, where: Origin) -> Item:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return Damaged(NOT_UTF8, where, sample_of(line))
    except (ValueError, RecursionError):
        return Damaged("not JSON", where, sample_of(line))
    if not isinstance(row, dict):
        return Damaged("JSON that is no object", where, sample_of(line))
    return _document_of_row(row, where, line)


def _document_of_row(row: Mapping[str, Any], where: Origin, line: bytes = b"") -> Item:
    text = _value(row, "text")
    sample = sample_of(line) if line else sample_of(str(text or dict(row)))
    if not isinstance(text, str):
        return Damaged(NO_TEXT, where, sample)
    if not text or text.isspace():
        return Damaged(EMPTY, where, sample, is_intact=True)
    if not text.isascii() and _is_half(text):
        return Damaged("text with half of a surrogate pair", where, sample)
    probability = _value(row, "language_probability")
    return Document(
        text=text,
        origin=Origin(where.file, where.position, where.unit, _whole(_plain(_value(row, "record_id")))),
        url=_whole(_plain(_value(row, "url"))),
        timestamp=utc_timestamp(_plain(_value(row, "timestamp"))),
        language=_whole(_plain(_value(row, "language"))) or None,
        language_probability=float(probability) if isinstance(probability, int | float) else None,
    )


def _is_half(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _whole(text: str) -> str:
    """A name without halves of characters, which no file could hold."""
    return text.encode(errors="replace").decode()


def _value(row: Mapping[str, Any], field: str) -> Any:
    """The first of a field's known names that the row has a value for."""
    for name in _FIELDS[field]:
        outer, _, inner = name.partition(".")
        value = row.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, Mapping | list):
            return value
    return None


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _read_text(stream: ByteStream, file: str, largest: int) -> Iterator[Item]:
    """A plain text file is one document."""
    where = Origin(file, 0, "byte")
    try:
        fits = not stream.reach(largest + 1)
    except DamagedError as damage:
        yield Damaged(damage.reason, where, sample_of(bytes(stream.data[:400])))
        return
    if not fits:
        yield Damaged(too_large(largest), where, sample_of(bytes(stream.data[:400])))
        return
    data = bytes(stream.data)
    charset = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(charset).replace("\r\n", "\n")
    except UnicodeDecodeError:
        yield Damaged(NOT_UTF8, where, sample_of(data))
        return
    yield _document(text, {}, where)


def _read_parquet(file: Any, name: str, largest: int) -> Iterator[Item]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} is a Parquet file that cannot be read: {str(error)[:300]}; fetch it again") from error
    names = table.schema_arrow.names
    if not any(text in names for text in _FIELDS["text"]):
        raise DataError(
            f"{name} has no column of text; expected one of {', '.join(_FIELDS['text'])}, found {', '.join(names)}"
        )
    wanted = {known.partition(".")[0] for fields in _FIELDS.values() for known in fields}
    columns = [column for column in names if column in wanted]
    first = 0
    for group in range(table.num_row_groups):
        row = first
        try:
            for batch in table.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=columns, use_threads=False):
                for values in batch.to_pylist():
                    where = Origin(name, row, "row")
                    row += 1
                    if len(_plain(_value(values, "text"))) > largest:
                        yield Damaged(too_large(largest), where, sample_of(_plain(_value(values, "text"))))
                    else:
                        yield _document_of_row(values, where)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            yield Damaged("rows of a Parquet file that cannot be read", Origin(name, row, "row"))
        first += table.metadata.row_group(group).num_rows
