"""The data that a run was trained on and its checkpoints were measured on, as MLflow's datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mixtura.platform.tracking.records import EvaluationResult

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset as Entity


@dataclass(frozen=True)
class Dataset:
    """Examples by what they are (task and split), which exactly (a digest), where and how many."""

    name: str
    digest: str
    source: str
    rows: int | None = None

    @property
    def of_metric(self) -> dict[str, str]:
        """As a metric that was measured on it names it."""
        return {"dataset_name": self.name, "dataset_digest": self.digest}


def measured_on(result: EvaluationResult) -> Dataset | None:
    """The examples of a result; None where an earlier version wrote it, which did not say.

    >>> measured_on(EvaluationResult(10, "rte", "test", "f1", 5.0, data="3f0c", data_source="/caches/rte-3f0c"))
    Dataset(name='rte/test', digest='3f0c', source='/caches/rte-3f0c', rows=None)
    """
    if result.data is None:
        return None
    return Dataset(f"{result.task}/{result.split}", result.data, result.data_source or "", result.examples)


def log_datasets(
    client: MlflowClient, run_id: str, datasets: Iterable[Dataset], context: Literal["training", "eval"]
) -> None:
    """Name datasets as inputs of a run; naming one twice changes nothing."""
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    tags = [InputTag(MLFLOW_DATASET_CONTEXT, context)]
    inputs = [DatasetInput(_entity(dataset), tags) for dataset in dict.fromkeys(datasets)]
    if inputs:
        client.log_inputs(run_id, inputs)


def _entity(dataset: Dataset) -> Entity:
    from mlflow.entities import Dataset as Entity

    kind = dataset.source.partition("://")[0] if "://" in dataset.source else "local"
    profile = None if dataset.rows is None else json.dumps({"num_rows": dataset.rows})
    return Entity(dataset.name, dataset.digest, kind, json.dumps({"uri": dataset.source}), profile=profile)
