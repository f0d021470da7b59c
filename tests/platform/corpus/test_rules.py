"""The rules of C4 against what the released code said of the same pages, and where the paper says otherwise."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.config import section_of
from mixtura.platform.corpus.bad_words import BadWords
from mixtura.platform.corpus.rules import Rules, as_crawled, clean_page, has_paragraphs
from mixtura.platform.corpus.sentences import sentence_counter
from mixtura.platform.corpus.settings import PRESETS, CorpusSettings, corpus_settings
from mixtura.platform.corpus.urls import normalized, split_of
from mixtura.platform.errors import ConfigError, DataError, UnknownNameError

COUNT = sentence_counter()
RULES = {name: section_of(CorpusSettings, values, name).rules for name, values in PRESETS.items()}
THEIR_NAMES = {"loremipsum": "lorem_ipsum", "squigglybracket": "curly_bracket"}
GOOD = (
    "The harbour was quiet in the early morning light.\n"
    "Two fishermen repaired their nets beside the old pier.\n"
    "Nobody expected the storm to arrive before the evening."
)


@pytest.fixture(scope="module")
def golden(shared: Path) -> list[dict[str, Any]]:
    with open(shared / "golden/c4.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def of_kind(golden: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    rows = [row for row in golden if row["kind"] == kind]
    assert rows
    return rows


def test_pages_come_out_as_from_the_released_code_with_its_counts(golden: list[dict[str, Any]]) -> None:
    for row in of_kind(golden, "page"):
        page = clean_page(row["text"], RULES["c4"], COUNT)
        expected = row["result"]
        assert page.text == expected["clean"], row["name"]
        counters: dict[str, int] = {}
        for name, count in expected["counters"].items():
            what = name.removeprefix("clean-page/")
            if what == "line-passed":
                counters["kept"] = count
            elif what.startswith("line-filtered:"):
                reason = what.removeprefix("line-filtered:")
                counters[THEIR_NAMES.get(reason, reason)] = count
            elif what.startswith("filtered:"):
                reason = what.removeprefix("filtered:")
                assert page.reason == THEIR_NAMES.get(reason, reason), row["name"]
        assert dict(page.lines) == counters, row["name"]
        assert (page.reason is None) == (page.text is not None)


def test_addresses_splits_lengths_and_paragraphs_are_as_in_the_released_code(golden: list[dict[str, Any]]) -> None:
    for row in of_kind(golden, "normalize_url"):
        assert normalized(row["url"]) == row["result"]
    for row in of_kind(golden, "split"):
        assert split_of(normalized(row["url"])) == row["result"]
    for row in of_kind(golden, "paragraphs"):
        assert has_paragraphs(row["text"], 3, 200) == row["result"]
    for row in of_kind(golden, "length"):
        page = clean_page("x" * row["n"], Rules(clean=False), COUNT)
        assert (page.reason is None) == row["result"]
        assert clean_page("x" * 190_001, Rules(clean=False), COUNT).reason == "too_long"


def test_bad_words_are_found_as_by_the_released_code(golden: list[dict[str, Any]]) -> None:
    for row in of_kind(golden, "badwords"):
        words = BadWords.of({row["language"]: row["words"]})
        kept = [
            not words.dropped(
                page["text"], row["language"], normalized(page.get("url", "")), float(row.get("fraction", 1.0))
            )
            for page in row["pages"]
        ]
        assert kept == row["result"]


def test_of_pages_with_a_bad_word_a_share_is_left_out_by_their_address() -> None:
    words = BadWords.of({"en": ["frob"]})
    dropped = [words.dropped("a frob", "en", f"example.com/{page}", 0.5) for page in range(400)]
    assert 150 < sum(dropped) < 250
    assert not words.dropped("no such word", "en", "example.com", 1.0)


def test_words_of_languages_without_spaces_need_no_borders_and_regions_share_a_list() -> None:
    words = BadWords.of({"ja": ["悪い"], "en": ["frob"]})
    assert words.found("これは悪い言葉", "ja")
    assert words.found("a frob", "en-Latn")
    assert not words.found("a frob", "de")


def test_lists_are_files_and_a_missing_one_is_named(shared: Path, tmp_path: Path) -> None:
    words = BadWords.read({"en": shared / "data/lists/ldnoobw/en"})
    assert not words.found(GOOD, "en")
    with pytest.raises(DataError, match=r"no list of bad words for 'de' at .*missing"):
        BadWords.read({"de": tmp_path / "missing"})


def test_the_paper_s_rules_differ_from_the_code_s_only_where_the_paper_does() -> None:
    code, paper, first = (RULES[name] for name in ("c4", "c4-paper", "c4-first"))
    bracket = f"{GOOD}\nfunction() {{"
    assert clean_page(bracket, code, COUNT).text == GOOD
    assert clean_page(bracket, paper, COUNT).reason == "curly_bracket"
    filler = f"{GOOD}\nLorem ipsum dolor sit amet"
    assert clean_page(filler, code, COUNT).text == GOOD
    assert clean_page(filler, paper, COUNT).reason == "lorem_ipsum"
    both = f"{GOOD}\nPlease enable javascript in your browser {{ now }}."
    assert clean_page(both, code, COUNT).text == GOOD
    assert clean_page(both, paper, COUNT).reason == "curly_bracket"
    dots = f"{GOOD}\nAnd so it went on and on..."
    assert clean_page(dots, code, COUNT).text == GOOD
    assert clean_page(dots, paper, COUNT).text == dots
    assert clean_page(GOOD, first, COUNT).reason == "too_few_sentences"
    five = f"{GOOD}\nIt did so.\nThey ran away."
    assert clean_page(five, first, COUNT).text == five
    assert clean_page(five, paper, COUNT).text == GOOD


def test_without_cleaning_a_page_stays_as_it_is() -> None:
    text = "menu\n  {x}\n\nlorem ipsum"
    assert clean_page(text, RULES["c4-noclean"], COUNT).text == text


def test_lines_that_are_left_out_and_kept_add_up() -> None:
    text = f"Home\n{GOOD}\n\nWe use cookies on this site.\nShort one.\nTurn on JavaScript for this page, please."
    page = clean_page(text, Rules(), COUNT)
    assert page.lines == {"no_endmark": 2, "policy": 1, "too_short": 1, "javascript": 1, "kept": 3}
    assert sum(page.lines.values()) == len(text.splitlines())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith came at 5 p.m. yesterday.", 1),
        ("He left. She stayed! Why?", 3),
        ("It cost 3.50 dollars. Cheap.", 2),
        ("One without an end", 1),
        ('"Stop." He did.', 2),
        ("   ", 0),
    ],
)
def test_sentences_are_counted_by_punkt(text: str, sentences: int) -> None:
    assert COUNT(text, 9) == sentences
    assert COUNT(text, 1) == min(sentences, 1)


def test_a_folder_without_parameters_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no parameters of Punkt"):
        sentence_counter(tmp_path)


def test_a_page_is_read_as_the_crawl_s_own_files_were() -> None:
    text = "  WARC is a format.\n\nContent-Type is one, too.\n\tIt was dark. \r\n"
    assert as_crawled(text, Rules()) == ("It was dark.", 2)
    assert as_crawled(text, RULES["c4-paper"]) == ("WARC is a format.\nContent-Type is one, too.\nIt was dark.", 0)


def test_a_carriage_return_alone_ends_a_line_where_a_crawl_is_read() -> None:
    assert as_crawled("It was dark.\r\rContent-Type is text.\r\nRain fell.", Rules()) == ("It was dark.\nRain fell.", 1)


def test_a_corpus_of_a_name_needs_the_lists_that_it_stands_for() -> None:
    with pytest.raises(ConfigError, match=r"no list of them is given .* --preset c4-noblocklist"):
        corpus_settings("c4", {})
    assert corpus_settings("c4", {"bad_words": {"share": 0}}).rules == Rules()
    words = {"bad_words": {"files": {"en": "words.txt"}}}
    with pytest.raises(ConfigError, match=r"give addresses.domains=FILE"):
        corpus_settings("realnews-like", words)
    with pytest.raises(UnknownNameError, match="no preset 'c5'; nearest: 'c4'"):
        corpus_settings("c5", {})
    with pytest.raises(ConfigError, match=r"rules.fewest_word: no such key; nearest: rules.fewest_words"):
        corpus_settings("c4", {"rules": {"fewest_word": 3}})


def test_sentences_are_counted_as_punkt_does_though_most_texts_need_no_punkt(shared: Path) -> None:
    from mixtura.platform.corpus.sentences import sentence_splitter

    split = sentence_splitter()
    with gzip.open(shared / "data/web/openwebtext/openwebtext-1000.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(60), strict=False)]
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    lines += [" ".join(lines[begin : begin + 3]) for begin in range(0, len(lines), 3)]
    lines += [
        "Go. ) Then?",
        "He said so. ''",
        'End. " Next one.',
        "Approx. ten. Ltd. Co. U.S. A. B. Smith",
        "A. b! c? d.",
    ]
    assert len(lines) > 1200
    for line in lines:
        assert COUNT(line, 10_000) == len(split(line)), line
        assert COUNT(line, 3) == min(3, len(split(line))), line
