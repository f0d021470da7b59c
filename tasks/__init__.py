"""The tasks, by name. A new task's module is written here: nothing is registered by importing."""

from __future__ import annotations

from mixtura.platform.data.task import Task
from mixtura.platform.errors import UnknownNameError
from mixtura.tasks import python_docs

_TASKS: dict[str, Task] = {task.name: task for task in (*python_docs.TASKS,)}


def task_names() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(sorted(_TASKS))


def get_task(name: str) -> Task:
    """The task of that name.

    >>> get_task("python_docs_name").kind
    'supervised'
    """
    if name not in _TASKS:
        raise UnknownNameError("task", name, _TASKS)
    return _TASKS[name]
