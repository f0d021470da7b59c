"""Small files to look at on MLflow's page of a run: what a checkpoint answered, and the plot of the losses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_ROWS = 100
"""Answers shown of each task and split; all of them are in the run's folder."""
MAX_CHARACTERS = 1000
"""Of a text in such a table; what follows is left out."""

_TEXTS = ("inputs", "targets", "prediction")
_NUMBERS = ("log_probability", "target_log_probability", "target_tokens", "target_bytes")


def log_answers(client: MlflowClient, run_id: str, files: Sequence[Path]) -> None:
    """Show the first answers of files of answers (JSON lines) as tables below `predictions/`.

    MLflow's own `log_table` would add the rows to those that are there, where an earlier try broke off.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

    tables = {f"predictions/{path.stem}.json": path for path in files if path.is_file()}
    for name, path in tables.items():
        with open(path, encoding="utf-8") as lines:
            records = [json.loads(line) for line in itertools.islice(lines, MAX_ROWS)]
        client.log_text(run_id, json.dumps(answers_table(records), ensure_ascii=False), name)
    if tables:
        known = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        new = [entry for name in tables if (entry := {"path": name, "type": "table"}) not in known]
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, *new]))


def log_plot(client: MlflowClient, run_id: str, picture: Path) -> None:
    """Show a picture, if it is there."""
    if picture.is_file():
        client.log_artifact(run_id, str(picture))


def answers_table(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Records of answers in the form of MLflow's tables.

    >>> answers = {"inputs": "a", "targets": "b", "prediction": "c", "log_probability": -1.5}
    >>> answers_table([{**answers, "scores": {"f1": 0}}])
    {'columns': ['inputs', 'targets', 'prediction', 'log_probability', 'f1'], 'data': [['a', 'b', 'c', -1.5, 0]]}
    """
    records = list(records)
    there = {name for record in records for name in record}
    texts, numbers = ([name for name in names if name in there] for names in (_TEXTS, _NUMBERS))
    scores = list(dict.fromkeys(name for record in records for name in record.get("scores", {})))
    rows = [
        [
            *(_cut(str(record.get(name, ""))) for name in texts),
            *(record.get(name) for name in numbers),
            *(record.get("scores", {}).get(name) for name in scores),
        ]
        for record in records
    ]
    return {"columns": [*texts, *numbers, *scores], "data": rows}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
