"""Mixtura's rules, and its rules, language and bad words: run by `benchmarks/corpus.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cleaning import run

from mixtura.platform.corpus.bad_words import BadWords
from mixtura.platform.corpus.language import identifier, is_english
from mixtura.platform.corpus.rules import Rules, as_crawled, clean_page
from mixtura.platform.corpus.sentences import sentence_counter

COUNT, RULES = sentence_counter(), Rules()
IDENTIFY = identifier("fast", ("en",))
WORDS = BadWords.read({"en": Path(os.environ["BAD_WORDS"])})


def rules(text: str) -> str | None:
    """The rules alone."""
    return clean_page(as_crawled(text, RULES)[0], RULES, COUNT).text


def chain(text: str) -> str | None:
    """Rules, language, bad words."""
    clean = rules(text)
    return clean if clean is not None and is_english(IDENTIFY(clean)) and not WORDS.found(clean, "en") else None


def parity(text: str) -> dict[str, Any]:
    """What came out, and why."""
    page = clean_page(as_crawled(text, RULES)[0], RULES, COUNT)
    return {"text": page.text, "reason": page.reason, "lines": dict(page.lines)}


run({"rules": rules, "chain": chain, "parity": parity})
