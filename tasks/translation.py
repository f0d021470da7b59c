"""Translation from English: WMT14 German, WMT15 French, WMT16 Romanian, as T5 was trained and judged on.

    translate English to German: That is good.  ->  Das ist gut.

Sentences are left as they are. The size of English to German is that of the set which Tensor2Tensor made of WMT14
(4,592,289 pairs), as the released code has it; its public home here, WMT14 itself, differs by some pairs.

Pairs come as `{"en": ..., "de": ...}`, in `translation` as on the hub, as tables (English, the other language, perhaps
an attribution), also in `.txt` files with tabs, or as files aligned line by line. Other parallel text than WMT's is
read by naming it: `files: {train: ["multi30k/train.{en,de}"]}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.task import BadRecord, Option, Rejected, Row, Task
from mixtura.platform.evaluation.metrics import bleu

NONE: Mapping[str, tuple[str, ...]] = MappingProxyType({})

# What Moses' tokenizer writes for characters that mean something to its decoder.
_ESCAPES = {"amp": "&", "#124": "|", "lt": "<", "gt": ">", "apos": "'", "quot": '"', "#91": "[", "#93": "]"}
_ESCAPED = re.compile(f"&({'|'.join(_ESCAPES)});")


def moses_unescaped(text: str) -> str:
    """A text with Moses' escapes undone; its tokens stay apart.

    >>> moses_unescaped("R &amp;amp; D &apos;s &#91; 1 &#93;")
    "R &amp; D 's [ 1 ]"
    """
    return _ESCAPED.sub(lambda found: _ESCAPES[found[1]], text)


@dataclass(frozen=True)
class Translate:
    """A pair of sentences to an example.

    >>> next(Translate("de", "German")({"translation": {"en": "That is good.", "de": "Das ist gut."}}))
    {'inputs': 'translate English to German: That is good.', 'targets': 'Das ist gut.'}
    """

    code: str
    language: str
    unescape: bool = False
    """Undo the escapes of Moses' tokenizer."""

    @property
    def __name__(self) -> str:
        return "translate"

    def __call__(self, row: Row) -> Iterator[Row]:
        """One example; a row that lacks a side is rejected."""
        nested = row.get("translation")
        pair = nested if isinstance(nested, dict) else row
        for name in ("en", self.code):
            if not isinstance(pair.get(name), str):
                raise Rejected(f"no field {name!r}")
        english, other = pair["en"], pair[self.code]
        if self.unescape:
            english, other = moses_unescaped(english), moses_unescaped(other)
        yield {"inputs": f"translate English to {self.language}: {english}", "targets": other}


@dataclass(frozen=True)
class TabbedLines:
    """Text files with tabs: English, the other language, and what else there may be.

    >>> list(TabbedLines("ro")(["Hi.\\tSalut!\\tCC-BY", "Hi."]))
    [{'en': 'Hi.', 'ro': 'Salut!'}, BadRecord(reason='no tab between two sentences', text='Hi.')]
    """

    code: str

    def __call__(self, lines: Iterable[str]) -> Iterator[Row | BadRecord]:
        """One record a line."""
        for line in lines:
            english, tab, rest = line.partition("\t")
            if tab:
                yield {"en": english, self.code: rest.partition("\t")[0]}
            else:
                yield BadRecord("no tab between two sentences", line)


def source_text(example: Mapping[str, Any]) -> str:
    """The English sentence, untranslated."""
    return str(example["inputs"].partition(": ")[2])


def _wmt(
    code: str,
    language: str,
    home: str,
    size: int,
    news: Mapping[str, str],
    samples: Mapping[str, tuple[str, ...]] = NONE,
) -> Task:
    """English to a language. `home` is on the hub; `news` names the files of WMT that are not for training, `samples`
    small parts of the sets."""
    name, sides = f"wmt_en_{code}", f"{{en,{code}}}"
    year = home.partition("/")[0]
    source = FileSource(
        hub={split: (f"hf://datasets/wmt/{home}/{split}-*.parquet",) for split in ("train", "validation", "test")},
        original={
            split: (f"{name}/{split}.{sides}", f"{year}/{file}.{sides}", *samples.get(split, ()))
            for split, file in {"train": "train", **news}.items()
        },
        header=("en", code),
        headerless=(("en", code), ("en", code, "attribution")),
        aligned=("en", code),
        lines=TabbedLines(code),
    )
    return Task(
        name,
        source,
        (Translate(code, language),),
        kind="supervised",
        version="1",
        description=f"An English sentence to {language}.",
        metrics=(bleu,),
        copy_rules={"the English sentence": source_text},
        rate_size=size,
        lengths=(512, 512),
        options={
            "text": Option(
                {"as_is": {}, "moses_unescaped": {"preprocessors": (Translate(code, language, unescape=True),)}},
                "Sentences as they are, or with the escapes of Moses' tokenizer undone (&apos; &quot; &#91;).",
            )
        },
    )


TASKS = (
    _wmt(
        "de",
        "German",
        "wmt14/de-en",
        size=4_592_289,
        news={"validation": "newstest2013", "test": "newstest2014"},
        samples={"validation": ("translation/wmt16_de_en/newstest2015.jsonl",)},
    ),
    _wmt(
        "fr",
        "French",
        "wmt15/fr-en",
        size=40_853_298,
        news={"validation": "newsdiscussdev2015", "test": "newsdiscusstest2015"},
    ),
    _wmt(
        "ro",
        "Romanian",
        "wmt16/ro-en",
        size=610_320,
        news={"validation": "newsdev2016", "test": "newstest2016"},
        samples={
            "train": ("translation/wmt_en_ro_sample/train.json",),
            "validation": ("translation/wmt_en_ro_sample/val.json",),
            "test": ("translation/wmt_en_ro_sample/test.json",),
        },
    ),
)
