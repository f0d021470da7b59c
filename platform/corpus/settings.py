"""What a corpus is made with: the rules and everything around them, and the corpora that have a name.

mixtura corpus build --preset c4 ... rules.fewest_words=3 language.probability=0.95
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from mixtura.platform.config import FREE, STREAM, ExecutorSection, Section, parse_bytes, section_of
from mixtura.platform.corpus.language import ENGLISH
from mixtura.platform.corpus.rules import Rules
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.filesystems import absolute
from mixtura.platform.recipe_files import merged

AbsolutePath = Annotated[str, AfterValidator(absolute)]
"""Of a file that all machines have: the work's processes need not be where the command was given."""


class AddressesSection(Section):
    """What the address of a page decides."""

    newest: Annotated[bool, STREAM] = True
    """of the pages of an address only the newest stays"""
    domains: Annotated[AbsolutePath | None, STREAM] = None
    """a file with a domain in each line, or Grover's JSON: pages of others are left out"""
    urls: Annotated[AbsolutePath | None, STREAM] = None
    """a file with an address in each line: others are left out"""


class DuplicatesSection(Section):
    """Text that occurs several times in the corpus."""

    of: Annotated[Literal["lines", "spans"] | None, STREAM] = "lines"
    """`lines` as in the released code, `spans` of three sentences as in the paper; null leaves all"""
    span_sentences: Annotated[int, STREAM] = Field(default=3, ge=1)
    near: Annotated[bool, STREAM] = False
    """whether of pages that are nearly the same only one stays (MinHash)"""
    near_words: Annotated[int, STREAM] = Field(default=5, ge=1)
    """words of a shingle"""
    near_bands: Annotated[int, STREAM] = Field(default=14, ge=1)
    near_rows: Annotated[int, STREAM] = Field(default=8, ge=1)
    """hashes of a band: pages with one band in common are near; with 14 bands of 8 the half of those that share 0.72 of
    their shingles are found"""


class LanguageSection(Section):
    """Which languages stay."""

    keep: Annotated[tuple[str, ...] | None, STREAM] = ("en",)
    """null keeps all; pages that no language is likely enough for are then of language `und`"""
    probability: Annotated[float, STREAM] = Field(default=ENGLISH, ge=0, le=1)
    identifier: Annotated[Literal["fast", "exact"], STREAM] = "fast"
    """`exact` asks langdetect about every page, as C4's code does; `fast` only where a fast identifier is unsure"""


class BadWordsSection(Section):
    """Pages with words of a list."""

    files: Annotated[dict[str, AbsolutePath], STREAM] = Field(default_factory=dict)
    """of each language a file with a word or phrase in each line"""
    share: Annotated[float, STREAM] = Field(default=1.0, ge=0, le=1)
    """of the pages with such a word that is left out, by the hash of their address"""


class ShardsSection(Section):
    """The files of the corpus."""

    format: Annotated[Literal["parquet", "jsonl"], STREAM] = "parquet"
    size: Annotated[str, STREAM] = "256MB"
    """of a shard's text, before compression"""
    dropped: Annotated[bool, STREAM] = False
    """whether pages that are left out are written to a folder of each reason"""

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        parse_bytes(value)
        return value


class CorpusSettings(Section):
    """Everything that decides what a corpus is, and where its work is done."""

    preset: Annotated[str, STREAM] = "c4"
    rules: Rules = Rules()
    addresses: AddressesSection = AddressesSection()
    duplicates: DuplicatesSection = DuplicatesSection()
    language: LanguageSection = LanguageSection()
    bad_words: BadWordsSection = BadWordsSection()
    shards: ShardsSection = ShardsSection()
    punkt: Annotated[AbsolutePath | None, STREAM] = None
    """folder with Punkt's parameters (`.../punkt_tab/english`)"""
    largest_record: Annotated[str, STREAM] = "8MiB"
    """a record with more than this is left out"""
    memory: Annotated[str, FREE] = "1GB"
    """that a worker uses for finding duplicates, more or less"""
    work: Annotated[str | None, FREE] = None
    """folder or bucket for what lies between the stages, shared by all machines; if not given, in the output"""
    executor: ExecutorSection = ExecutorSection()

    @field_validator("largest_record", "memory")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        parse_bytes(value)
        return value

    @property
    def largest(self) -> int:
        """Bytes of a record."""
        return parse_bytes(self.largest_record)


# What the paper states: end marks, words, sentences, JavaScript, lorem ipsum and brackets wherever they are, citation
# marks and notices. Of long words, long pages, ellipses, addresses and split lines it says nothing.
_PAPER: Mapping[str, Any] = {
    "rules": {"header_lines": (), "longest_page": None, "longest_word": None, "ellipsis": None, "anywhere": True},
    "addresses": {"newest": False},
    "duplicates": {"of": "spans"},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "c4": {},
    "c4-noblocklist": {},
    "c4-noclean": {"rules": {"clean": False, "fewest_sentences": 0}, "duplicates": {"of": None}},
    "realnews-like": {},
    "webtext-like": {},
    "multilingual": {
        "rules": {"clean": False, "fewest_sentences": 0, "paragraphs": (3, 200)},
        "language": {"keep": None, "probability": 0.95},
        "bad_words": {"share": 0.999},
    },
    "c4-paper": _PAPER,
    "c4-first": merged(_PAPER, {"rules": {"fewest_sentences": 5, "fewest_words": 3}}),
}
"""By name what differs from the released code's C4: its variants, and what both versions of the paper say."""

_WITH_BAD_WORDS = ("c4", "c4-paper", "c4-first", "realnews-like", "webtext-like", "multilingual")
_LISTS = {"realnews-like": "domains", "webtext-like": "urls"}


def corpus_settings(preset: str, values: Mapping[str, Any]) -> CorpusSettings:
    """The settings of a preset with some of them changed.

    Raises ConfigError where a key or value is none, or where a list is missing that the preset stands for: a corpus
    without it would not be what its name says.

    >>> corpus_settings("c4-first", {"bad_words": {"files": {"en": "words.txt"}}}).rules.fewest_sentences
    5
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    tree = merged(merged({"preset": preset}, PRESETS[preset]), values)
    settings = section_of(CorpusSettings, tree, "the settings do not describe a corpus")
    if preset in _WITH_BAD_WORDS and not settings.bad_words.files and settings.bad_words.share:
        instead = "--preset c4-noblocklist" if preset == "c4" else "bad_words.share=0"
        raise ConfigError(
            f"preset {preset!r} leaves out pages with bad words, and no list of them is given (none is shipped): add "
            f"--bad-words en=FILE, a file with a word or phrase in each line, or do without it: {instead}"
        )
    if preset in _LISTS and getattr(settings.addresses, _LISTS[preset]) is None:
        raise ConfigError(f"preset {preset!r} keeps only pages of a list: give addresses.{_LISTS[preset]}=FILE")
    return settings
