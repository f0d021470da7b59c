"""What the tracker remembers of a run between two rounds, in `mlflow.json` in the run's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mixtura.platform.files import write_json_atomically
from mixtura.platform.tracking.mlflow_data import Dataset
from mixtura.platform.tracking.records import EvaluationResult

if TYPE_CHECKING:
    from mlflow.entities import Metric

CHECKPOINT_URI = "checkpoint_uri"
"""The tag of rows, models and versions that says where a checkpoint's files are."""


@dataclass
class Checkpoint:
    """What MLflow has of a checkpoint."""

    run_id: str
    model_id: str
    path: str = ""
    version: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    served: bool = False
    """Whether its model has the files by which MLflow loads and serves it."""

    def metric(
        self,
        name: str,
        value: float,
        step: int,
        time_s: float,
        *,
        of_model: bool = True,
        measured_on: Dataset | None = None,
    ) -> Metric:
        """A metric of its row and, if wanted, of its model. Five digits, as many as a column shows."""
        from mlflow.entities import Metric

        model = {"model_id": self.model_id, "run_id": self.run_id} if of_model else {}
        data = {} if measured_on is None else measured_on.of_metric
        return Metric(name, float(f"{value:.5g}"), int(time_s * 1000), step, **model, **data)


@dataclass
class State:
    """What `mlflow.json` holds."""

    store: str = ""
    experiment_id: str = ""
    run_id: str = ""
    positions: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    """The last step sent, by metric. A run that resumed from an earlier checkpoint repeats steps; they are not sent."""
    loss: float | None = None
    """The newest training loss."""
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    results: list[EvaluationResult] = field(default_factory=list)
    averages: dict[str, float] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def load(path: Path) -> State:
        """What was saved; nothing known where there is no such file."""
        if not path.is_file():
            return State()
        values = json.loads(path.read_text())
        values["checkpoints"] = {step: Checkpoint(**entry) for step, entry in values["checkpoints"].items()}
        values["results"] = [EvaluationResult(**entry) for entry in values["results"]]
        return State(**values)

    def save(self, path: Path) -> None:
        """Write it in one piece."""
        write_json_atomically(path, asdict(self))
