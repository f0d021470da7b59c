from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.data.objectives import OBJECTIVES, make_objective
from mixtura.platform.data.task import Example, RejectedRow, Task
from mixtura.tasks.c4 import TASKS

C4 = TASKS[0]


def test_there_is_a_task_for_every_objective_and_c4_itself_corrupts_spans() -> None:
    named = {task.name: task.objective for task in TASKS}
    assert named["c4"] == ("span_corruption", {})
    assert sorted(objective[0] for objective in named.values() if objective) == sorted(OBJECTIVES)
    assert all(name in ("c4", f"c4_{objective[0]}") for name, objective in named.items() if objective)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_objective_takes_the_lengths_of_the_original(task: Task) -> None:
    assert task.objective is not None
    name, parameters = task.objective
    assert make_objective(name, 32_099, parameters).piece_length(512, 512) == (
        568 if name == "span_corruption" else 511
    )


def test_a_page_is_its_text_with_its_address_if_it_has_one() -> None:
    rows = [{"text": "A page.", "timestamp": "2019-04-21T10:07:13Z", "url": "https://a.example/"}, {"text": "Another."}]
    assert [item.fields for item in C4.transform(rows, "test") if isinstance(item, Example)] == [
        {"text": "A page.", "url": "https://a.example/"},
        {"text": "Another."},
    ]
    reasons = [
        item.reason for item in C4.transform([{"text": ""}, {"url": "x"}], "test") if isinstance(item, RejectedRow)
    ]
    assert reasons == ["empty document", "no field 'text'"]


def test_every_document_of_a_shard_is_read(shared: Path) -> None:
    bound = C4.bound(str(shared / "data"), {})
    items = [item for shard in bound.shards("train") for item in bound.examples(shard)]
    assert len(items) == 1000
    assert all(isinstance(item, Example) and item.fields["url"].startswith("http") for item in items)
