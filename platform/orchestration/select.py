"""From a checkpoint's name to its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixtura.platform.errors import CheckpointError, RequestError, UnknownNameError
from mixtura.platform.tracking.records import read_events
from mixtura.platform.tracking.selection import CheckpointScores, best_for, best_on_average, best_per_task, scores
from mixtura.platform.training.checkpoint import CheckpointInfo, list_checkpoints, read_state, verify
from mixtura.platform.workspace import CheckpointName, Run, Workspace, parse_checkpoint


def checkpoint_path(space: Workspace, text: str) -> Path:
    """The verified folder that a name means: a folder, `RUN@STEP`, `RUN@last`, `RUN@best` or `RUN@best-TASK`."""
    named = parse_checkpoint(text)
    path = _of_run(space, named).path if isinstance(named, CheckpointName) else named
    verify(path)
    return path


def _of_run(space: Workspace, named: CheckpointName) -> CheckpointInfo:
    run = space.existing_run(named.run)
    last = _of_run_last(run)
    if named.which == "last":
        return last
    if named.which == "best":
        return best_checkpoint(run)
    if named.which.startswith("best-"):
        best = best_per_task(scores(read_events(run.events)))
        task = named.which.removeprefix("best-")
        if task not in best:
            raise UnknownNameError("evaluated task", task, best, where=f" in run {run.name!r}")
        return _at(run, best[task].step)
    if not named.which.isdigit():
        raise RequestError(f"{named.run}@{named.which}: after '@' comes a step, 'last', 'best' or 'best-TASK'")
    return _at(run, int(named.which))


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
