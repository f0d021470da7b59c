"""SuperGLUE (Wang et al. 2019): eight tasks and two diagnostic sets.

Each is JSON lines in the original, MultiRC, ReCoRD and WSC with nested records; the public home is Parquet, where those
are unfolded. Validation splits have labels, test splits do not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mixtura.platform.data.postprocessors import (
    ClassIndex,
    GroupReference,
    Member,
    OfTargets,
    all_answers,
    label_of,
    names_referent,
)
from mixtura.platform.data.preprocessors import UNKNOWN_LABEL, ClassLabel, Renamed, TextToText
from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.submission import (
    LabelOf,
    OfMember,
    SubmissionFile,
    json_lines,
    paragraphs,
    text_itself,
)
from mixtura.platform.data.task import Option, Preprocessor, Rejected, Row, Task, answer_as_text
from mixtura.platform.evaluation.metrics import (
    accuracy,
    cb_f1,
    multirc_exact_match,
    multirc_f1,
    record_em,
    record_f1,
)
from mixtura.tasks.coreference import StarredPronoun, marked_spans, meant_phrase_only, spans_of

HUB = "hf://datasets/aps/super_glue"
FOLDERS = ("superglue/", "super_glue/", "SuperGLUE/", "")
"""Where below `data.root` the tasks' folders may stand."""

TRUTH = ("False", "True")
LABELS = {
    "boolq": TRUTH,
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
    "multirc": TRUTH,
    "rte": ("entailment", "not_entailment"),
    "wic": TRUTH,
    "wsc": TRUTH,
}
"""The answers of each task, in the order of the labels' numbers."""

WSC_STEPS: tuple[Preprocessor, ...] = (
    spans_of,
    Renamed({name: (name,) for name in ("text", "span1_text", "span1_index", "span2_text", "span2_index")}),
    ClassLabel(TRUTH),
)

super_glue_task = functools.partial(
    Task, kind="supervised", version="1", evaluated=("validation",), lengths=(512, 62), benchmark="SuperGLUE"
)

submitted = functools.partial(SubmissionFile, "super_glue", layout=json_lines)
"""What https://super.gluebenchmark.com takes: labels as the original's files have them, save that truth values are
texts, `true` in most files and `True` in WSC's."""


def super_glue_files(config: str, folder: str, splits: Mapping[str, tuple[str, ...]] | None = None) -> FileSource:
    """The files of one task: `splits` has the names they may have in its `folder`, the first that is there counts."""
    names = {"train": ("train.jsonl",), "validation": ("val.jsonl",), "test": ("test.jsonl",), **(splits or {})}
    return FileSource(
        hub={split: (f"{HUB}/{config}/{split}-*.parquet",) for split in names},
        original={
            split: tuple(f"{place}{folder}/{name}" for name in alternatives for place in FOLDERS)
            for split, alternatives in names.items()
        },
    )


def diagnostic_files(config: str, folder: str) -> FileSource:
    """The files of a diagnostic set, which has a test split only."""
    return FileSource(
        hub={"test": (f"{HUB}/{config}/test-*.parquet",)},
        original={"test": tuple(f"{place}{folder}/{folder}.jsonl" for place in FOLDERS)},
    )


def class_steps(prefix: str, *fields: str, **other_names: tuple[str, ...]) -> tuple[Preprocessor, ...]:
    """`prefix field: text ...` to the name of a class, in the order of `fields`; files may have `other_names`."""
    columns = {name: (name, *other_names.get(name, ())) for name in fields}
    return (
        Renamed(columns),
        ClassLabel(LABELS[prefix]),
        TextToText(prefix, {name: name for name in fields}, target="label_name", order="given", keep=("idx",)),
    )


def needed(*fields: str) -> Renamed:
    """Rejects rows without one of these fields."""
    return Renamed({name: (name,) for name in fields}, optional=())


# MultiRC


def questions_of(row: Row) -> Iterator[Row]:
    """A passage with nested questions and answers to one row for each answer; a public row stays."""
    passage = row.get("passage")
    if not isinstance(passage, Mapping):
        yield row
        return
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer.get("label"),
                "idx": {"paragraph": row["idx"], "question": question["idx"], "answer": answer["idx"]},
            }


def flat_ids(row: Row) -> Iterator[Row]:
    """Each part of `idx` as a field of its own.

    >>> next(flat_ids({"idx": {"passage": 0, "query": 7}}))
    {'idx/passage': 0, 'idx/query': 7}
    """
    rest = {name: value for name, value in row.items() if name != "idx"}
    yield {**rest, **{f"idx/{name}": number for name, number in row["idx"].items()}}


def without_markup(row: Row) -> Iterator[Row]:
    """Line breaks of HTML to spaces, bold type to nothing, in lower-case tags only.

    >>> next(without_markup({"inputs": "<b>Sent 1: </b>It rains.<br>"}))
    {'inputs': 'Sent 1: It rains. '}
    """
    yield {**row, "inputs": re.sub("</?b>", "", row["inputs"].replace("<br>", " "))}


# ReCoRD


def queries_of(row: Row) -> Iterator[Row]:
    """A passage with nested queries to one row for each; a public row stays.

    Entities, which the file marks by their first and last character, and answers each come once, in alphabetical order.
    """
    passage = row.get("passage")
    if not isinstance(passage, Mapping):
        yield row
        return
    text = passage["text"]
    entities = sorted({text[entity["start"] : entity["end"] + 1] for entity in passage["entities"]})
    for query in row["qas"]:
        yield {
            "passage": text,
            "query": query["query"],
            "entities": entities,
            "answers": sorted({answer["text"] for answer in query.get("answers") or ()}),
            "idx": {"passage": row["idx"], "query": query["idx"]},
        }


def one_example_an_answer(row: Row) -> Iterator[Row]:
    """A query to one example for each of its answers, with all of them beside for evaluation.

    Highlights of the passage become sentences of it.

    >>> row = {"query": "@placeholder won.", "entities": ["Ann", "Bob"], "answers": ["Ann"], "idx": {"query": 7}}
    >>> row["passage"] = "Ann ran.\\n@highlight\\nBob lost\\n@highlight\\nAnn won"
    >>> next(one_example_an_answer(row))["inputs"]
    'record query: @placeholder won. entities: Ann, Bob passage: Ann ran. Bob lost. Ann won'
    """
    passage = re.sub("([.?!\"'])\n@highlight\n", r"\1 ", row["passage"]).replace("\n@highlight\n", ". ")
    inputs = f"record query: {row['query']} entities: {', '.join(row['entities'])} passage: {passage}"
    answers = row.get("answers") or []
    if not isinstance(answers, list):
        raise Rejected("answers are no list")
    for target in answers or [UNKNOWN_LABEL]:
        yield {"inputs": inputs, "targets": target, "answers": answers, "idx": row["idx"]}


def _entities(example: Mapping[str, Any]) -> list[str]:
    listed: str = example["inputs"].partition(" entities: ")[2].partition(" passage: ")[0]
    return listed.split(", ")


def first_entity(example: Mapping[str, Any]) -> str:
    """The first entity of the list, in alphabetical order."""
    return _entities(example)[0]


def commonest_entity(example: Mapping[str, Any]) -> str:
    """The entity that the passage has most often."""
    passage: str = example["inputs"].partition(" passage: ")[2]
    return max(_entities(example), key=passage.count)


TASKS = (
    super_glue_task(
        "super_glue_boolq",
        super_glue_files("boolq", "BoolQ", {"train": ("train.jsonl", "train_32.jsonl")}),
        class_steps("boolq", "passage", "question"),
        description="A passage and a question to its answer, yes or no.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["boolq"]),
        rate_size=9_427,
        submission=submitted("BoolQ.jsonl", 3_245, LabelOf(("false", "true"))),
    ),
    super_glue_task(
        "super_glue_cb",
        super_glue_files("cb", "CB"),
        class_steps("cb", "hypothesis", "premise"),
        description="A passage and a clause in it to whether the writer holds the clause to be true.",
        metrics=(cb_f1, accuracy),
        postprocess=ClassIndex(LABELS["cb"]),
        rate_size=250,
        submission=submitted("CB.jsonl", 250, LabelOf(LABELS["cb"])),
    ),
    super_glue_task(
        "super_glue_copa",
        super_glue_files("copa", "COPA"),
        class_steps("copa", "choice1", "choice2", "premise", "question"),
        description="A sentence to which of two others is its cause or its effect.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["copa"]),
        rate_size=400,
        submission=submitted("COPA.jsonl", 500, LabelOf((0, 1))),
    ),
    super_glue_task(
        "super_glue_multirc",
        super_glue_files("multirc", "MultiRC"),
        (
            questions_of,
            needed("question", "answer", "paragraph", "idx"),
            flat_ids,
            ClassLabel(LABELS["multirc"]),
            TextToText(
                "multirc",
                {"question": "question", "answer": "answer", "paragraph": "paragraph"},
                target="label_name",
                order="given",
                keep=("idx/paragraph", "idx/question", "idx/answer"),
            ),
            without_markup,
        ),
        description="A paragraph, a question and an answer to whether the answer is right; several may be.",
        metrics=(multirc_f1, multirc_exact_match),
        postprocess=Member(ClassIndex(LABELS["multirc"])),
        reference=GroupReference(OfTargets(ClassIndex(LABELS["multirc"])), ("idx/question",)),
        rate_size=27_243,
        submission=submitted(
            "MultiRC.jsonl",
            9_693,
            OfMember(LabelOf((0, 1))),
            layout=paragraphs,
            index=(("idx/paragraph",), ("idx/question",), ("idx/answer",)),
        ),
    ),
    super_glue_task(
        "super_glue_record",
        super_glue_files(
            "record",
            "ReCoRD",
            {"train": ("train.jsonl", "train_32.jsonl"), "validation": ("val.jsonl", "dev_32.jsonl")},
        ),
        (queries_of, needed("passage", "query", "entities", "idx"), one_example_an_answer, flat_ids),
        description="A news article, its entities and a sentence with a gap to the entity that fills it.",
        metrics=(record_em, record_f1),
        postprocess=Member(answer_as_text),
        reference=GroupReference(all_answers, ("idx/passage", "idx/query")),
        copy_rules={"first entity": first_entity, "entity that the passage has most often": commonest_entity},
        rate_size=138_854,
        submission=submitted("ReCoRD.jsonl", 10_000, OfMember(text_itself), index=(("idx/query",),)),
    ),
    super_glue_task(
        "super_glue_rte",
        super_glue_files("rte", "RTE"),
        class_steps("rte", "hypothesis", "premise"),
        description="Two sentences to whether the first entails the second.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["rte"]),
        rate_size=2_490,
        submission=submitted("RTE.jsonl", 3_000, LabelOf(LABELS["rte"])),
    ),
    super_glue_task(
        "super_glue_wic",
        super_glue_files("wic", "WiC"),
        class_steps("wic", "sentence1", "sentence2", "word"),
        description="Two sentences and a word to whether it means the same in both.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["wic"]),
        rate_size=5_428,
        submission=submitted("WiC.jsonl", 1_400, LabelOf(("false", "true"))),
    ),
    super_glue_task(
        "super_glue_wsc",
        super_glue_files("wsc.fixed", "WSC"),
        (*WSC_STEPS, StarredPronoun()),
        description="A sentence with a pronoun in stars to the noun phrase that it means.",
        metrics=(accuracy,),
        postprocess=names_referent,
        reference=label_of,
        rate_size=259,
        train_only=(*WSC_STEPS, meant_phrase_only),
        options={
            "lone_x": Option(
                {
                    "replaced": {},
                    "kept": {"preprocessors": (*WSC_STEPS, StarredPronoun(every_x=False))},
                },
                "What becomes of a word X in the text: replaced by the pronoun in stars too, by a slip of the released "
                "code, or kept.",
            )
        },
        submission=submitted("WSC.jsonl", 146, LabelOf(TRUTH)),
    ),
    super_glue_task(
        "super_glue_wsc_marked",
        super_glue_files("wsc.fixed", "WSC"),
        (*WSC_STEPS, marked_spans),
        description="A sentence with a noun phrase and a pronoun marked to whether they mean the same; not used by T5.",
        metrics=(accuracy,),
        postprocess=ClassIndex(LABELS["wsc"]),
        rate_size=554,
        benchmark=None,
        submission=submitted("WSC.jsonl", 146, LabelOf(TRUTH)),
    ),
    super_glue_task(
        "super_glue_axb",
        diagnostic_files("axb", "AX-b"),
        class_steps("rte", "hypothesis", "premise", hypothesis=("sentence2",), premise=("sentence1",)),
        description="RTE on hand-made pairs for single phenomena of language.",
        postprocess=ClassIndex(LABELS["rte"]),
        rate_size=0,
        trained=False,
        evaluated=(),
        benchmark=None,
        submission=submitted("AX-b.jsonl", 1_104, LabelOf(LABELS["rte"])),
    ),
    super_glue_task(
        "super_glue_axg",
        diagnostic_files("axg", "AX-g"),
        class_steps("rte", "hypothesis", "premise"),
        description="RTE on pairs that differ in a pronoun's gender only.",
        postprocess=ClassIndex(LABELS["rte"]),
        rate_size=0,
        trained=False,
        evaluated=(),
        benchmark=None,
        submission=submitted("AX-g.jsonl", 356, LabelOf(LABELS["rte"])),
    ),
)
