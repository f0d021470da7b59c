"""Tasks are found by name; every declaration is complete."""

from __future__ import annotations

import pytest

from mixtura.platform.data.task import Example
from mixtura.platform.errors import UnknownNameError
from mixtura.tasks import get_task, python_docs, task_names


def test_names_are_sorted_and_lead_to_their_tasks() -> None:
    assert list(task_names()) == sorted(task_names())
    assert all(get_task(name).name == name for name in task_names())


def test_no_two_tasks_share_a_name() -> None:
    assert len(task_names()) == len(python_docs.TASKS)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no task 'python_docs_modul'; nearest: 'python_docs_module'"):
        get_task("python_docs_modul")


@pytest.mark.parametrize("name", task_names())
def test_every_task_says_what_it_is_and_makes_examples(name: str) -> None:
    task = get_task(name)
    assert task.description.endswith(".")
    assert task.version
    assert bool(task.metrics) == (task.kind == "supervised")
    assert "train" in task.splits
    first = next(item for item in task.examples(task.shards("train")[0]) if isinstance(item, Example))
    assert set(first.fields) >= ({"inputs", "targets"} if task.kind == "supervised" else {"text"})
