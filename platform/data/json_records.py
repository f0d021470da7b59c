"""Records from JSON: one object a line, or one document."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from typing import Any, Literal

from mixtura.platform.containers import HEAD_BYTES, UTF8_BOM, DamagedError, refusal, what_begins
from mixtura.platform.data.lines import (
    BUFFER_BYTES,
    HALF_A_CHARACTER,
    LINE_BYTES,
    LONG_LINE,
    SAMPLE_CHARACTERS,
    raw_lines,
    text_lines,
    without_bom,
)
from mixtura.platform.data.task import BadRecord, Row

_FIRST_LINES = 20
_DOCUMENT_BYTES = 1 << 30
_DEPTH = 100
_TWICE = "an object with a key twice"
_DEEP = f"nested more than {_DEPTH} deep"
# The begin of an array, or of an object whose first values are plain and the next one is an array or an object.
_PLAIN = rb'"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[-+.\w]+)\s*,\s*'
_DOCUMENT = re.compile(rb"\s*(?:\[|\{\s*(?:" + _PLAIN + rb')*"[^"\\]*"\s*:\s*[\[{])')


def read_jsonl(file: BufferedReader, start: int = 0, stop: int | None = None) -> Iterator[Row | BadRecord]:
    """One JSON object a line."""
    lines = raw_lines(file, start, stop)
    return _json_lines(without_bom(lines) if start == 0 else lines)


def _json_lines(lines: Iterable[bytes | BadRecord]) -> Iterator[Row | BadRecord]:
    for line in text_lines(lines):
        if isinstance(line, BadRecord):
            yield line
        elif not line.strip():
            yield BadRecord("empty line", "")
        else:
            yield _parsed_line(line)


class _KeyTwiceError(ValueError):
    """An object with a key twice: readers differ in which of the values counts."""


def _unambiguous(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise _KeyTwiceError
    return row


_line_decoder = json.JSONDecoder(object_pairs_hook=_unambiguous)


def _parsed_line(line: str) -> Row | BadRecord:
    try:
        value = _line_decoder.decode(line)
    except (ValueError, RecursionError) as error:
        return BadRecord(_json_fault(error, line), line[:SAMPLE_CHARACTERS])
    if not isinstance(value, dict):
        return BadRecord("not an object", line[:SAMPLE_CHARACTERS])
    # Most lines have no such escape and few brackets: what they hold needs no second look.
    fault = _half_a_character(value) if "\\ud" in line or "\\uD" in line else None
    if fault is None and any(isinstance(part, dict | list) for part in value.values()) and _brackets(line) > _DEPTH:
        fault = _too_deep(value)
    return BadRecord(fault, line[:SAMPLE_CHARACTERS]) if fault else value


def _json_fault(error: Exception, line: str) -> str:
    if isinstance(error, _KeyTwiceError):
        return _TWICE
    if not isinstance(error, json.JSONDecodeError | RecursionError):
        return "a number of too many digits"
    # Which of the two errors it is depends on how deep the caller itself is called.
    return _DEEP if _brackets(line) > _DEPTH and _deepest(line) > _DEPTH else "not JSON"


def _brackets(line: str) -> int:
    return line.count("[") + line.count("{")


def _deepest(line: str) -> int:
    """The most brackets that are open at once, not counting that some may stand in strings.

    >>> _deepest('{"a": [[1], [2]]')
    3
    """
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", line))
    return max(itertools.accumulate(steps), default=0)


class _Ambiguous(dict[str, Any]):
    """An object with a key twice."""


def _kept(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    return row if len(row) == len(pairs) else _Ambiguous(row)


def _containers(value: Any) -> Iterator[list[Any]]:
    """The objects and arrays of a JSON value, those of each depth together."""
    level = [value]
    while level:
        yield level
        below = (part.values() if isinstance(part, dict) else part for part in level)
        level = [part for parts in below for part in parts if isinstance(part, dict | list)]


def _too_deep(value: Any) -> str | None:
    """What Python can nest depends on where it runs, so a fixed depth is the limit."""
    return _DEEP if next(itertools.islice(_containers(value), _DEPTH, None), None) else None


def _half_a_character(value: Any) -> str | None:
    """An escape may give half of a surrogate pair, which no file could hold again."""
    try:
        for part in itertools.chain.from_iterable(itertools.islice(_containers(value), _DEPTH)):
            for text in itertools.chain(part, part.values()) if isinstance(part, dict) else part:
                if isinstance(text, str) and not text.isascii():
                    text.encode()
    except UnicodeEncodeError:
        return HALF_A_CHARACTER
    return None


def _key_twice(value: Any) -> str | None:
    levels = itertools.chain.from_iterable(itertools.islice(_containers(value), _DEPTH))
    return _TWICE if any(isinstance(part, _Ambiguous) for part in levels) else None


def read_json(file: BufferedReader, name: str) -> Iterator[Row | BadRecord]:
    """JSON in any of its layouts: one object a line, or one document, which is an array of objects, an object whose
    keys are numbers (its values, in order), or an object with the array `data` (its elements)."""
    first: list[bytes] = []
    damage: DamagedError | None = None
    try:
        while len(first) < _FIRST_LINES and sum(map(len, first)) <= LINE_BYTES:
            if not (line := file.readline(LINE_BYTES + 1)):
                break
            first.append(line if first else line.removeprefix(UTF8_BOM))
    except DamagedError as error:
        damage = error
    whole = _after(b"".join(first), file, damage)
    ended = damage is None and len(first) < _FIRST_LINES and sum(map(len, first)) <= LINE_BYTES
    if not _begins_document(first, ended=ended):
        return _json_lines(raw_lines(whole))
    data = b""
    if _is_long(first[0] if first else b""):
        data = whole.readline(_DOCUMENT_BYTES + 1)
        if (behind := whole.read(HEAD_BYTES)).strip():
            long = BadRecord(LONG_LINE, data[:SAMPLE_CHARACTERS].decode(errors="replace"))
            return itertools.chain([long], _json_lines(raw_lines(_after(behind, whole))))
    data += whole.read(_DOCUMENT_BYTES + 1 - len(data))
    if len(data) > _DOCUMENT_BYTES:
        raise refusal(name, f"one JSON document of more than {_DOCUMENT_BYTES >> 30} GiB", "one object a line")
    return _document(data, name)


class _Rejoined(io.RawIOBase):
    """Bytes that were read already, the damage that was met behind them, and then the rest of their file."""

    def __init__(self, head: bytes, file: BufferedReader, damage: DamagedError | None) -> None:
        self._head, self._file, self._damage = io.BytesIO(head), file, damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if count := self._head.readinto(buffer):
            return count
        if self._damage:
            damage, self._damage = self._damage, None
            raise damage
        return self._file.readinto1(buffer)


def _after(head: bytes, file: BufferedReader, damage: DamagedError | None = None) -> BufferedReader:
    return BufferedReader(_Rejoined(head, file, damage), BUFFER_BYTES)


def _is_long(line: bytes) -> bool:
    return len(line) > LINE_BYTES and not line.endswith(b"\n")


def _begins_document(first: Sequence[bytes], *, ended: bool) -> bool:
    """Whether the first lines are the begin of one document, rather than a record each; `ended` if they are all.

    No line of a document is whole by itself, and one that breaks off in a string, or where a line before it would have
    had to go on, is a bad record among others.
    """
    begin = b""
    lines = [line for line in first if line.strip()]
    for number, line in enumerate(lines, start=1):
        if _is_long(line):
            return bool(begin) or _DOCUMENT.match(line) is not None
        begin += line
        state = _state(begin)
        if state != "begun":
            is_all = ended and number == len(lines)
            return is_all if number == 1 else is_all or state == "whole"
    return ended or bool(begin)


def _state(text: bytes) -> Literal["whole", "begun", "broken"]:
    """Whether JSON is all there, or breaks off at its end only, or is none."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return "begun" if error.pos >= len(error.doc.rstrip()) else "broken"
    except (ValueError, RecursionError):
        return "broken"
    return "whole"


def _document(data: bytes, name: str) -> Iterator[Row | BadRecord]:
    try:
        value = json.loads(data, object_pairs_hook=_kept)
    except UnicodeDecodeError:
        raise refusal(name, "not UTF-8", "JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        found = what_begins(data[:HEAD_BYTES]) if not data.strip() else f"neither JSON lines nor one document{where}"
        raise refusal(name, found, "JSON") from None
    del data
    for element in _elements(value):
        if not isinstance(element, dict):
            yield BadRecord("not an object", _shown(element))
            continue
        fault = _too_deep(element) or _half_a_character(element) or _key_twice(element)
        yield BadRecord(fault, _shown(element)) if fault else element


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)[:SAMPLE_CHARACTERS]
    except RecursionError:
        return ""


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
