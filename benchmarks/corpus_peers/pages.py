"""The pages that `benchmarks/corpus.py` gives to all sides: real ones, altered ones, and as many as are wanted."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from mixtura.platform.corpus.documents import Document
from mixtura.platform.corpus.readers import read_documents
from mixtura.platform.corpus.rules import Rules, clean_page

FOLDERS = ("wet_from_html", "wet", "common_crawl_docs")
FILE_BYTES = 20_000_000
OF_A_LINE = Rules(fewest_sentences=0)
"""The rules, asked of a line alone."""

BEHIND = (
    *(".", "...", "!", "?", ",", ":", ")", ".)", "..", " .", '"', "[1]", "?..", '..."'),
    *("\N{HORIZONTAL ELLIPSIS}", "\N{RIGHT DOUBLE QUOTATION MARK}", " { }.", " and JavaScript.", " Lorem Ipsum dolor."),
    *(" are the terms of use.", " We Use Cookies.", "\nIt was. And so.", "\rContent-Length: 5 is what it said."),
    *(f" {'x' * length} and so on." for length in (999, 1000, 1001)),
    # Of two rules that a line breaks, the first decides.
    *(" Lorem ipsum, {JavaScript}.", " Lorem ipsum of JavaScript.", " {JavaScript}.", " {our privacy policy}."),
    *(" JavaScript uses cookies.", " Lorem ipsum uses cookies.", f" {'x' * 1001} {{lorem ipsum}}."),
)
BETWEEN = (
    *(
        "[3] ",
        "[] ",
        "[edit] ",
        "[citation needed] ",
        " [x] ",
        " [",
        ") ",
        '" ',
        ' "',
        "' ",
        "... ",
        "?! ",
        " -- ",
        "--",
    ),
    *("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r", "\t", "\xa0", "\u3000", "\u200b"),
    *("\N{LEFT DOUBLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK} ", "\N{HORIZONTAL ELLIPSIS} "),
)
BEFORE = (
    "Dr. ",
    "e.g. ",
    "U.S. ",
    "3.5 ",
    "No. ",
    "A. B. ",
    "It did. ",
    "p.m. ",
    "Sun. ",
    "i.e., ",
    "1. ",
    "caf\xe9. ",
)
ASKED_FOR = (" javascript", " { ", " Lorem ipsum", " privacy policy", " cookie policy", " uses cookies", " use cookies")


def raw_pages(web: Path) -> Iterator[Document]:
    """Each page once."""
    seen = set()
    for path in (path for name in FOLDERS for path in sorted((web / name).iterdir())):
        for item in read_documents(str(path)):
            if isinstance(item, Document) and item.text not in seen:
                seen.add(item.text)
                yield item


def lines_of(pages: Sequence[Document]) -> list[str]:
    """All different lines that the rules keep."""
    lines = {line for page in pages for line in page.text.split("\n")}
    return sorted(line for line in lines if clean_page(line, OF_A_LINE, lambda *_: 0).text)


def mutated(text: str, chance: random.Random) -> str:
    """A page with a few lines changed into what rules ask about."""
    lines = text.split("\n")
    for _ in range(chance.randrange(1, 8)):
        place = chance.randrange(len(lines))
        line = lines[place]
        match chance.randrange(4):
            case 0:
                lines[place] = line[: chance.randrange(len(line) + 1)]
            case 1:
                lines[place] = line + chance.choice(BEHIND)
            case 2:
                lines[place] = line.replace(" ", chance.choice(BETWEEN), 2) + "."
            case _:
                lines[place] = chance.choice(BEFORE) + line
    return "\n".join(lines)


def short_page(lines: Sequence[str], chance: random.Random) -> str:
    """A page near three sentences, so that each one counts, with several things that rules ask about in a line, so that
    their order counts. Long pages tell neither."""

    def part() -> str:
        words = chance.choice(lines).split()[: chance.randrange(2, 12)]
        words.insert(chance.randrange(len(words) + 1), chance.choice(BEFORE).strip())
        asked = chance.choices(ASKED_FOR, k=chance.choice((0, 0, 0, 1, 2)))
        return " ".join(words) + "".join(asked) + chance.choice((".", ".", "?", "!", ""))

    def line() -> str:
        parts = [part() + chance.choice((" ", " ", *BETWEEN)) for _ in range(chance.randrange(3))]
        return "".join(parts) + part() + chance.choice((".", ".", ".", *BEHIND))

    return "\n".join(line() for _ in range(chance.randrange(1, 4)))


def write_copies(pages: Sequence[Document], folder: Path, size: float) -> None:
    """Write at least `size` MB of raw text as WET: files of 20 MB, a gzip member for each record, as crawls have them.

    The first copy is the pages as they are. In each further one, lines that the rules keep have all words but the last
    in another order, drawn anew for each line and copy, and addresses and dates are others. So a copy keeps lengths,
    end marks, words (and with them languages and bad words) and what the rules make of nearly each page. Lines equal in
    the pages are equal in the copy, and differ between copies, but for short ones and those of languages without blanks
    between words. Lines that the rules leave out stay as they are. Not kept: phrases, and so the sense; and that in a
    larger crawl a larger share of lines repeats.

    Of the pages used here the rules keep 1,436 with 29,043 lines, 95.0 % of them new; of the sixth copy 1,435 with
    29,040 lines, 94.2 % of them new to the corpus.
    """
    words = {line: line.split() for line in lines_of(pages)}
    folder.mkdir(parents=True)
    records, held, files = [], 0, count()
    left = size * 1e6
    for copy in count():
        for page in pages:
            text = page.text if copy == 0 else "\n".join(_altered(line, words, copy) for line in page.text.split("\n"))
            body = text.encode()
            records.append(_record(page, body, copy))
            held, left = held + len(body), left - len(body)
            if held >= FILE_BYTES or left <= 0:
                (folder / f"{next(files):05d}.warc.wet.gz").write_bytes(b"".join(records))
                records, held = [], 0
            if left <= 0:
                return


def _altered(line: str, words: Mapping[str, list[str]], copy: int) -> str:
    if line not in words:
        return line
    *others, last = words[line]
    random.Random(f"{copy} {line}").shuffle(others)
    return " ".join((*others, last))


def _record(page: Document, body: bytes, copy: int) -> bytes:
    address = page.url or f"http://example.com/{page.origin.position}"
    if copy:  # in front: what follows `?ref` or `?utm_` does not count in an address
        address = f"http://copy-{copy}.com/{address}"
    header = (
        f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: {address}\r\n"
        f"WARC-Date: 2024-01-{1 + copy % 28:02d}T00:00:00Z\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return gzip.compress(header.encode() + body + b"\r\n\r\n", compresslevel=3)
