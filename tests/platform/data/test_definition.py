"""Tasks written in YAML: templates are filled, labels named, and every mistake is answered before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.data.definition import (
    CLASS_METRICS,
    NUMBER_METRICS,
    TEXT_METRICS,
    Template,
    task_of,
)
from mixtura.platform.data.task import Example, RejectedRow, Task
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.evaluation.metrics import METRICS

REVIEWS: dict[str, Any] = {
    "name": "reviews",
    "inputs": "review title: {title} text: {text}",
    "targets": "{stars}",
    "labels": {1: "negative", 5: "positive"},
    "metrics": ["accuracy", "f1"],
}


def made(task: Task, *rows: dict[str, Any]) -> list[Any]:
    return [item.fields if isinstance(item, Example) else item.reason for item in task.transform(rows, "here")]


def test_templates_are_filled_and_labels_are_named() -> None:
    task = task_of(REVIEWS, METRICS)
    row = {"title": "Oh", "text": "It {works}.", "stars": "5", "other": "gone"}
    assert made(task, row, {**row, "stars": 1}, {**row, "stars": "positive"}) == [
        {"inputs": "review title: Oh text: It {works}.", "targets": "positive"},
        {"inputs": "review title: Oh text: It {works}.", "targets": "negative"},
        {"inputs": "review title: Oh text: It {works}.", "targets": "positive"},
    ]
    assert [task.postprocess(text, {}) for text in ("negative", "positive", "good")] == [0, 1, -1]


def test_rows_that_cannot_be_used_are_named() -> None:
    task = task_of(REVIEWS, METRICS)
    row = {"title": "Oh", "text": "It works.", "stars": "3"}
    assert made(task, row, {"title": "Oh", "stars": "5"}, {**row, "text": None, "stars": "1"}) == [
        "label is none of the labels",
        "no field 'text'",
        "no field 'text'",
    ]


def test_labels_may_be_a_list_and_values_true_or_false() -> None:
    places = task_of({**REVIEWS, "labels": ["no", "yes"]}, METRICS)
    assert made(places, {"title": "", "text": "", "stars": 1})[0]["targets"] == "yes"
    truths = task_of({**REVIEWS, "labels": {True: "yes", False: "no"}}, METRICS)
    assert made(truths, {"title": "", "text": "", "stars": False})[0]["targets"] == "no"


def test_a_field_may_lie_inside_another_and_have_a_dot_in_its_name() -> None:
    assert Template("{translation.en} {a.b}").text({"translation": {"en": "cat"}, "a.b": 3}) == "cat 3"
    assert Template("{{literally}} {a}").text({"a": 1.5}) == "{literally} 1.5"


@pytest.mark.parametrize(
    ("change", "kind", "answer"),
    [
        ({"input": "x"}, UnknownNameError, "no key 'input' in the file of task 'reviews'; nearest: 'inputs'"),
        ({"metrics": ["acuracy"]}, UnknownNameError, "no metric 'acuracy' in task 'reviews'; nearest: 'accuracy'"),
        ({"inputs": "review"}, ConfigError, "name at least one column of the files in braces"),
        ({"inputs": "review {"}, ConfigError, "write braces themselves as {{ and }}"),
        ({"inputs": "review {}"}, ConfigError, "name at least one column"),
        ({"targets": "{stars} of {five}"}, ConfigError, "with labels, targets must be one column"),
        ({"name": "a b"}, ConfigError, "name is 'a b'"),
        ({"metrics": []}, ConfigError, "metrics is \\[\\]"),
        ({"size": 0}, ConfigError, "size is 0"),
        ({"inputs": "{text:>10}"}, ConfigError, "only the name of a column may stand in braces"),
        ({"inputs": "{text!r}"}, ConfigError, "only the name of a column may stand in braces"),
        ({"labels": {1: False, 5: True}}, ConfigError, "an answer is False: write it in quotes"),
        ({"labels": {}}, ConfigError, "a choice needs at least two answers"),
        ({"columns": ["a", "a"]}, ConfigError, "columns need names that differ"),
        ({"metrics": ["squad_f1"]}, ConfigError, "'squad_f1' cannot compare its answers, which are one of 2 labels"),
        ({"labels": ["a", "b", "c"]}, ConfigError, "'f1' cannot compare its answers, which are one of 3 labels"),
        ({"labels": None}, ConfigError, "'f1' cannot compare its answers, which are text"),
        ({"labels": None, "metrics": ["bleu", "record_em"]}, ConfigError, "'record_em' cannot compare"),
    ],
)
def test_a_wrong_definition_is_answered(change: dict[str, Any], kind: type[Exception], answer: str) -> None:
    with pytest.raises(kind, match=answer):
        task_of({**REVIEWS, **change}, METRICS)


def test_a_definition_without_targets_is_answered() -> None:
    with pytest.raises(ConfigError, match="the file of task 'reviews' lacks targets"):
        task_of({name: value for name, value in REVIEWS.items() if name != "targets"}, METRICS)


def test_two_definitions_that_differ_make_two_caches() -> None:
    assert task_of(REVIEWS, METRICS).identity == task_of({**REVIEWS}, METRICS).identity
    assert task_of({**REVIEWS, "inputs": "{text}"}, METRICS).identity != task_of(REVIEWS, METRICS).identity


def test_it_reads_csv_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('title,text,stars\nOh,"It\nworks, ""well""",5\nNo,broken,1\nHm,so so,3\n')
    task = task_of(REVIEWS, METRICS).bound(None, {"train": (str(tmp_path / "a.csv"),)})
    items = [item for shard in task.shards("train") for item in task.examples(shard)]
    assert [item.fields["inputs"] for item in items if isinstance(item, Example)] == [
        'review title: Oh text: It\nworks, "well"',
        "review title: No text: broken",
    ]
    assert [(item.row, item.reason) for item in items if isinstance(item, RejectedRow)] == [
        (2, "label is none of the labels")
    ]
    assert task.splits == ("train",)


def test_tables_without_a_header_get_their_columns_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("5,Oh,fine\n1,No,broken\n")
    definition = {**REVIEWS, "columns": ["stars", "title", "text"]}
    task = task_of(definition, METRICS).bound(str(tmp_path), {"train": ("a.csv",)})
    items = [item for shard in task.shards("train") for item in task.examples(shard)]
    assert [item.fields["targets"] for item in items if isinstance(item, Example)] == ["positive", "negative"]


def test_a_whole_number_that_comes_as_1_0_is_the_label_1() -> None:
    assert made(task_of(REVIEWS, METRICS), {"title": "", "text": "", "stars": 1.0})[0]["targets"] == "negative"


def test_correlations_compare_answers_as_numbers() -> None:
    definition = {**REVIEWS, "labels": None, "metrics": ["pearson_corrcoef", "spearman_corrcoef"]}
    task = task_of(definition, METRICS)
    assert [task.postprocess(text, {}) for text in ("3.5", "none")] == [3.5, -1.0]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_that_a_definition_may_name_takes_its_answers(name: str) -> None:
    metric, fits = METRICS[name], []
    classes = [0, 1, 2] if name == "mean_3class_f1" else [0, 1]
    for names, answers in ((CLASS_METRICS, classes), (TEXT_METRICS, ["a b", "c"]), (NUMBER_METRICS, [1.0, 2.5])):
        fits.append(name in names)
        if name in names:
            metric([-1 if names is CLASS_METRICS else answers[0], *answers[1:]], answers)
    grouped = ("record_", "multirc_", "span_")
    assert any(fits) != name.startswith(grouped)
