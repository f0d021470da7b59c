"""From the name of a checkpoint or a model to its place.

runs/base/checkpoints/step-000300      a folder: one of ours, or any Hugging Face T5
base@300, base@last, base@best         a run's checkpoint; base@best-rte is the best for a task
models:/base@champion                  what an alias of the registry points to
google-t5/t5-small, ...@REVISION       a model of the hub
checkpoint_1000000                     a checkpoint file of t5x
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixtura.platform.errors import CheckpointError, RequestError, UnknownNameError
from mixtura.platform.orchestration.hub import HubName, hub_folder, parse_hub_name
from mixtura.platform.tracking.aliases import read_aliases, set_alias
from mixtura.platform.tracking.records import read_events
from mixtura.platform.tracking.selection import (
    AVERAGE,
    CheckpointScores,
    best_for,
    best_on_average,
    best_per_task,
    pareto_front,
    scores,
)
from mixtura.platform.training.checkpoint import (
    MANIFEST,
    CheckpointInfo,
    list_checkpoints,
    read_state,
    verify,
)
from mixtura.platform.workspace import Run, Workspace

_ALIAS = re.compile(r"models:/([^/@]+)@([^/@]+)")
_ALIAS_NAME = re.compile(r"(?!latest$)(?![vV]\d+$)[\w-]+")
"""As MLflow takes them."""
_WAYS = "give a folder, RUN@STEP, RUN@last, RUN@best, RUN@best-TASK, models:/NAME@ALIAS, or OWNER/NAME of the hub"


def checkpoint_path(space: Workspace, text: str) -> Path:
    """The verified folder of a checkpoint of ours: with its optimizer and its place in the stream."""
    place = place_of(space, text)
    if isinstance(place, HubName) or not (place / MANIFEST).is_file():
        raise RequestError(
            f"{text!r} is a model, but no checkpoint of a run with an optimizer's state to go on with: "
            "begin with its weights by model.from instead"
        )
    verify(place)
    return place


def model_path(space: Workspace, text: str) -> Path:
    """The folder or file of any model that a name means, downloaded if need be; one of ours is verified."""
    place = place_of(space, text)
    if isinstance(place, HubName):
        return hub_folder(place, weights=True)
    if (place / MANIFEST).is_file():
        verify(place)
    return place


def place_of(space: Workspace, text: str) -> Path | HubName:
    """Where a name leads, without looking into it: an absolute path, or a model at the hub."""
    path = Path(text).expanduser()
    if path.exists():
        return path.absolute()
    if alias := _ALIAS.fullmatch(text):
        return _of_alias(space, alias[1], alias[2])
    if text.startswith(("/", "./", "../", "~")):
        raise RequestError(f"{text!r} is a path by its beginning, but nothing is there (looked in {Path.cwd()})")
    if hub := parse_hub_name(text):
        return hub
    run, at, which = text.rpartition("@")
    if not at or not run or not which or "/" in text:
        raise RequestError(f"{text!r} names no checkpoint: {_WAYS}")
    return _of_run(space, run, which).path


def _of_alias(space: Workspace, name: str, alias: str) -> Path:
    from mixtura.platform.tracking.mlflow_registry import checkpoint_of_alias

    path = Path(checkpoint_of_alias(space.tracking_uri, name, alias))
    if not path.is_dir():
        raise CheckpointError(f"models:/{name}@{alias} points to {path}, and there is no such folder on this machine")
    return path


def _of_run(space: Workspace, name: str, which: str) -> CheckpointInfo:
    run = space.existing_run(name)
    last = _of_run_last(run)
    if which == "last":
        return last
    if which == "best":
        return best_checkpoint(run)
    if which.startswith("best-"):
        return best_for_task(run, which.removeprefix("best-"))
    if not which.isdigit():
        raise RequestError(f"{name}@{which}: after '@' comes a step, 'last', 'best' or 'best-TASK'")
    return _at(run, int(which))


def newest_state(run: Run) -> dict[str, Any]:
    """The state of a run's newest checkpoint: step, place in the stream, what was trained on so far."""
    return read_state(_of_run_last(run).path)


def _of_run_last(run: Run) -> CheckpointInfo:
    saved = list_checkpoints(run.checkpoints)
    if not saved:
        raise RequestError(f"run {run.name!r} has no checkpoint yet")
    return saved[-1]


def best_checkpoint(run: Run) -> CheckpointInfo:
    """The checkpoint that is best on average on validation; the last one where nothing was evaluated."""
    best = best_on_average(scores(read_events(run.events)))
    saved = list_checkpoints(run.checkpoints)
    if best is None:
        if not saved:
            raise CheckpointError(f"run {run.name!r} has no checkpoint")
        return saved[-1]
    return _at(run, best.step)


def run_and_checkpoint(space: Workspace, text: str) -> tuple[Run, CheckpointInfo | None]:
    """A run, and the checkpoint of it that RUN@... names; none where the name is the run's alone."""
    name, at, which = text.partition("@")
    run = space.existing_run(name)
    return run, _of_run(space, name, which) if at else None


def best_for_task(run: Run, task: str) -> CheckpointInfo:
    """The checkpoint that is best for a task on validation; the task by its name or by the end of it."""
    best = best_per_task(scores(read_events(run.events)))
    return _at(run, best[task_named(task, best, run.name)].step)


def front_checkpoints(run: Run) -> list[CheckpointInfo]:
    """Those that no other one beats on every task, the best average first."""
    return [_at(run, one.step) for one in pareto_front(scores(read_events(run.events)))]


def task_named(text: str, tasks: Iterable[str], run: str) -> str:
    """The evaluated task that a person means: its whole name, or the end of it after an underscore.

    >>> task_named("rte", ["glue_rte", "glue_sst2"], "base")
    'glue_rte'
    """
    known = sorted(tasks)
    if text in known:
        return text
    ends = [name for name in known if name.endswith(f"_{text}")]
    if len(ends) > 1:
        raise RequestError(f"{text!r} may be {' or '.join(ends)}: give the whole name")
    if not ends:
        raise UnknownNameError("evaluated task", text, known, where=f" in run {run!r}")
    return ends[0]


def promote_checkpoint(space: Workspace, checkpoint: str, alias: str, model: str | None = None) -> str:
    """Give a run's checkpoint a name in the registry, and return how it is called from now on."""
    from mixtura.platform.orchestration.serve import LOADER
    from mixtura.platform.orchestration.track import store_uri
    from mixtura.platform.tracking.mlflow_registry import promote

    if not _ALIAS_NAME.fullmatch(alias):
        raise RequestError(
            f"{alias!r} cannot be an alias: take letters, digits, '-' and '_', neither 'latest' nor a version like v1"
        )
    run_name, at, which = checkpoint.rpartition("@")
    if not at or checkpoint.startswith("models:/"):
        raise RequestError(f"{checkpoint!r}: give the checkpoint of a run as RUN@STEP, RUN@best or RUN@best-TASK")
    info = _of_run(space, run_name, which)
    run = space.existing_run(run_name)
    verify(info.path)
    uri = store_uri(space, run.config())
    name, _ = promote(uri, run.path / "mlflow.json", run.name, info.step, alias, model, LOADER)
    for other in space.runs():
        if other.path != run.path and f"{name}@{alias}" in read_aliases(other.path):
            set_alias(other.path, name, alias, None)
    return f"models:/{name}@{alias}"


def checkpoint_table(run: Run, by: str = AVERAGE) -> list[dict[str, Any]]:
    """A row for each checkpoint with its headline metrics on validation, the best average first, or the best for the
    task `by`; then by step."""
    found = scores(read_events(run.events))
    best, front = best_for(found), {one.step for one in pareto_front(found)}
    tasks = sorted({task for one in found for task in one.results})
    if by != AVERAGE:
        chosen = task_named(by, tasks, run.name)
        measured = [one for one in found if chosen in one.results]
        order = sorted(measured, key=lambda one: (-one.goodness(chosen), one.step))
    else:
        chosen, order = AVERAGE, found
    place = {one.step: number for number, one in enumerate(order)}
    by_step, names = {one.step: one for one in found}, _names_by_step(run, tasks)
    rows = []
    for info in sorted(
        list_checkpoints(run.checkpoints), key=lambda info: (place.get(info.step, len(place)), info.step)
    ):
        scored = by_step.get(info.step)
        headline = {f"{task} {_metric(found, task)}": scored.value(task) if scored else None for task in tasks}
        rows.append(
            {
                "checkpoint": f"{run.name}@{info.step}",
                "step": info.step,
                "average": scored.average if scored else None,
                **headline,
                "best for": ", ".join(best.get(info.step, ())),
                "Pareto front": "yes" if info.step in front else "",
                "names": ", ".join(names.get(info.step, ())),
                "path": str(info.path),
            }
        )
    return rows


def _names_by_step(run: Run, tasks: Iterable[str]) -> dict[int, list[str]]:
    """What people call the checkpoints of a run, beside the names that every run gives to its best ones."""
    given = {f"{run.name}@{alias}" for alias in ("champion", *(f"best-{task}" for task in tasks))}
    names: dict[int, list[str]] = {}
    for name, step in sorted(read_aliases(run.path).items()):
        if name not in given:
            names.setdefault(step, []).append(name)
    return names


def _metric(found: list[CheckpointScores], task: str) -> str:
    return next(one.results[task].metric for one in found if task in one.results)


def _at(run: Run, step: int) -> CheckpointInfo:
    saved = list_checkpoints(run.checkpoints)
    for info in saved:
        if info.step == step:
            return info
    there = ", ".join(str(info.step) for info in saved) or "none"
    raise UnknownNameError(
        "checkpoint", f"{run.name}@{step}", [f"{run.name}@{info.step}" for info in saved], f" (steps: {there})"
    )
