"""The registry: tasks and mixtures by name.

Every module of this folder is looked at, and every module that an installed package names as an entry point of the
group `mixtura.tasks`. A module offers what its `TASKS` and `MIXTURES` hold; importing it registers nothing by itself.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mixtura.platform.data.task import Task
from mixtura.platform.errors import ConfigError, DataError, UnknownNameError

if TYPE_CHECKING:
    from mixtura.platform.data.mixture import Mixture

ENTRY_POINTS = "mixtura.tasks"


@dataclass(frozen=True)
class TaskChoice:
    """A task as a recipe asks for it, in plain values: all that another process needs to have the same one."""

    name: str
    root: str | None = None
    """Folder or bucket that holds the original files; their public homes if not given."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    definition: Mapping[str, Any] | None = None
    """Of a task that is written in YAML."""

    def task(self) -> Task:
        """The task, bound to its files and with its options chosen."""
        task = get_task(self.name) if self.definition is None else _defined(self.definition)
        return task.with_options(self.options).bound(self.root, self.files)


def _defined(definition: Mapping[str, Any]) -> Task:
    from mixtura.platform.data.definition import task_of
    from mixtura.platform.evaluation.metrics import METRICS

    return task_of(definition, METRICS)


def task_names() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(sorted(_registered()[0]))


def get_task(name: str) -> Task:
    """The task of that name, as declared.

    >>> get_task("python_docs_name").kind
    'supervised'
    """
    tasks = _registered()[0]
    if name not in tasks:
        raise UnknownNameError("task", name, tasks)
    return tasks[name]


def named_mixtures() -> Mapping[str, Mixture]:
    """All named mixtures."""
    return _registered()[1]


@functools.cache
def _registered() -> tuple[dict[str, Task], dict[str, Mixture]]:
    tasks: dict[str, tuple[Task, str]] = {}
    named: dict[str, tuple[Mixture, str]] = {}
    for module in _modules():
        _add(tasks, getattr(module, "TASKS", ()), module)
        _add(named, getattr(module, "MIXTURES", ()), module)
    for name in sorted(tasks.keys() & named.keys()):
        raise ConfigError(
            f"{name!r} is a task in {tasks[name][1]} and a mixture in {named[name][1]}: rename one of them"
        )
    return {name: one for name, (one, _) in tasks.items()}, {name: one for name, (one, _) in named.items()}


def _add(known: dict[str, tuple[Any, str]], found: Iterable[Any], module: ModuleType) -> None:
    if not isinstance(found, tuple | list) or not all(hasattr(one, "name") for one in found):
        raise DataError(
            f"{module.__name__}: TASKS and MIXTURES must be tuples of tasks and mixtures, found {found!r:.80}"
        )
    for one in found:
        if one.name in known:
            raise ConfigError(f"{one.name!r} is declared in {known[one.name][1]} and in {module.__name__}: rename one")
        known[one.name] = one, module.__name__


def _modules() -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(__path__):
        yield _imported(f"{__name__}.{info.name}", f"{info.name}.py in the folder of tasks")
    for point in entry_points(group=ENTRY_POINTS):
        yield _imported(
            point.value, f"the entry point {point.name!r} of the package {point.dist and point.dist.name!r}"
        )


def _imported(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise DataError(f"{what} cannot be used: importing it raised {type(error).__name__}: {error}") from error
