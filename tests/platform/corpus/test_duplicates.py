"""Who stays of several equal pages and lines: as in the released code, and whatever the order and the partitions."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from mixtura.platform.corpus.duplicates import (
    kept_places,
    newest,
    places,
    with_lines,
    without_repeated_lines,
)
from mixtura.platform.corpus.sentences import sentence_counter

PAGES = some.dictionaries(
    some.text("abc", min_size=1, max_size=3), some.lists(some.sampled_from(["x", "X ", "y", "z", ""]), max_size=6)
)


@dataclass(frozen=True)
class Fetched:
    text: str
    timestamp: str


def golden(shared: Path, kind: str) -> list[dict[str, Any]]:
    with open(shared / "golden/c4.jsonl", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["kind"] == kind]
    assert rows
    return rows


def test_the_newest_page_of_an_address_stays_and_of_equally_new_ones_the_first(shared: Path) -> None:
    for row in golden(shared, "newest"):
        pages = [Fetched(page["text"], page["timestamp"]) for page in row["pages"]]
        assert newest(pages).text == row["result"]


def test_lines_stay_where_the_released_code_leaves_them(shared: Path) -> None:
    count = sentence_counter()
    for row in golden(shared, "dedupe"):
        left = without_repeated_lines({page["url"]: page["text"] for page in row["pages"]})
        assert {url: text for url, text in left.items() if count(text, 3) >= 3} == row["result"]


def test_a_line_stays_once_inside_a_page_too() -> None:
    assert without_repeated_lines({"a": "one\ntwo\nONE \nthree"}) == {"a": "one\ntwo\nthree"}


@given(pages=PAGES, partitions=some.integers(1, 5), order=some.randoms())
def test_partitions_in_any_order_give_what_all_at_once_gives(
    pages: dict[str, list[str]], partitions: int, order: Any
) -> None:
    texts = {url: "\n".join(lines) for url, lines in pages.items()}
    everywhere = [(key, place, url) for url, text in texts.items() for key, place in places(url, text)]
    order.shuffle(everywhere)
    by_partition: dict[int, list[Any]] = defaultdict(list)
    for occurrence in everywhere:
        by_partition[occurrence[0][0] % partitions].append(occurrence)
    kept: dict[str, set[int]] = defaultdict(set)
    for own in by_partition.values():
        stays = kept_places((key, place) for key, place, _ in own)
        for key, place, url in own:
            if stays[key] == place:
                kept[url].add(place.line)
    assert {url: with_lines(text, kept[url]) for url, text in texts.items()} == without_repeated_lines(texts)


@given(pages=PAGES)
def test_every_line_stays_exactly_once(pages: dict[str, list[str]]) -> None:
    texts = {url: "\n".join(lines) for url, lines in pages.items() if lines}
    left = [line for text in without_repeated_lines(texts).values() if text for line in text.split("\n")]
    said = {line.strip().lower() for text in texts.values() for line in text.split("\n")}
    assert sorted(line.strip().lower() for line in left if line.strip()) == sorted(said - {""})
