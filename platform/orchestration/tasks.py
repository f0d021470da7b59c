"""From the names in a recipe's mixture to its tasks, bound to their files and with their options chosen."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from mixtura.platform.config import Config, MixtureTask
from mixtura.platform.data.task import Example, RejectedRow, Task
from mixtura.platform.errors import ConfigError, DataError, UnknownNameError
from mixtura.platform.recipe_files import Phase, load_phases, recipe_name, several_runs
from mixtura.platform.workspace import workspace
from mixtura.tasks import TaskChoice, get_task, named_mixtures, task_names
from mixtura.tasks.mixtures import expand, written_rates

_ROWS_TRIED = 10_000


def load_recipe(recipe: str, overrides: Sequence[str] = (), phase: str | None = None) -> Config:
    """The whole tree of a recipe, or of one of its phases, its mixtures written out as tasks.

    What a run stores is this: a mixture that is declared differently tomorrow does not change a run of today. A model
    to begin with has brought its shape; see `starting_model`. RequestError where there are phases, and none is said.
    """
    runs = chosen(recipe, load_runs(recipe, overrides), phase)
    if len(runs) > 1:
        raise several_runs(recipe, runs)
    return runs[0].config


def load_runs(recipe: str, overrides: Sequence[str] = ()) -> list[Phase]:
    """The runs that a recipe describes, one if it has no phases, each as `load_recipe` gives it."""
    first, *later = [Phase(one.name, expanded(one.config)) for one in load_phases(recipe, overrides)]
    if first.config.model.start is None:
        return [first, *later]
    from mixtura.platform.orchestration.starting_model import settled

    space = workspace(first.config.run.root)
    config = settled(first.config, space, space.run(first.config.run.name or recipe_name(recipe)))
    return [Phase(first.name, config), *(Phase(one.name, _with_shape_of(config, one.config)) for one in later)]


def chosen(recipe: str, runs: Sequence[Phase], phase: str | None) -> Sequence[Phase]:
    """The run of one phase of a recipe, or all of them where none is named."""
    if phase is None:
        return runs
    names = [one.name for one in runs if one.name is not None]
    if phase not in names:
        raise UnknownNameError("phase", phase, names, where=f" in recipe {recipe!r}")
    return [one for one in runs if one.name == phase]


def _with_shape_of(first: Config, config: Config) -> Config:
    """A later run of a recipe with the numbers of the model that the first begins with, where it has none itself."""
    own = {name for name, value in config.model if value is not None}
    shape = first.model.model_dump(exclude={*own, "start", "resolved"})
    return config.model_copy(update={"model": config.model.model_copy(update=shape)})


def expanded(config: Config) -> Config:
    """The tree with named mixtures replaced by their tasks, and with the tasks that judge others beside those.

    A task reached on several ways has the sum of their weights. Tasks that are never trained on have weight 0.
    """
    given = config.mixture.tasks
    own = {name for name, task in given.items() if task.definition is not None}
    for name in own & {*task_names(), *named_mixtures()}:
        raise ConfigError(
            f"the task file of {name!r} has the name of a registered task or mixture: give it another one"
        )
    for name in given.keys() & named_mixtures().keys():
        if extra := given[name].model_dump(exclude_defaults=True, exclude={"weight"}):
            raise ConfigError(
                f"mixture.tasks.{name}.{next(iter(extra))}: {name!r} is a mixture, which only takes a weight; "
                "name the task that it is meant for"
            )
    weights = expand(
        {name: task.weight for name, task in given.items()},
        named_mixtures(),
        {*task_names(), *own},
        divide=config.mixture.rates == "fixed",
    )
    tasks = {
        name: given.get(name, MixtureTask()).model_copy(update={"weight": weight}) for name, weight in weights.items()
    }
    if config.mixture.rates == "released":
        for name, rate in written_rates(given, named_mixtures()).items():
            if tasks[name].rate is None:
                tasks[name] = tasks[name].model_copy(update={"rate": rate})
    for name in list(tasks):
        task = task_of(config, name, tasks[name])
        if not task.trained:
            tasks[name] = tasks[name].model_copy(update={"weight": 0.0})
        for judge in task.evaluated_by:
            options = {key: value for key, value in tasks[name].options.items() if key in get_task(judge).options}
            tasks.setdefault(judge, MixtureTask(weight=0.0, options=options))
    return config.model_copy(update={"mixture": config.mixture.model_copy(update={"tasks": tasks})})


def choice_of(config: Config, name: str, given: MixtureTask | None = None) -> TaskChoice:
    """A task of a recipe in plain values."""
    own = given or config.mixture.tasks[name]
    files = {split: tuple(names) for split, names in own.files.items()}
    return TaskChoice(name, config.data.root, files, own.options, own.definition)


def task_of(config: Config, name: str, given: MixtureTask | None = None) -> Task:
    """A task of a recipe."""
    return chosen_task(asdict(choice_of(config, name, given)))


def tasks_of(config: Config) -> dict[str, Task]:
    """All tasks of a recipe's mixture."""
    return {name: task_of(config, name) for name in config.mixture.tasks}


def chosen_task(choice: Mapping[str, Any]) -> Task:
    """The task of a `TaskChoice` that came as a dictionary; the same one again in this process."""
    return _chosen_task(json.dumps(choice, sort_keys=True))


@functools.lru_cache(maxsize=256)
def _chosen_task(choice: str) -> Task:
    values = json.loads(choice)
    files = {split: tuple(names) for split, names in values.pop("files").items()}
    return TaskChoice(**values, files=files).task()


def has_data(task: Task) -> bool:
    """Whether there is anything to prepare: a task that only judges others may lack its files."""
    return task.trained or bool(set(task.splits) & set(task.evaluated))


def prepared_splits(task: Task) -> tuple[str, ...]:
    """The splits that a token cache holds: for training, and those whose right answers are known."""
    if task.kind == "unsupervised":
        return ("train",)
    wanted = ("train", *task.evaluated) if task.trained else task.evaluated
    return tuple(split for split in wanted if split in task.splits or (split == "train" and task.trained))


def held_out(config: Config, task: Task) -> bool:
    """Whether losses are measured on text of an unsupervised task that training does not see."""
    return (
        task.kind == "unsupervised"
        and task.trained
        and config.evaluation.text_pieces > 0
        and "validation" in task.evaluated
        and "validation" in task.splits
    )


def measured_tasks(config: Config) -> dict[str, Task]:
    """The tasks of a recipe that a number says something about: those with metrics, and text that is held out."""
    return {name: task for name, task in tasks_of(config).items() if task.metrics or held_out(config, task)}


def refuse_unusable(config: Config) -> None:
    """Raise what a wrong name, a missing file or a wrong column would raise later, for every task of a recipe."""
    for task in tasks_of(config).values():
        if has_data(task):
            refuse_all_rejected(task, next(iter(prepared_splits(task))))


def refuse_all_rejected(task: Task, split: str) -> None:
    """Raise DataError, with the reasons and a row, where a task can use none of the first rows of a split."""
    rejected: list[RejectedRow] = []
    for shard in task.shards(split):
        for item in islice(task.examples(shard), _ROWS_TRIED - len(rejected)):
            if isinstance(item, Example):
                return
            rejected.append(item)
        if len(rejected) >= _ROWS_TRIED:
            break
    if not rejected:
        raise DataError(f"task {task.name!r}: its {split} split has no rows")
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(row.reason for row in rejected).most_common(3))
    row = next((row for shard in task.shards(split) for row in task.source.read(shard)), None)
    fields = f"a row has the fields {', '.join(row)}" if isinstance(row, dict) else f"a record begins {row!r:.120}"
    raise DataError(
        f"task {task.name!r}: none of the first {len(rejected)} rows of its {split} split, in {rejected[0].origin}, "
        f"can be used ({reasons}); {fields}"
    )
