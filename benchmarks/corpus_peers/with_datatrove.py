"""datatrove's C4 filters: run by `benchmarks/corpus.py` in datatrove's environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cleaning import run
from datatrove.data import Document
from datatrove.pipeline.filters import C4BadWordsFilter, C4ParagraphFilter, C4QualityFilter

QUALITY, PARAGRAPHS, WORDS = C4QualityFilter(), C4ParagraphFilter(), C4BadWordsFilter()
# The list is a download; it gets the one that all sides have, in the pattern that its own code makes.
LISTED = [re.escape(word) for word in Path(os.environ["BAD_WORDS"]).read_text().split("\n") if word]
WORDS._badwords_regex = {"en": re.compile(r"(?:\W|^)({})(?:\W|$)".format("|".join(LISTED)))}


def rules(text: str) -> str | None:
    """The rules alone."""
    document = Document(text=text, id="0")
    return document.text if QUALITY.filter(document) is True else None


def chain(text: str) -> str | None:
    """Without a language: its identifier's model is a download."""
    document = Document(text=text, id="0", metadata={"language": "en"})
    stays = all(one.filter(document) is True for one in (QUALITY, WORDS, PARAGRAPHS))
    return document.text if stays else None


run({"rules": rules, "chain": chain})
