"""From the name of a checkpoint or a model to its place.

runs/base/checkpoints/step-000300      a folder: one of ours, or any Hugging Face T5
base@300, base@last, base@best         a run's checkpoint; base@best-rte is the best for a task
models:/base@champion                  what an alias of the registry points to
google-t5/t5-small, ...@REVISION       a model of the hub
checkpoint_1000000                     a checkpoint file of t5x
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mixtura.platform.errors import CheckpointError, RequestError, UnknownNameError
from mixtura.platform.orchestration.hub import HubName, hub_folder, parse_hub_name
from mixtura.platform.tracking.records import read_events
from mixtura.platform.tracking.selection import CheckpointScores, best_for, best_on_average, best_per_task, scores
from mixtura.platform.training.checkpoint import (
    MANIFEST,
    CheckpointInfo,
    list_checkpoints,
    read_state,
    verify,
)
from mixtura.platform.workspace import Run, Workspace

_ALIAS = re.compile(r"models:/([^/@]+)@([^/@]+)")
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
    from mixtura.platform.tracking.mlflow_tracker import checkpoint_of_alias

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
        best = best_per_task(scores(read_events(run.events)))
        task = which.removeprefix("best-")
        if task not in best:
            raise UnknownNameError("evaluated task", task, best, where=f" in run {name!r}")
        return _at(run, best[task].step)
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


def checkpoint_table(run: Run) -> list[dict[str, Any]]:
    """A row for each checkpoint with its headline metrics on validation, the best average first, then by step."""
    found = scores(read_events(run.events))
    best = best_for(found)
    place = {one.step: number for number, one in enumerate(found)}
    tasks = sorted({task for one in found for task in one.results})
    by_step = {one.step: one for one in found}
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
                "path": str(info.path),
            }
        )
    return rows


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
