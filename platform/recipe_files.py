"""Recipes: YAML files with `extends`, packaged by name or one's own, dotted overrides, and phases.

A recipe is in the shape of `Config`. `extends: NAME` starts from another one, and what is written wins, key by key; a
list replaces what it is merged over. `phases` names runs that follow each other, each with what it does otherwise:

    training: {steps: 524288}
    phases:
      pretrain: {}
      finetune: {mixture: {tasks: [squad]}, training: {steps: 262144}}

A run of a phase is called NAME-PHASE. The second phase begins with the last checkpoint of the first: its weights, its
vocabulary and its optimizer's state, whose count of updates goes on; the stream and the schedule begin anew (Raffel et
al. 2020, section 3.5.3). What the command line says holds in every phase, `phases.PHASE.KEY` in one.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from mixtura.platform.config import RUN_NAME, Config, validated
from mixtura.platform.errors import ConfigError, RequestError, UnknownNameError
from mixtura.platform.yaml_files import read_task_file, read_yaml

_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Phase:
    """One of the runs that a recipe describes; most describe one, which has no name."""

    name: str | None
    config: Config


@functools.cache
def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package: `quickstart`, `paper/baseline`."""
    return tuple(sorted(_names_below(_packaged())))


def _packaged() -> Traversable:
    return resources.files("mixtura.platform") / "recipes"


def _names_below(folder: Traversable) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from (f"{entry.name}/{name}" for name in _names_below(entry))
        elif entry.name.endswith(_SUFFIX):
            yield entry.name.removesuffix(_SUFFIX)


def recipe_name(recipe: str) -> str:
    """The name that a run of this recipe has by default.

    >>> recipe_name("quickstart"), recipe_name("recipes/mine.yaml"), recipe_name("paper/baseline")
    ('quickstart', 'mine', 'paper-baseline')
    """
    return Path(recipe).stem if is_file(recipe) else recipe.replace("/", "-")


def is_path(text: str) -> bool:
    """Whether the name of a recipe or a task looks like a file's."""
    return "/" in text or text.endswith((_SUFFIX, ".yml"))


def is_file(recipe: str, beside: Path = Path()) -> bool:
    """Whether a recipe argument names a file rather than a packaged recipe: by its slash or ending, unless there is no
    such file and a packaged recipe of that name."""
    return is_path(recipe) and (recipe not in recipe_names() or (beside / recipe).is_file())


def description(recipe: str) -> str:
    """The first line of the comment that a recipe begins with; empty if it begins with none."""
    first = _read(recipe, Path())[0].decode("utf-8-sig").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The whole tree of a recipe with dotted overrides applied, checked.

    Raises ConfigError or UnknownNameError that names every wrong key, what was found there and what would be right, and
    RequestError for a recipe of several phases.
    """
    found = load_phases(recipe, overrides)
    if len(found) > 1:
        raise several_runs(recipe, found)
    return found[0].config


def several_runs(recipe: str, phases: Sequence[Phase]) -> RequestError:
    """The answer to a request for one run where a recipe describes several."""
    names = ", ".join(str(phase.name) for phase in phases)
    return RequestError(
        f"recipe {recipe!r} describes several runs, its phases {names}: choose one with --phase NAME, or take a recipe "
        "without phases"
    )


def load_phases(recipe: str, overrides: Sequence[str] = ()) -> list[Phase]:
    """The runs that a recipe describes, in their order, each with its name and what it begins with.

    Raises ConfigError or UnknownNameError as `load` does.
    """
    values = _resolve(recipe, Path())
    given: dict[str, Any] = {}
    for text in overrides:
        given = merged(given, _by_name(_override(text), Path()))
    phases, own = _taken_phases(values), _taken_phases(given)
    if unknown := own.keys() - phases.keys():
        raise UnknownNameError("phase", unknown.pop(), phases, where=f" in recipe {recipe!r}")
    everywhere = merged(values, given)
    if not phases:
        return [Phase(None, validated(everywhere, where=f"recipe {recipe!r}"))]
    base = _section(everywhere, "run").get("name") or recipe_name(recipe)
    found: list[Phase] = []
    for name, phase in phases.items():
        special = merged(phase, own.get(name, {}))
        _refuse_own_beginning(name, special, before=found[-1].name if found else None)
        begins: dict[str, Any] = {"run": {"name": f"{base}-{name}"}}
        if found:
            before = found[-1].config
            begins["run"]["from"] = f"{before.run.name}@{before.training.steps}"
            begins["model"] = {"from": None}
        tree = functools.reduce(merged, [values, phase, given, own.get(name, {}), begins])
        found.append(Phase(name, validated(tree, where=f"phase {name!r} of recipe {recipe!r}")))
    return found


def _taken_phases(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The phases of a recipe's values, which are taken out of them."""
    phases: dict[str, dict[str, Any]] = values.pop("phases", None) or {}
    return phases


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} is {section!r}; write keys below it")
    return section


def _refuse_own_beginning(name: str, special: Mapping[str, Any], before: str | None) -> None:
    """A phase's name and what a later one begins with follow from the recipe."""
    said = {f"{section}.{key}" for section in ("run", "model") for key in _section(special, section)}
    if "run.name" in said:
        raise ConfigError(f"phases.{name}.run.name: a phase is called NAME-{name}; set run.name to choose NAME")
    if before is not None and (twice := said & {"run.from", "model.from"}):
        raise ConfigError(f"phases.{name}.{twice.pop()}: phase {name!r} begins with what {before!r} ended with")


def _file_of(recipe: str, beside: Path | None) -> Path | None:
    """Where a recipe's file is; None for a packaged one, which is all that packaged ones (beside None) extend."""
    return None if beside is None or not is_file(recipe, beside) else beside / recipe


def _read(recipe: str, beside: Path | None) -> tuple[bytes, Path | None]:
    """The text of a recipe and the folder that its paths count from."""
    path = _file_of(recipe, beside)
    if path is None:
        if recipe not in recipe_names():
            raise UnknownNameError("recipe", recipe, recipe_names(), where=" (a file needs a slash or .yaml)")
        return (_packaged() / f"{recipe}{_SUFFIX}").read_bytes(), None
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipe_names(), n=1, cutoff=0.8)
        packaged = f"; the nearest packaged recipe is {near[0]!r}" if near else ""
        raise ConfigError(f"recipe {recipe!r} is a file by its name, but {path} is not there{packaged}")
    return path.read_bytes(), path.parent


def _resolve(recipe: str, beside: Path | None, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    if recipe in seen:
        raise ConfigError(f"recipes extend each other in a circle: {' -> '.join((*seen, recipe))}")
    text, folder = _read(recipe, beside)
    values = read_yaml(text, f"recipe {recipe!r}")
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {recipe!r} holds {type(values).__name__}; a recipe is a mapping of sections")
    parent = values.pop("extends", None)
    values = _by_name(values, folder or Path())
    if parent is None:
        return values
    return merged(_resolve(str(parent), folder, (*seen, recipe)), values)


def _by_name(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Tasks as a mapping by name, those of every phase too."""
    values = _tasks_by_name(values, folder)
    phases = values.get("phases")
    if phases is None:
        return values
    if not isinstance(phases, Mapping):
        raise ConfigError(f"phases is {phases!r}; name them, each with its own keys below its name")
    checked = {}
    for name, own in phases.items():
        if not RUN_NAME.fullmatch(str(name)):
            raise ConfigError(f"phase {name!r} is part of a run's name: use letters, digits, '.', '_' and '-'")
        if own is not None and not isinstance(own, Mapping):
            raise ConfigError(f"phases.{name} is {own!r}; write keys below it, for example {{training: {{steps: 9}}}}")
        checked[str(name)] = _tasks_by_name(dict(own or {}), folder)
    return {**values, "phases": checked}


def _tasks_by_name(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Tasks as a mapping by name, so that a variant or an override can speak of one of them: a bare list becomes one,
    and the path of a task file becomes the task's name with its definition."""
    mixture = values.get("mixture")
    given = mixture.get("tasks") if isinstance(mixture, Mapping) else None
    if not isinstance(given, list | Mapping):
        return values
    tasks: dict[str, Any] = {}
    for name, own in given.items() if isinstance(given, Mapping) else _listed(given):
        key, value = _task_of_file(str(name), own, folder) if is_path(str(name)) else (str(name), own)
        if key in tasks:
            raise ConfigError(f"mixture.tasks has {key!r} twice: give one of them another name, or leave it out")
        tasks[key] = {} if value is None else value
    whole = tasks if isinstance(given, Mapping) else _Whole(tasks)
    return {**values, "mixture": {**values["mixture"], "tasks": whole}}


def _listed(given: list[Any]) -> Iterator[tuple[Any, Any]]:
    """The tasks of a list: names, and names with keys, as in `[squad, c4: {weight: 2}]`."""
    for one in given:
        yield from one.items() if isinstance(one, Mapping) else [(one, None)]


class _Whole(dict[str, Any]):
    """A mapping that was written as a list, and so replaces what it is merged over."""


def _task_of_file(path: str, own: Any, folder: Path) -> tuple[str, dict[str, Any]]:
    if own is not None and not isinstance(own, Mapping):
        raise ConfigError(f"mixture.tasks: {path!r} is given {own!r}; write keys below it, for example {{weight: 2}}")
    definition, files = read_task_file(folder / Path(path).expanduser())
    return str(definition["name"]), {"files": files, **(own or {}), "definition": definition}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings joined key by key, `over` winning; lists and plain values are replaced whole.

    >>> merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    result: dict[str, Any] = _Whole(base) if isinstance(base, _Whole) else dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and not isinstance(value, _Whole)
        result[key] = merged(result[key], value) if both else value
    return result


def _override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {text!r} has no value: write key=value, for example training.steps=500")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of override {text!r} is not YAML: {error}") from None
    nested: Any = parsed
    for part in reversed(path.split(".")):
        nested = {part: nested}
    return dict(nested)


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """What dotted overrides say, as a recipe would say it.

    >>> override_values(["training.steps=500", "training.z_loss=0"])
    {'training': {'steps': 500, 'z_loss': 0}}
    """
    values: dict[str, Any] = {}
    for text in overrides:
        values = merged(values, _override(text))
    return values
