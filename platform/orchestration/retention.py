"""Which checkpoints of a run stay, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml

from mixtura.platform.config import Config
from mixtura.platform.tracking.aliases import read_aliases
from mixtura.platform.tracking.records import Record, read_events
from mixtura.platform.tracking.selection import best_for, pareto_front, scores, settled_steps
from mixtura.platform.training.checkpoint import delete_checkpoint, list_checkpoints, retain
from mixtura.platform.workspace import Run

_FROM = re.compile(r"^  (?:from|resolved): (.+?)(?: xxh3-128:\w+)?$", re.MULTILINE)
"""`run.from`, `model.from` and what that was found to be, as `Config.to_yaml` writes them: reading all of every run's
YAML would take seconds."""
_FOLDER = re.compile(r"step-(\d+)")


def delete_superseded(run: Run, config: Config, *, evaluated: bool) -> list[int]:
    """Delete the checkpoints that neither the settings nor anybody else wants to keep; returns their steps.

    Kept are the newest (`checkpoints.keep`), those of every so many steps (`checkpoints.keep_every`), those that wait
    to be `evaluated`, and whatever `protected` names.
    """
    if config.checkpoints.keep is None:
        return []
    infos, records = {info.step: info for info in list_checkpoints(run.checkpoints)}, read_events(run.events)
    waiting = infos.keys() - settled_steps(records) if evaluated else set()
    kept = protected(run, records) | waiting
    deleted = retain(infos.values(), config.checkpoints.keep, kept, config.checkpoints.keep_every)
    for step in deleted:
        delete_checkpoint(infos[step])
    return deleted


def protected(run: Run, records: Sequence[Record]) -> set[int]:
    """Steps whose checkpoints stay however old they are: best for a task or on average, beaten by no other one on all
    tasks, named by an alias of the registry, or named by another run as where it begins."""
    found = scores(records)
    best = {step for step, what in best_for(found).items() if what}
    front = {one.step for one in pareto_front(found)}
    return best | front | set(read_aliases(run.path).values()) | set(begun_from(run))


def begun_from(run: Run) -> Iterator[int]:
    """Steps of this run that other runs of the workspace name in `run.from` or `model.from`."""
    for path in run.path.parent.glob("*/config.yaml"):
        if path.parent != run.path:
            yield from steps_named(run.name, _FROM.findall(path.read_text(errors="replace")))


def steps_named(name: str, values: Iterable[str]) -> Iterator[int]:
    """Steps of a run among checkpoints that are named as `RUN@STEP` or by their folder.

    >>> list(steps_named("base", ["base@300", "base@last", "other@100", "runs/base/checkpoints/step-000200", "null"]))
    [300, 200]
    """
    for value in values:
        text = str(yaml.safe_load(value))
        run, _, which = text.rpartition("@")
        path = Path(text)
        if run == name and which.isdigit():
            yield int(which)
        elif path.parts[-3:-1] == (name, "checkpoints") and (match := _FOLDER.fullmatch(path.name)):
            yield int(match[1])
