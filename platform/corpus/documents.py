"""What readers give: a page's text with where it comes from, or the reason why a record gives none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

SAMPLE_CHARACTERS = 200

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?)?|\d{14}")


@dataclass(frozen=True, slots=True)
class Origin:
    """The record that something was read from.

    >>> str(Origin("crawl.wet.gz", 1234, "byte", "<urn:uuid:9019f293>"))
    'crawl.wet.gz, byte 1,234, <urn:uuid:9019f293>'
    """

    file: str
    position: int
    """Where the record begins, in the file's decompressed content; bytes and rows count from 0, lines from 1."""
    unit: Literal["byte", "line", "row"]
    record_id: str = ""
    """The record's own name, if it has one."""

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.position:,}" + (f", {self.record_id}" if self.record_id else "")


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a page."""

    text: str
    origin: Origin
    url: str = ""
    """Empty where the source has none."""
    timestamp: str = ""
    """When the page was fetched, as `2019-04-21T10:07:13Z`; empty where the source does not say."""
    language: str | None = None
    """As the source says or a later stage has found; of several (`spa,eng`) the first has most of the text."""
    language_probability: float | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that gives no document, to be counted under its reason."""

    reason: str
    where: Origin
    sample: str = ""
    """How it begins."""
    is_intact: bool = False
    """Nothing is wrong with it, it only is no page: a crawl's own notes, an error's answer, a picture."""


def sample_of(content: bytes | str) -> str:
    """How a record begins, for people."""
    if isinstance(content, str):
        return content[:SAMPLE_CHARACTERS]
    return content[:SAMPLE_CHARACTERS].decode(errors="replace")


def utc_timestamp(text: str) -> str:
    """A date as sources write it, in one form, so that the later of two is the greater text; empty if it is none.

    >>> utc_timestamp("2019-04-21 10:07:13"), utc_timestamp("20190421100713")
    ('2019-04-21T10:07:13Z', '2019-04-21T10:07:13Z')
    >>> utc_timestamp("2019-04-21T12:07:13.5+02:00"), utc_timestamp("yesterday")
    ('2019-04-21T10:07:13Z', '')
    """
    if len(text) == 20 and text.endswith("Z") and text[10] == "T" and _TIMESTAMP.fullmatch(text):
        return text
    if not _TIMESTAMP.fullmatch(text := text.strip()):
        return ""
    try:
        time = datetime.fromisoformat(text.replace("UTC", "Z").replace(" Z", "Z") if "-" in text else _spaced(text))
    except ValueError:
        return ""
    time = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _spaced(digits: str) -> str:
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}T{digits[8:10]}:{digits[10:12]}:{digits[12:]}"
