"""Where a person picks a checkpoint in MLflow, and what stands there.

MLflow's page of models always opens sorted by age, with the metrics out of sight to the right, and no link changes
that. Its page of runs does take a sort and columns, from a named view that is stored as a tag of the experiment. So a
checkpoint is a model, and also a row there: a nested run with the checkpoint's metrics, whose model is one click away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from mixtura.platform.tracking.records import EvaluationResult
from mixtura.platform.tracking.selection import AVERAGE, CheckpointScores, best_for, best_per_task, pareto_front

CHECKPOINT_OF, BEST, PARETO, FILES = "mixtura.checkpoint_of", "best", "pareto", "files"
VIEW_TAG = "mlflow.sharedViewState."
MAX_VIEW_CHARACTERS = 20_000
_RULE, _SPACE = "| --- ", "&emsp;"
_MODE = "workflowType=machine_learning"  # otherwise the page opens for agents and traces, without models


def checkpoint_link(base_url: str, experiment_id: str, run_name: str) -> str:
    """The page where a run's checkpoints stand, best average first, one column for each task.

    >>> checkpoint_link("http://127.0.0.1:5000/", "1", "quickstart")
    'http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=quickstart'
    """
    view = quote(run_name, safe="")
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs?{_MODE}&viewStateShareKey={view}"


def models_link(base_url: str, experiment_id: str) -> str:
    """MLflow's own page of models: the newest first, a bar chart for each metric."""
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/models?{_MODE}&viewMode=CHART"


def run_link(base_url: str, experiment_id: str, run_id: str) -> str:
    """The page of a run: its curves, parameters and description."""
    return f"{base_url.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{_MODE}"


def checkpoint_view(run_name: str, metrics: Sequence[str], more_metrics: Sequence[str], time_s: float) -> str:
    """The value of the experiment's tag that holds the view behind `checkpoint_link`.

    `metrics` are the first columns, and the first of them is the one to sort by; `more_metrics` come at the end.
    """
    # Wide enough for the task in "task/metric"; pointing at a head shows all of it.
    widths = {f"metrics.`{metric}`": min(50 + 7 * len(metric), 155) for metric in [*metrics, *more_metrics]}
    columns = {
        "attributes.`Run Name`": 160,
        "runDateAndNestInfo": 140,
        **{f"metrics.`{metric}`": widths[f"metrics.`{metric}`"] for metric in metrics},
        f"tags.`{BEST}`": 200,
        f"tags.`{PARETO}`": 70,
        f"tags.`{FILES}`": 70,
        "attributes.`Models`": 220,
        **widths,
        "duration": 80,
    }
    state = {
        "searchFilter": f'tags.`{CHECKPOINT_OF}` = "{run_name}"',
        "orderByKey": f"metrics.`{metrics[0]}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [name for name in columns if name.startswith(("metrics.", "tags.", "attributes.`Models`"))],
        "columnOrder": list(columns),
        "columnWidths": columns,
        "viewMaximized": True,
        "runListHidden": False,
    }
    time_ms = int(time_s * 1000)
    view = {"name": f"checkpoints of {run_name}", "createdAt": time_ms, "updatedAt": time_ms}
    return json.dumps(view | {"state": json.dumps(state)})


def metric_name(result: EvaluationResult, split: str) -> str:
    """A result's name in MLflow: the split is left out for the one by which checkpoints are picked.

    >>> metric_name(EvaluationResult(100, "rte", "validation", "accuracy", 66.1), split="validation")
    'rte/accuracy'
    """
    name = f"{result.task}/{result.metric}"
    return name if result.split == split else f"{result.split}/{name}"


def shown(value: float | None) -> str:
    """A number for a person: four digits.

    >>> shown(53.10147), shown(0.01234567), shown(100.0), shown(None)
    ('53.1', '0.01235', '100', '-')
    """
    return "-" if value is None else f"{value:.4g}"


def run_description(run_name: str, found: Sequence[CheckpointScores]) -> str:
    """What stands at the top of the run's page: its checkpoints, best first, and how to use them."""
    tasks, marks = list(best_per_task(found)), best_for(found)
    front = {one.step for one in pareto_front(found)}
    lines = [_line(["checkpoint", AVERAGE, *tasks, "best for", "Pareto front"]), _RULE * (len(tasks) + 4) + "|"]
    for one in found:
        values = [shown(one.average), *(shown(one.value(task)) for task in tasks)]
        on_front = "yes" if one.step in front else ""
        lines.append(_line([f"{run_name}@{one.step}", *values, ", ".join(marks[one.step]), on_front]))
    best = next((one for one in found if one.average is not None), None)
    head = f"Best on average: **{run_name}@{best.step}** ({shown(best.average)}). " if best is not None else ""
    use = f"To use one: `mixtura predict {run_name}@STEP`. This table: `mixtura checkpoints list {run_name}`."
    return "\n".join([head + use, "", *lines])


def checkpoint_description(name: str, model_id: str, results: Sequence[EvaluationResult]) -> str:
    """What stands on the page of one checkpoint: how to use it, and every metric with its interval, baseline and number
    of examples."""
    use = (
        f"To use it: `mixtura predict {name}`, or over HTTP: `{serve_command(model_id)}`. What it answered: Artifacts."
    )
    head = ["split", "task", "metric", "value", "95 % interval", "trivial baseline", "examples"]
    lines = [_line(head), _RULE * len(head) + "|"]
    for result in results:
        interval = "-" if result.low is None else f"{shown(result.low)} to {shown(result.high)}"
        examples = "-" if result.examples is None else str(result.examples)
        baseline = shown(result.baseline)
        lines.append(
            _line([result.split, result.task, result.metric, shown(result.value), interval, baseline, examples])
        )
    return "\n".join([use, "", *lines])


def serve_command(model_id: str) -> str:
    """MLflow's command that serves a model of the store that MLFLOW_TRACKING_URI names."""
    return f"mlflow models serve -m models:/{model_id} --env-manager local"


def _line(cells: Sequence[str]) -> str:
    """A row; MLflow's pages put no space between columns, so that each cell brings some."""
    return "| " + " | ".join(cell.replace("|", "\\|") + _SPACE for cell in cells) + " |"
