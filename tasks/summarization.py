"""Summaries: CNN/DailyMail (Hermann et al. 2015, See et al. 2017), and XSum (Narayan et al. 2018), which T5 had not.

    summarize: The town's only bridge was closed on Monday ...  ->  Bridge closed .\\nRepairs take a year .

ROUGE is reported as the released code does it, as the median of a bootstrap, drawn here with a fixed seed so that the
same answers always have the same number. The option `rouge: mean` gives the plain means over examples, which other
work reports and which can be had without a draw. The paper's number is ROUGE-2, so it comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.task import Option, Rejected, Row, Task
from mixtura.platform.evaluation.metrics import (
    bootstrap_rouge1,
    bootstrap_rouge2,
    bootstrap_rouge_lsum,
    rouge1,
    rouge2,
    rouge_lsum,
)

PREFIX = "summarize: "

ROUGE = (bootstrap_rouge2, bootstrap_rouge1, bootstrap_rouge_lsum)

OPTIONS = {
    "rouge": Option(
        {"bootstrap_median": {}, "mean": {"metrics": (rouge2, rouge1, rouge_lsum)}},
        "ROUGE as the median of a bootstrap, like the released code, or as the mean over examples.",
    )
}


@dataclass(frozen=True)
class Summarize:
    """A text and its summary, under whatever names, to an example; both are left as they are.

    >>> next(Summarize("article", "highlights")({"article": " It rains . ", "highlights": "Rain .", "id": "1"}))
    {'inputs': 'summarize:  It rains . ', 'targets': 'Rain .'}
    """

    text: str
    summary: str

    @property
    def __name__(self) -> str:
        return "summarize"

    def __call__(self, row: Row) -> Iterator[Row]:
        """One example; a row that lacks a side is rejected."""
        for name in (self.text, self.summary):
            if not isinstance(row.get(name), str):
                raise Rejected(f"no field {name!r}")
        yield {"inputs": PREFIX + row[self.text], "targets": row[self.summary]}


@dataclass(frozen=True)
class FirstSentences:
    """The text's first `count` sentences, a line each.

    >>> FirstSentences(2)({"inputs": "summarize: It rains. It pours . The sun shines."})
    'It rains.\\nIt pours .'
    """

    count: int

    def __call__(self, example: Mapping[str, Any]) -> str:
        """Those sentences; one ends in a full stop, a question or an exclamation mark before a space."""
        text = example["inputs"].removeprefix(PREFIX).strip()
        return "\n".join(re.split(r"(?<=[.!?])\s+", text, maxsplit=self.count)[: self.count])


COPY_RULES = {"first sentence": FirstSentences(1), "first 3 sentences": FirstSentences(3)}


def _original(name: str, **samples: str) -> dict[str, tuple[str, ...]]:
    """Line-aligned files or JSON lines in a folder of the set's name; `samples` are small parts of the sets."""
    return {
        split: (f"{name}/{file}.{{source,target}}", f"{name}/{split}.jsonl", *filter(None, [samples.get(split)]))
        for split, file in {"train": "train", "validation": "val", "test": "test"}.items()
    }


CNN_DAILYMAIL = FileSource(
    hub={
        split: (f"hf://datasets/abisee/cnn_dailymail/3.0.0/{split}-*.parquet",)
        for split in ("train", "validation", "test")
    },
    original=_original("cnn_dailymail", test="summarization/cnn_dailymail/test_slice.jsonl"),
    aligned=("article", "highlights"),
)

XSUM = FileSource(
    hub={
        split: (f"hf://datasets/EdinburghNLP/xsum/data/{split}-*.parquet",) for split in ("train", "validation", "test")
    },
    original=_original("xsum", validation="summarization/xsum_sample/sample.json"),
    aligned=("document", "summary"),
)

TASKS = (
    Task(
        "cnn_dailymail",
        CNN_DAILYMAIL,
        (Summarize("article", "highlights"),),
        kind="supervised",
        version="1",
        description="A news article to its highlights.",
        metrics=ROUGE,
        copy_rules=COPY_RULES,
        rate_size=287_113,
        lengths=(512, 512),
        options=OPTIONS,
    ),
    Task(
        "xsum",
        XSUM,
        (Summarize("document", "summary"),),
        kind="supervised",
        version="1",
        description="A news article to the one sentence that introduces it.",
        metrics=ROUGE,
        copy_rules=COPY_RULES,
        rate_size=204_045,
        lengths=(512, 512),
        options=OPTIONS,
    ),
)
