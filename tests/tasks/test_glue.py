"""GLUE's tasks: the text that the original shows, from files and from public rows, and where paper and code differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.task import BadRecord, Example, RejectedRow, Row, Task
from mixtura.tasks import get_task
from mixtura.tasks.glue import TASKS, SimilarityScore, msr_table


def made(task: Task, row: Row, split: str = "train") -> list[Row | str]:
    """Examples, and the reasons of what was left out."""
    items = task.transform([row], "here", split)
    return [item.fields if isinstance(item, Example) else item.reason for item in items]


def text_of(name: str, row: Row) -> tuple[str, str]:
    (fields,) = made(get_task(name), row)
    assert isinstance(fields, dict), fields
    return fields["inputs"], fields["targets"]


def test_the_tasks_are_those_of_the_benchmark_and_the_unused_pair_form_of_wnli() -> None:
    mnli = ["mnli", "mnli_matched", "mnli_mismatched"]
    named = ["cola", "sst2", "mrpc", "stsb", "qqp", *mnli, "qnli", "rte", "wnli", "wnli_pair", "ax"]
    assert [task.name for task in TASKS] == [f"glue_{name}" for name in named]


def test_rates_come_from_the_published_sizes() -> None:
    sizes = {task.name.removeprefix("glue_"): task.rate_size for task in TASKS if task.trained}
    assert sizes == {
        "cola": 8_551,
        "sst2": 67_349,
        "mrpc": 3_668,
        "stsb": 5_749,
        "qqp": 363_849,
        "mnli": 392_702,
        "qnli": 104_743,
        "rte": 2_490,
        "wnli_pair": 635,
    }
    assert all(task.rate_size == 0 for task in TASKS if not task.trained)


def test_only_trained_tasks_have_a_split_for_it_and_hidden_labels_are_never_scored() -> None:
    for task in TASKS:
        assert ("train" in task.splits) == task.trained
        assert set(task.evaluated) <= {"validation"}
        assert task.lengths == (512, 84)


# A row in the columns of the original file, and the text that is made of it.
FILE_ROWS = [
    (
        "glue_cola",
        {"source": "bc01", "label": "0", "author_mark": "*", "sentence": "Him ran."},
        "cola sentence: Him ran.",
        "unacceptable",
    ),
    ("glue_sst2", {"sentence": "a fine film ", "label": "1"}, "sst2 sentence: a fine film ", "positive"),
    (
        "glue_mrpc",
        {"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": 'He said "no.', "#2 String": "No, he said."},
        'mrpc sentence1: He said "no. sentence2: No, he said.',
        "equivalent",
    ),
    (
        "glue_stsb",
        {"index": "3", "genre": "news", "sentence1": "A.", "sentence2": "B.", "score": "3.750"},
        "stsb sentence1: A. sentence2: B.",
        "3.8",
    ),
    (
        "glue_qqp",
        {"id": "1", "qid1": "2", "qid2": "3", "question1": "Why?", "question2": "", "is_duplicate": "0"},
        "qqp question1: Why? question2: ",
        "not_duplicate",
    ),
    (
        "glue_qqp",
        {"text_a": "Why?", "text_b": "How?", "label": "1"},
        "qqp question1: Why? question2: How?",
        "duplicate",
    ),
    (
        "glue_mnli",
        {"sentence1": "P.", "sentence2": "H.", "label1": "neutral", "gold_label": "contradiction"},
        "mnli hypothesis: H. premise: P.",
        "contradiction",
    ),
    ("glue_mnli", {"text_a": "P.", "text_b": "H.", "label": "neutral"}, "mnli hypothesis: H. premise: P.", "neutral"),
    (
        "glue_mnli",
        {"label": "entailment", "premise": "P.", "hypothesis": "H."},
        "mnli hypothesis: H. premise: P.",
        "entailment",
    ),
    (
        "glue_qnli",
        {"index": "0", "question": "Q?", "sentence": "S.", "label": "not_entailment"},
        "qnli question: Q? sentence: S.",
        "not_entailment",
    ),
    (
        "glue_rte",
        {"index": "0", "sentence1": "A.", "sentence2": "B.", "label": "entailment"},
        "rte sentence1: A. sentence2: B.",
        "entailment",
    ),
    (
        "glue_wnli_pair",
        {"index": "0", "sentence1": "A.", "sentence2": "B.", "label": "1"},
        "wnli sentence1: A. sentence2: B.",
        "entailment",
    ),
    ("glue_ax", {"index": "0", "sentence1": "P.", "sentence2": "H."}, "mnli hypothesis: H. premise: P.", "<unk>"),
    (
        "glue_ax",
        {"Premise": "P.", "Hypothesis": "H.", "Label": "neutral"},
        "mnli hypothesis: H. premise: P.",
        "neutral",
    ),
]


@pytest.mark.parametrize(("name", "row", "inputs", "targets"), FILE_ROWS)
def test_original_columns_make_the_same_text_as_public_ones(name: str, row: Row, inputs: str, targets: str) -> None:
    assert made(get_task(name), row) == [{"inputs": inputs, "targets": targets}]


TEXTS = st.text(max_size=30)


@given(TEXTS, TEXTS, st.integers(0, 2), st.integers(0, 10**6))
def test_texts_are_joined_as_they_are(premise: str, hypothesis: str, label: int, idx: int) -> None:
    row = {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": idx}
    targets = ("entailment", "neutral", "contradiction")[label]
    expected = {"inputs": f"mnli hypothesis: {hypothesis} premise: {premise}", "targets": targets, "idx": idx}
    assert made(get_task("glue_mnli"), row) == [expected]


@pytest.mark.parametrize("name", ["glue_cola", "glue_sst2"])
def test_a_hidden_label_is_unknown_and_a_wrong_one_is_left_out(name: str) -> None:
    assert text_of(name, {"sentence": "", "label": -1})[1] == "<unk>"
    assert text_of(name, {"sentence": ""})[1] == "<unk>"
    assert made(get_task(name), {"sentence": "", "label": 2}) == ["label is none of the classes"]


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_a_row_without_its_texts_is_left_out_under_a_reason(task: Task) -> None:
    (reason,) = made(task, {"label": 0})
    fields = ["sentence", "sentence1", "question", "question1", "premise"]
    assert reason in [f"no field {field!r}" for field in fields]


# Similarity scores


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.1, "0.0"),
        (0.3, "0.4"),
        (0.5, "0.4"),
        (0.7, "0.8"),
        (0.9, "0.8"),
        (1.1, "1.2"),
        (2.5, "2.4"),
        (2.57, "2.6"),
        (3.3, "3.2"),
        (4.9, "4.8"),
        (4.95, "5.0"),
        (2.0999999, "2.0"),
        (0.0, "0.0"),
        (-0.05, "-0.0"),
        ("3.800", "3.8"),
        (" 5.000", "5.0"),
        (5, "5.0"),
        (5.2, "5.2"),
        (-1.0, "-1.0"),
        (None, "-1.0"),
        ("", "-1.0"),
    ],
)
def test_scores_round_half_to_even_on_a_grid_of_fifths(score: Any, text: str) -> None:
    assert text_of("glue_stsb", {"sentence1": "", "sentence2": "", "label": score})[1] == text


def test_there_are_26_scores_from_zero_to_five_and_21_from_one_to_five() -> None:
    task, scores = get_task("glue_stsb"), [step / 100 for step in range(501)]
    paper = task.with_options({"scores": "one_to_five"})
    rows = [{"sentence1": "", "sentence2": "", "label": score} for score in scores]

    def targets(task: Task) -> set[str]:
        return {item.fields["targets"] for item in task.transform(rows, "here") if isinstance(item, Example)}

    assert targets(task) == {f"{step / 5:.1f}" for step in range(26)}
    assert targets(paper) == {f"{step / 5:.1f}" for step in range(5, 26)}


def test_the_papers_scores_count_what_is_lower_and_call_other_answers_wrong() -> None:
    task = get_task("glue_stsb").with_options({"scores": "one_to_five"})
    row = {"sentence1": "A.", "sentence2": "B."}
    assert made(task, {**row, "label": 0.9}) == ["score is outside of 1 to 5"]
    assert made(task, {**row, "label": 0.95}) == [{"inputs": "stsb sentence1: A. sentence2: B.", "targets": "1.0"}]
    assert made(task, {**row, "label": -1.0}, "test")[0]["targets"] == "-1.0"  # type: ignore[index]
    assert [task.postprocess(text, {}) for text in ("0.4", "1.0", "5.2", "nan", "x")] == [-1.0, 1.0, -1.0, -1.0, -1.0]
    assert [get_task("glue_stsb").postprocess(text, {}) for text in ("0.4", "5.2")] == [0.4, 5.2]


@pytest.mark.parametrize("score", ["high", [3.0], "3,8"])
def test_a_score_that_is_no_number_is_left_out(score: Any) -> None:
    assert made(get_task("glue_stsb"), {"sentence1": "", "sentence2": "", "label": score}) == ["score is no number"]


def test_scores_are_rounded_in_32_bits() -> None:
    # 0.7 · 5 is 3.5 in both; 1.2999999523 · 5 is 6.5 only in 32 bits.
    assert next(SimilarityScore()({"label": 1.2999999523}))["score"] == "1.2"


# Which text comes first


@pytest.mark.parametrize("name", ["glue_mnli", "glue_mnli_matched", "glue_mnli_mismatched", "glue_ax"])
def test_the_premise_comes_first_only_where_it_is_asked_for(name: str) -> None:
    row = {"premise": "P.", "hypothesis": "H.", "label": 0, "idx": 3}
    task = get_task(name)
    assert task.options["field_order"].default == "alphabetical"
    (paper,) = made(task.with_options({"field_order": "premise_first"}), row)
    assert paper == {"inputs": "mnli premise: P. hypothesis: H.", "targets": "entailment", "idx": 3}
    assert made(task.with_options({"field_order": "alphabetical"}), row) == made(task, row)


# Files


def test_microsofts_table_keeps_quotes_and_tells_lines_that_do_not_fit() -> None:
    lines = ["Quality\t#1 String\t#2 String", '1\tHe said "no.\tNo.', "1\tonly two"]
    assert list(msr_table(lines)) == [
        {"Quality": "1", "#1 String": 'He said "no.', "#2 String": "No."},
        BadRecord("another number of fields than the header", "1\tonly two"),
    ]
    assert list(msr_table([])) == []


def test_microsofts_training_file_never_stands_in_for_glues(tmp_path: Path) -> None:
    (tmp_path / "MRPC").mkdir()
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (tmp_path / "MRPC/msr_paraphrase_train.txt").write_text("\ufeff" + header + "1\t1\t2\tA.\tB.\n", encoding="utf-8")
    task = get_task("glue_mrpc").bound(str(tmp_path), {})
    assert [shard.name for shard in task.shards("train")] == ["MRPC/msr_paraphrase_train.txt"]
    (tmp_path / "MRPC/train.tsv").write_text("\ufeff" + header + "0\t1\t2\tC.\tD.\n", encoding="utf-8")
    task = get_task("glue_mrpc").bound(str(tmp_path), {})
    (shard,) = task.shards("train")
    (item,) = task.examples(shard)
    assert isinstance(item, Example)
    assert item.fields == {"inputs": "mrpc sentence1: C. sentence2: D.", "targets": "not_equivalent"}


def test_cola_is_read_without_a_header_and_its_test_file_with_one(tmp_path: Path) -> None:
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA/dev.tsv").write_text('gj04\t1\t\tIt rains.\ngj04\t0\t*\tHim "rains', encoding="utf-8")
    (tmp_path / "CoLA/test.tsv").write_text("index\tsentence\n0\tIt snows.\n", encoding="utf-8")
    task = get_task("glue_cola").bound(str(tmp_path), {})
    assert task.splits == ("validation", "test")
    found = [item for split in task.splits for shard in task.shards(split) for item in task.examples(shard)]
    assert [item.fields for item in found if isinstance(item, Example)] == [
        {"inputs": "cola sentence: It rains.", "targets": "acceptable"},
        {"inputs": 'cola sentence: Him "rains', "targets": "unacceptable"},
        {"inputs": "cola sentence: It snows.", "targets": "<unk>"},
    ]


def test_a_bad_line_of_qqp_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("1\t2\t3\tWhy?\tHow? 0\n" + "1\t2\t3\tWhy?\tHow?\t1\n" * 3, encoding="utf-8")
    task = get_task("glue_qqp").bound(None, {"train": [str(file)]})
    items = [item for shard in task.shards("train") for item in task.examples(shard)]
    assert [item.row for item in items if isinstance(item, RejectedRow)] == [0]
    assert sum(isinstance(item, Example) for item in items) == 3
