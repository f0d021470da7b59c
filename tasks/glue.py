"""GLUE (Wang et al. 2018): nine classification tasks and a diagnostic set.

Each is TSV in the original, with no quoting and labels as names or digits; the public home is Parquet. Validation
splits have labels, test splits do not. WNLI is evaluated only, in the form of WSC.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mixtura.platform.data.postprocessors import ClassIndex, NumberBetween, label_of, names_referent, number
from mixtura.platform.data.preprocessors import ClassLabel, Renamed, TextToText
from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.submission import LabelOf, ScoreBetween, SubmissionFile, table
from mixtura.platform.data.task import BadRecord, Option, Preprocessor, Rejected, Row, Task
from mixtura.platform.evaluation.metrics import accuracy, binary_f1, matthews, pearson, spearman
from mixtura.tasks.coreference import starred_ambiguous_pronoun

HUB = "hf://datasets/nyu-mll/glue"
FOLDERS = ("glue/", "GLUE/", "")
"""Where below `data.root` the tasks' folders may stand."""

TRAIN = {"train": ("train.tsv",)}
VALIDATION = {"validation": ("dev.tsv",)}
TEST = {"test": ("test.tsv",)}
SPLITS = {**TRAIN, **VALIDATION, **TEST}

LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "wnli": ("not_entailment", "entailment"),
}
"""The answers of each task, in the order of the labels' numbers."""

glue_task = functools.partial(
    Task, kind="supervised", version="1", evaluated=("validation",), lengths=(512, 84), benchmark="GLUE"
)

submitted = functools.partial(SubmissionFile, "glue", layout=table, index=(("index", "idx", "id"),), row_is_index=True)
"""What https://gluebenchmark.com takes. Labels are 0 and 1 there, or names where the original's files have names."""


def glue_files(
    config: str,
    folder: str,
    splits: Mapping[str, tuple[str, ...]] = SPLITS,
    *,
    hub: Mapping[str, str] | None = None,
    **tables: Any,
) -> FileSource:
    """The files of one task: `splits` has the names they may have in its `folder`, the first that is there counts.

    `hub` has the public home's names of splits, where they differ; `tables` says how tables are read.
    """
    public = hub or {split: split for split in splits}
    return FileSource(
        hub={split: (f"{HUB}/{config}/{name}-*.parquet",) for split, name in public.items()},
        original={
            split: tuple(f"{place}{folder}/{name}" for name in names for place in FOLDERS)
            for split, names in splits.items()
        },
        **tables,
    )


def class_steps(
    prefix: str,
    columns: Mapping[str, tuple[str, ...]],
    *,
    label: tuple[str, ...] = ("label",),
    order: Literal["alphabetical", "given"] = "alphabetical",
) -> tuple[Preprocessor, ...]:
    """`prefix field: text ...` to the name of a class; `columns` has each field's names in the files."""
    return (
        Renamed({**columns, "label": label}),
        ClassLabel(LABELS[prefix]),
        TextToText(prefix, {name: name for name in columns}, target="label_name", order=order, keep=("idx",)),
    )


# Similarity scores


@dataclass(frozen=True)
class SimilarityScore:
    """A number to the nearest step of 0.2 as text, in 32-bit floats as the released code rounds it (half to even).

    With `classes` a score that rounds to a number outside their range is rejected. -1 is the mark of a hidden score.

    >>> [next(SimilarityScore()({"label": score}))["score"] for score in (2.57, "0.500", 0.7, -0.05)]
    ['2.6', '0.4', '0.8', '-0.0']
    """

    classes: tuple[float, float] | None = None

    @property
    def __name__(self) -> str:
        return "similarity_score"

    def __call__(self, row: Row) -> Iterator[Row]:
        """The row with `score`."""
        value: Any = row.get("label")
        hidden = value is None or value == ""
        try:
            score = np.float32(-1.0 if hidden else float(value))
        except (TypeError, ValueError) as error:
            raise Rejected("score is no number") from error
        rounded = np.rint(score * np.float32(5)) / np.float32(5)
        if self.classes and score != -1 and not self.classes[0] <= rounded <= self.classes[1]:
            raise Rejected("score is outside of {:g} to {:g}".format(*self.classes))
        yield {**row, "score": f"{rounded:.1f}"}


def stsb_steps(classes: tuple[float, float] | None = None) -> tuple[Preprocessor, ...]:
    """STS-B's sentence pair to its score."""
    return (
        Renamed({"sentence1": ("sentence1",), "sentence2": ("sentence2",), "label": ("label", "score")}),
        SimilarityScore(classes),
        TextToText("stsb", {"sentence1": "sentence1", "sentence2": "sentence2"}, target="score", keep=("idx",)),
    )


# Files in other forms


def msr_table(lines: Iterable[str]) -> Iterator[Row | BadRecord]:
    """Records of Microsoft's paraphrase corpus, tab-separated text whose first line names the columns.

    >>> list(msr_table(["Quality\\t#1 String\\t#2 String", "1\\tIt rains.\\tIt is raining.", "0"]))[1]
    BadRecord(reason='another number of fields than the header', text='0')
    """
    rest = iter(lines)
    names = next(rest, "").split("\t")
    for line in rest:
        fields = line.split("\t")
        if len(fields) == len(names):
            yield dict(zip(names, fields, strict=True))
        else:
            yield BadRecord("another number of fields than the header", line)


# MNLI comes in four layouts: GLUE's columns, JSON with one name for each text or with text_a and text_b, and tables
# without a header that begin with the label.
MNLI_COLUMNS = {
    "premise": ("premise", "sentence1", "text_a", "Premise"),
    "hypothesis": ("hypothesis", "sentence2", "text_b", "Hypothesis"),
}
MNLI_TABLES: Mapping[str, Any] = {
    "header": ("sentence1", "premise"),
    "headerless": (("label", "premise", "hypothesis"),),
}


def mnli_steps(order: Literal["alphabetical", "given"] = "alphabetical") -> tuple[Preprocessor, ...]:
    """A premise and a hypothesis to what the one says of the other."""
    return class_steps("mnli", MNLI_COLUMNS, label=("gold_label", "label", "Label"), order=order)


mnli_task = functools.partial(
    glue_task,
    preprocessors=mnli_steps(),
    postprocess=ClassIndex(LABELS["mnli"]),
    options={
        "field_order": Option(
            {"alphabetical": {}, "premise_first": {"preprocessors": mnli_steps("given")}},
            "Which of the two texts comes first: the hypothesis, as in the released code and checkpoints, or the "
            "premise, as in the paper's running text.",
        )
    },
)


TASKS = (
    glue_task(
        "glue_cola",
        glue_files("cola", "CoLA", header=("sentence",), headerless=(("source", "label", "author_mark", "sentence"),)),
        class_steps("cola", {"sentence": ("sentence",)}),
        description="A sentence to whether it is grammatical English.",
        metrics=(matthews,),
        postprocess=ClassIndex(LABELS["cola"]),
        rate_size=8_551,
        submission=submitted("CoLA.tsv", 1_063, LabelOf((0, 1))),
    ),
    glue_task(
        "glue_sst2",
        glue_files("sst2", "SST-2"),
        class_steps("sst2", {"sentence": ("sentence",)}),
        description="A sentence of a film review to its sentiment.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["sst2"]),
        rate_size=67_349,
        submission=submitted("SST-2.tsv", 1_821, LabelOf((0, 1))),
    ),
    glue_task(
        "glue_mrpc",
        # Microsoft's own training file holds GLUE's validation examples too, so it comes last.
        glue_files(
            "mrpc",
            "MRPC",
            {
                "train": ("train.tsv", "msr_paraphrase_train.txt"),
                **VALIDATION,
                "test": ("test.tsv", "msr_paraphrase_test.txt"),
            },
            lines=msr_table,
        ),
        class_steps(
            "mrpc",
            {"sentence1": ("sentence1", "#1 String"), "sentence2": ("sentence2", "#2 String")},
            label=("label", "Quality"),
        ),
        description="Two sentences to whether they mean the same.",
        metrics=(binary_f1, accuracy),
        postprocess=ClassIndex(LABELS["mrpc"]),
        rate_size=3_668,
        submission=submitted("MRPC.tsv", 1_725, LabelOf((0, 1))),
    ),
    glue_task(
        "glue_stsb",
        glue_files("stsb", "STS-B"),
        stsb_steps(),
        description="Two sentences to how similar they are, from 0 to 5.",
        metrics=(pearson, spearman),
        postprocess=number,
        rate_size=5_749,
        options={
            "scores": Option(
                {
                    "zero_to_five": {},
                    "one_to_five": {
                        "preprocessors": stsb_steps((1.0, 5.0)),
                        "postprocess": NumberBetween(1.0, 5.0),
                        "description": "Two sentences to how similar they are, from 1 to 5.",
                    },
                },
                "The range of scores: 26 classes and any number as an answer, as in the released code, or 21 classes "
                "and any number outside of them wrong, as in the paper; rows scored lower are left out then.",
            )
        },
        submission=submitted("STS-B.tsv", 1_379, ScoreBetween(0.0, 5.0)),
    ),
    glue_task(
        "glue_qqp",
        glue_files(
            "qqp",
            "QQP",
            {
                "train": ("train.tsv", "subset_train.json", "subset.tsv"),
                "validation": ("dev.tsv", "subset_dev.json"),
                **TEST,
            },
            header=("question1",),
            headerless=(("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),),
        ),
        class_steps(
            "qqp",
            {"question1": ("question1", "text_a"), "question2": ("question2", "text_b")},
            label=("label", "is_duplicate"),
        ),
        description="Two questions from Quora to whether they ask the same.",
        metrics=(binary_f1, accuracy),
        postprocess=ClassIndex(LABELS["qqp"]),
        rate_size=363_849,
        submission=submitted("QQP.tsv", 390_965, LabelOf((0, 1))),
    ),
    mnli_task(
        "glue_mnli",
        glue_files(
            "mnli",
            "MNLI",
            {"train": ("train.tsv", "subset_train.json", "original_columns_train_48.tsv")},
            **MNLI_TABLES,
        ),
        description="A premise and a hypothesis to whether the one entails or contradicts the other.",
        metrics=(accuracy,),
        rate_size=392_702,
        evaluated_by=("glue_mnli_matched", "glue_mnli_mismatched"),
    ),
    mnli_task(
        "glue_mnli_matched",
        glue_files(
            "mnli",
            "MNLI",
            {"validation": ("dev_matched.tsv", "dev_matched.jsonl"), "test": ("test_matched.tsv",)},
            hub={"validation": "validation_matched", "test": "test_matched"},
            **MNLI_TABLES,
        ),
        description="MNLI on the kinds of text that it was trained on.",
        metrics=(accuracy,),
        rate_size=0,
        trained=False,
        submission=submitted("MNLI-m.tsv", 9_796, LabelOf(LABELS["mnli"])),
    ),
    mnli_task(
        "glue_mnli_mismatched",
        glue_files(
            "mnli",
            "MNLI",
            {"validation": ("dev_mismatched.tsv", "dev_mismatched_1000.tsv"), "test": ("test_mismatched.tsv",)},
            hub={"validation": "validation_mismatched", "test": "test_mismatched"},
            **MNLI_TABLES,
        ),
        description="MNLI on kinds of text that it was not trained on.",
        metrics=(accuracy,),
        rate_size=0,
        trained=False,
        submission=submitted("MNLI-mm.tsv", 9_847, LabelOf(LABELS["mnli"])),
    ),
    glue_task(
        "glue_qnli",
        glue_files("qnli", "QNLI", {"train": ("train.tsv", "subset_train.json"), **VALIDATION, **TEST}),
        class_steps("qnli", {"question": ("question", "text_a"), "sentence": ("sentence", "text_b")}),
        description="A question and a sentence to whether the sentence answers it.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["qnli"]),
        rate_size=104_743,
        submission=submitted("QNLI.tsv", 5_463, LabelOf(LABELS["qnli"])),
    ),
    glue_task(
        "glue_rte",
        glue_files("rte", "RTE"),
        class_steps("rte", {"sentence1": ("sentence1",), "sentence2": ("sentence2",)}),
        description="Two sentences to whether the first entails the second.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["rte"]),
        rate_size=2_490,
        submission=submitted("RTE.tsv", 3_000, LabelOf(LABELS["rte"])),
    ),
    glue_task(
        "glue_wnli",
        glue_files("wnli", "WNLI", {**VALIDATION, **TEST}),
        (
            Renamed({"sentence1": ("sentence1",), "sentence2": ("sentence2",)}),
            ClassLabel(LABELS["wnli"]),
            starred_ambiguous_pronoun,
        ),
        description="A sentence with a pronoun in stars to the noun phrase that it means, from GLUE's sentence pairs.",
        metrics=(accuracy,),
        postprocess=names_referent,
        reference=label_of,
        rate_size=0,
        trained=False,
        submission=submitted("WNLI.tsv", 146, LabelOf((0, 1))),
    ),
    glue_task(
        "glue_wnli_pair",
        glue_files("wnli", "WNLI"),
        class_steps("wnli", {"sentence1": ("sentence1",), "sentence2": ("sentence2",)}),
        description="Two sentences to whether the second follows if a pronoun is replaced; in no mixture of T5.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["wnli"]),
        rate_size=635,
        benchmark=None,
        submission=submitted("WNLI.tsv", 146, LabelOf((0, 1))),
    ),
    mnli_task(
        "glue_ax",
        FileSource(
            hub={"test": (f"{HUB}/ax/test-*.parquet",)},
            original={
                "test": tuple(
                    place + name
                    for name in ("AX/AX.tsv", "AX.tsv", "diagnostic/diagnostic.tsv", "diagnostic/diagnostic-full.tsv")
                    for place in FOLDERS
                )
            },
        ),
        description="MNLI on hand-made pairs for single phenomena of language; its labels are hidden.",
        rate_size=0,
        trained=False,
        evaluated=(),
        benchmark=None,
        submission=submitted("AX.tsv", 1_104, LabelOf(LABELS["mnli"])),
    ),
)
