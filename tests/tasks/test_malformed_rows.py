"""One row of another shape than the others is counted under a name; it never ends the work on them."""

from __future__ import annotations

from typing import Any

import pytest

from mixtura.platform.data.task import Example, RejectedRow
from mixtura.tasks import get_task, task_names

SHAPES: list[dict[str, Any]] = [
    {},
    {"label": None},
    {"sentence": 5, "text": 5, "passage": 5, "question": 5, "idx": 7, "label": 1, "target": None},
    {"sentence1": ["a"], "sentence2": {"a": 1}, "label": float("inf"), "idx": None},
    {"text": "a b", "span1_text": "a", "span1_index": "0", "span2_text": "b", "span2_index": "1", "label": 1},
    {"text": "a b", "span1_text": "a", "span1_index": 0, "span2_text": "b", "span2_index": 1.0, "label": "x"},
    {"sentence": "a he b", "pronoun": "he", "candidates": "ab", "label": 0},
    {"sentence": "a he b", "pronoun": None, "candidates": ["a"], "label": "1"},
    {"passage": {"text": 5, "entities": [1], "questions": [{}]}, "qas": [{}], "idx": 0},
    {"passage": "a", "query": "b", "entities": [1], "answers": "xy", "idx": {"passage": 0, "query": 0}},
    {"question": "a", "context": "b", "answers": {"text": "c"}, "id": 1},
    {"question": "a", "context": ["b"], "answers": [], "id": "1"},
    {"data": [], "paragraphs": [{"qas": [{"answers": 5}], "context": 1}]},
    {"article": 5, "highlights": None, "document": ["a"], "summary": {}},
    {"translation": {"en": 5}, "en": ["a"], "de": 1, "fr": None, "ro": {}},
    {"answer": 5, "entity_pages": [], "search_results": None, "question": 1},
    {"text": 5, "url": None},
    {"premise": "a", "hypothesis": "b", "label": 0.9},
    {"premise": "a", "hypothesis": "b", "label": -0.5},
]


@pytest.mark.parametrize("name", [name for name in task_names() if not name.startswith("python_docs")])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_malformed_rows_are_left_out_one_by_one(name: str, split: str) -> None:
    items = list(get_task(name).transform(SHAPES, "here", split))
    assert {item.row for item in items} == set(range(len(SHAPES)))
    for item in items:
        assert isinstance(item, Example | RejectedRow)
        if isinstance(item, RejectedRow):
            assert item.reason


def test_a_label_between_two_classes_is_none() -> None:
    row = {"premise": "a", "hypothesis": "b"}
    items = list(get_task("glue_mnli").transform([{**row, "label": value} for value in (0.9, -0.5, 1.0)], "here"))
    assert [item.reason if isinstance(item, RejectedRow) else item.fields["targets"] for item in items] == [
        "label is none of the classes",
        "label is none of the classes",
        "neutral",
    ]
