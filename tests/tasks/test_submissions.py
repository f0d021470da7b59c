"""What the sites of GLUE and SuperGLUE take: rows of test splits by their own index, labels as the files have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixtura.platform.data.postprocessors import ClassIndex
from mixtura.platform.data.submission import Said
from mixtura.platform.data.task import Task
from mixtura.platform.errors import DataError
from mixtura.platform.evaluation.evaluator import Prediction
from mixtura.platform.evaluation.submission import answer_records, archive, file_of, questions, texts_in
from mixtura.tasks import get_task, glue, super_glue

# Names and numbers of answers, as in archives that the sites took.
GLUE = {
    "AX.tsv": 1_104,
    "CoLA.tsv": 1_063,
    "MNLI-m.tsv": 9_796,
    "MNLI-mm.tsv": 9_847,
    "MRPC.tsv": 1_725,
    "QNLI.tsv": 5_463,
    "QQP.tsv": 390_965,
    "RTE.tsv": 3_000,
    "SST-2.tsv": 1_821,
    "STS-B.tsv": 1_379,
    "WNLI.tsv": 146,
}
SUPER_GLUE = {
    "AX-b.jsonl": 1_104,
    "AX-g.jsonl": 356,
    "BoolQ.jsonl": 3_245,
    "CB.jsonl": 250,
    "COPA.jsonl": 500,
    "MultiRC.jsonl": 9_693,
    "ReCoRD.jsonl": 10_000,
    "RTE.jsonl": 3_000,
    "WSC.jsonl": 146,
    "WiC.jsonl": 1_400,
}


@pytest.mark.parametrize(
    ("benchmark", "tasks", "files"), [("glue", glue.TASKS, GLUE), ("super_glue", super_glue.TASKS, SUPER_GLUE)]
)
def test_the_tasks_make_the_files_of_their_benchmark(
    benchmark: str, tasks: tuple[Task, ...], files: Mapping[str, int]
) -> None:
    declared = [task.submission for task in tasks if task.submission is not None]
    assert {file.benchmark for file in declared} == {benchmark}
    assert {file.name: file.rows for file in declared} == files
    assert [task.name for task in tasks if task.submission is None] == ["glue_mnli"] * (benchmark == "glue")


LABELS = {
    "glue_cola": (0, 1),
    "glue_sst2": (0, 1),
    "glue_mrpc": (0, 1),
    "glue_qqp": (0, 1),
    "glue_mnli_matched": ("entailment", "neutral", "contradiction"),
    "glue_mnli_mismatched": ("entailment", "neutral", "contradiction"),
    "glue_qnli": ("entailment", "not_entailment"),
    "glue_rte": ("entailment", "not_entailment"),
    "glue_wnli_pair": (0, 1),
    "glue_ax": ("entailment", "neutral", "contradiction"),
    "super_glue_boolq": ("false", "true"),
    "super_glue_cb": ("entailment", "contradiction", "neutral"),
    "super_glue_copa": (0, 1),
    "super_glue_rte": ("entailment", "not_entailment"),
    "super_glue_wic": ("false", "true"),
    "super_glue_wsc_marked": ("False", "True"),
    "super_glue_axb": ("entailment", "not_entailment"),
    "super_glue_axg": ("entailment", "not_entailment"),
}


@pytest.mark.parametrize("name", LABELS)
def test_each_class_is_written_as_the_site_calls_it_and_any_other_text_as_the_first(name: str) -> None:
    task = get_task(name)
    assert isinstance(task.postprocess, ClassIndex)
    said = [file_of(task).said(task.postprocess(text, {})) for text in task.postprocess.names]
    assert said == [Said(label) for label in LABELS[name]]
    other = file_of(task).said(task.postprocess("a text", {}))
    assert other == Said(LABELS[name][0], f"no label, written as {LABELS[name][0]}")


@pytest.mark.parametrize(("name", "false", "true"), [("glue_wnli", 0, 1), ("super_glue_wsc", "False", "True")])
def test_a_phrase_is_written_as_whether_it_names_the_candidate(name: str, false: str, true: str) -> None:
    task, example = get_task(name), {"targets": "the fuzzy bunny", "label": -1}
    said = [file_of(task).said(task.postprocess(text, example)) for text in ("Bunny", "the cat", "the")]
    assert said == [Said(true), Said(false), Said(false, f"no label, written as {false}")]


@pytest.mark.parametrize(
    ("text", "value", "fault"),
    [
        ("3.8", "3.8", ""),
        ("-0.0", "0.0", ""),
        ("5.2", "5.0", "outside of 0 to 5, written as the nearest"),
        ("-0.4", "0.0", "outside of 0 to 5, written as the nearest"),
        ("inf", "0.0", "no score, written as 0.0"),
        ("nan", "0.0", "no score, written as 0.0"),
        ("very", "0.0", "no score, written as 0.0"),
    ],
)
def test_a_score_is_written_within_its_range(text: str, value: str, fault: str) -> None:
    task = get_task("glue_stsb")
    assert file_of(task).said(task.postprocess(text, {})) == Said(value, fault)


# A test file of the original's layout for each way in which rows are numbered, and the indices and inputs of its rows.
TEST_FILES = [
    ("glue_cola", "CoLA/test.tsv", "index\tsentence\n0\tHe sang.\n1\tHe sing.\n", {(0,): "cola sentence: He sang."}),
    (
        "glue_qqp",
        "QQP/test.tsv",
        "id\tquestion1\tquestion2\n4\tWho?\tWhy?\n9\tWhere?\tWhen?\n",
        {(4,): "qqp question1: Who? question2: Why?", (9,): "qqp question1: Where? question2: When?"},
    ),
    (
        "glue_mrpc",
        "MRPC/test.tsv",
        '\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tA "b\tC\n',
        {(0,): 'mrpc sentence1: A "b sentence2: C'},
    ),
    (
        "glue_mrpc",
        "MRPC/msr_paraphrase_test.txt",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA\tB\n0\t9\t10\tC\tD\n",
        {(0,): "mrpc sentence1: A sentence2: B", (1,): "mrpc sentence1: C sentence2: D"},
    ),
    (
        "glue_ax",
        "diagnostic/diagnostic-full.tsv",
        "Lexical Semantics\tDomain\tPremise\tHypothesis\tLabel\n\tNews\tP\tH\tneutral\n\tNews\tQ\tI\tentailment\n",
        {(0,): "mnli hypothesis: H premise: P", (1,): "mnli hypothesis: I premise: Q"},
    ),
    (
        "super_glue_axb",
        "AX-b/AX-b.jsonl",
        '{"idx": "3", "sentence1": "P", "sentence2": "H", "label": "not_entailment"}\n',
        {(3,): "rte hypothesis: H premise: P"},
    ),
    (
        "super_glue_boolq",
        "BoolQ/test.jsonl",
        '{"question": "is it", "passage": "It is.", "idx": 1}\n{"question": "was it", "passage": "It is.", "idx": 0}\n',
        {(1,): "boolq passage: It is. question: is it", (0,): "boolq passage: It is. question: was it"},
    ),
    (
        "super_glue_wsc",
        "WSC/test.jsonl",
        json.dumps(
            {
                "text": "Ann said she won .",
                "target": {"span1_index": 0, "span1_text": "Ann", "span2_index": 2, "span2_text": "she"},
                "idx": 5,
            }
        )
        + "\n",
        {(5,): "wsc: Ann said *she* won ."},
    ),
]


def written(task: str, root: Path, name: str, text: str) -> Task:
    """The task, reading below a folder with one file."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return get_task(task).bound(str(root), {})


@pytest.mark.parametrize(("name", "file", "text", "asked"), TEST_FILES, ids=[row[1] for row in TEST_FILES])
def test_rows_of_a_test_file_are_asked_under_their_own_index(
    name: str, file: str, text: str, asked: Mapping[tuple[int, ...], str], tmp_path: Path
) -> None:
    found = {one.index: one.fields["inputs"] for one in questions(written(name, tmp_path, file, text))}
    assert list(found.items())[: len(asked)] == list(asked.items())
    assert len(found) == text.count("\n") - file.endswith((".tsv", ".txt"))


def test_answers_to_a_nested_passage_are_folded_back(tmp_path: Path) -> None:
    answers = [[("Bob", 20), ("Ann", 21)], [("No reason", 22)]]
    nested = [
        {"question": text, "idx": 10 + n, "answers": [{"text": one, "idx": idx} for one, idx in answers[n]]}
        for n, text in enumerate(("Who left?", "Why?"))
    ]
    row = {"idx": 3, "version": 1.1, "passage": {"text": "Bob left.", "questions": nested}}
    task = written("super_glue_multirc", tmp_path, "MultiRC/test.jsonl", json.dumps(row) + "\n")
    assert text_of(task, lambda fields: "True" if "answer: Bob" in fields["inputs"] else "maybe") == (
        '{"idx": 3, "passage": {"questions": ['
        '{"idx": 10, "answers": [{"idx": 20, "label": 1}, {"idx": 21, "label": 0}]}, '
        '{"idx": 11, "answers": [{"idx": 22, "label": 0}]}]}}\n'
    )


def test_a_query_with_several_accepted_answers_is_asked_once(tmp_path: Path) -> None:
    passage = {"text": "Ann met Bob.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]}
    known = [{"start": 0, "end": 2, "text": "Ann"}, {"start": 8, "end": 10, "text": "Bob"}]
    queries = [{"query": "@placeholder left.", "answers": known, "idx": 7}, {"query": "@placeholder won.", "idx": 4}]
    row = {"idx": 2, "source": "x", "passage": passage, "qas": queries}
    task = written("super_glue_record", tmp_path, "ReCoRD/test.jsonl", json.dumps(row) + "\n")
    assert text_of(task, lambda _: 'Bob "B" Ü') == (
        '{"idx": 7, "label": "Bob \\"B\\" \\u00dc"}\n{"idx": 4, "label": "Bob \\"B\\" \\u00dc"}\n'
    )


# Rows in the columns of the public data sets, whose labels are -1 or empty.
PUBLIC = [
    ("glue_rte", {"sentence1": "A", "sentence2": "B", "label": -1, "idx": 2_999}, (2_999,)),
    ("glue_stsb", {"sentence1": "A", "sentence2": "B", "label": -1.0, "idx": 8}, (8,)),
    (
        "super_glue_copa",
        {"premise": "A", "choice1": "B", "choice2": "C", "question": "cause", "idx": 4, "label": -1},
        (4,),
    ),
    (
        "super_glue_multirc",
        {
            "paragraph": "P",
            "question": "Q",
            "answer": "A",
            "idx": {"paragraph": 1, "question": 5, "answer": 9},
            "label": -1,
        },
        (1, 5, 9),
    ),
    (
        "super_glue_record",
        {"passage": "P", "query": "Q", "entities": ["E"], "answers": [], "idx": {"passage": 1, "query": 6}},
        (6,),
    ),
]


@pytest.mark.parametrize(("name", "row", "index"), PUBLIC, ids=[row[0] for row in PUBLIC])
def test_public_rows_without_labels_are_asked_under_their_index(
    name: str, row: dict[str, Any], index: tuple[int, ...], tmp_path: Path
) -> None:
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test-00000-of-00001.parquet")
    task = get_task(name).bound(None, {"test": [str(tmp_path / "test-*.parquet")]})
    assert [one.index for one in questions(task)] == [index]


def text_of(task: Task, answer: Callable[[Mapping[str, Any]], str]) -> str:
    """The file of answers that a function gives to the examples."""
    asked = list(questions(task))
    records = answer_records(task, asked, [Prediction(answer(one.fields), 0.0) for one in asked])
    return file_of(task).layout([(tuple(record["index"]), record["said"]) for record in records])


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["0\tA\tB", "1\tA"], r"row 1 of its test split, in RTE/test\.tsv, .*2 fields, the table has 3.*begins 1\tA"),
        (["0\tA\tB", "0\tA\tC"], "row 1 .*another one has its index, 0"),
        (["0\tA\tB", "0\tA\tB"], "row 1 .*another one has its index, 0"),
        (["first\tA\tB"], "row 0 .*index is 'first'"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(lines: list[str], reason: str, tmp_path: Path) -> None:
    text = "index\tsentence1\tsentence2\n" + "".join(f"{line}\n" for line in lines)
    with pytest.raises(DataError, match=f"(?s)task 'glue_rte': {reason}"):
        list(questions(written("glue_rte", tmp_path, "RTE/test.tsv", text)))


def test_a_row_of_super_glue_without_an_index_is_named(tmp_path: Path) -> None:
    row = {"premise": "P", "hypothesis": "H \ud83d"}
    task = written("super_glue_rte", tmp_path, "RTE/test.jsonl", json.dumps({**row, "hypothesis": "H"}) + "\n")
    with pytest.raises(DataError, match="row 0 .*no field 'idx'"):
        list(questions(task))
    task = written("super_glue_rte", tmp_path, "RTE/test.jsonl", json.dumps({**row, "idx": 0}) + "\n")
    with pytest.raises(DataError, match="row 0 .*half of a surrogate pair"):
        list(questions(task))


# Real files, whose labels are known: the right answers make the labels that the file has.
KNOWN = [
    ("super_glue_boolq", "superglue/BoolQ/val.jsonl", lambda label: str(label).lower()),
    ("super_glue_rte", "superglue/RTE/val.jsonl", str),
    ("super_glue_wsc_marked", "superglue/WSC/val.jsonl", str),
    ("super_glue_axb", "superglue/AX-b/AX-b.jsonl", str),
    ("super_glue_axg", "superglue/AX-g/AX-g.jsonl", str),
]


@pytest.mark.parametrize(("name", "file", "label"), KNOWN, ids=[row[0] for row in KNOWN])
def test_right_answers_to_a_real_file_are_its_labels(
    name: str, file: str, label: Callable[[Any], str], shared: Path
) -> None:
    rows = [json.loads(line) for line in (shared / "data" / file).read_text().splitlines()]
    task = get_task(name).bound(str(shared / "data"), {"test": [file]})
    expected = [{"idx": int(row["idx"]), "label": label(row["label"])} for row in rows]
    assert [json.loads(line) for line in right_answers(task).splitlines()] == expected


def right_answers(task: Task) -> str:
    return text_of(task, lambda fields: str(fields["targets"]))


def test_right_answers_to_real_passages_are_their_labels(shared: Path) -> None:
    file = shared / "data/superglue/MultiRC/val.jsonl"
    expected = []
    for row in map(json.loads, file.read_text().splitlines()):
        nested = [
            {"idx": one["idx"], "answers": [{"idx": each["idx"], "label": each["label"]} for each in one["answers"]]}
            for one in row["passage"]["questions"]
        ]
        expected.append({"idx": row["idx"], "passage": {"questions": nested}})
    task = get_task("super_glue_multirc").bound(str(shared / "data"), {"test": [str(file)]})
    assert [json.loads(line) for line in right_answers(task).splitlines()] == expected


def test_real_rows_of_msr_are_those_of_the_benchmark(shared: Path) -> None:
    task = get_task("glue_mrpc").bound(str(shared / "data"), {})
    qualities = [line.split("\t")[0] for line in task_lines(shared / "data/glue/MRPC/msr_paraphrase_test.txt")]
    lines = right_answers(task).splitlines()
    assert lines == ["index\tprediction", *(f"{n}\t{quality}" for n, quality in enumerate(qualities))]
    assert len(qualities) == file_of(task).rows


def task_lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")[1:]


def test_an_archive_depends_on_its_texts_alone_and_reads_back() -> None:
    texts = {"RTE.tsv": "index\tprediction\n", "CoLA.tsv": "ü" * 1_000}
    data = archive(texts)
    assert archive(dict(reversed(texts.items()))) == data
    assert list(texts_in(data)) == ["CoLA.tsv", "RTE.tsv"]
    assert texts_in(data) == texts
    assert archive({**texts, "RTE.tsv": "index\n"}) != data
