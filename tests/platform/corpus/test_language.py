"""Languages of pages: the released code's answer, and a faster way that seldom differs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mixtura.platform.corpus.language import UNKNOWN, Language, identifier, is_english

CRAWLED = "CC-MAIN-20190717121559-20190717143559-00140.jsonl.gz"
EXACT, FAST = identifier("exact"), identifier("fast")
GERMAN = "Der Hafen war am frühen Morgen noch sehr still. Zwei Fischer flickten ihre Netze neben dem alten Steg."
ENGLISH = "The harbour was quiet in the early morning light. Two fishermen repaired their nets beside the old pier."


def test_pages_are_english_where_the_released_code_says_so(shared: Path) -> None:
    with open(shared / "golden/c4.jsonl", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["kind"] == "page" and row["result"]["clean"]]
    assert len(rows) > 15
    assert {row["result"]["english"] for row in rows} == {True, False}
    for row in rows:
        assert is_english(EXACT(row["result"]["clean"])) == row["result"]["english"], row["name"]


def test_the_same_text_has_the_same_answer_every_time() -> None:
    mixed = f"{ENGLISH} {GERMAN}"
    assert len({EXACT(mixed) for _ in range(5)}) == 1


@pytest.mark.parametrize("text", ["", "1 2 3", "!!!"])
def test_of_a_text_without_letters_nothing_is_said(text: str) -> None:
    assert EXACT(text) == Language(UNKNOWN, 0.0)
    assert not is_english(FAST(text))


def test_the_fast_way_asks_the_slow_one_only_where_it_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def slow(text: str) -> Language:
        asked.append(text)
        return Language("en", 0.995)

    monkeypatch.setattr("mixtura.platform.corpus.language.by_langdetect", slow)
    assert is_english(FAST(ENGLISH))
    assert FAST(GERMAN).code == "de"
    assert asked == []
    assert is_english(FAST("Hallo okay"))
    assert asked == ["Hallo okay"]


def test_both_ways_agree_on_nearly_all_pages_of_c4(shared: Path) -> None:
    with gzip.open(shared / "data/web/c4/c4-train.sample-1000.json.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][:150]
    agree = [is_english(EXACT(text)) == is_english(FAST(text)) for text in texts]
    assert sum(agree) >= 0.97 * len(texts)


def test_the_fast_identifier_answers_as_py3langid_does(shared: Path) -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    from mixtura.platform.corpus.language import _FastIdentifier

    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    ours = _FastIdentifier(theirs)
    with gzip.open(shared / "data/web/common_crawl_docs" / CRAWLED, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file][:200]
    texts = [text[:1000] for text in texts] + [
        ENGLISH.upper(),
        GERMAN,
        "a",
        "\ud800",
        "Добро јутро",
        "Dobro jutro",
        "漢字",
    ]
    for text in texts:
        code, probability = theirs.classify(text)
        found, _ = ours.classify(text)
        assert found.code == code or probability < 0.1
        assert found.probability == pytest.approx(probability, abs=1e-3) or probability < 0.1
