"""Where a run's records go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.orchestration.provenance import provenance, training_data
from mixtura.platform.orchestration.serve import LOADER
from mixtura.platform.orchestration.tasks import tasks_of
from mixtura.platform.tracking.mlflow_state import State
from mixtura.platform.tracking.mlflow_store import connect, experiment, is_server
from mixtura.platform.tracking.mlflow_tracker import MlflowTracker
from mixtura.platform.workspace import Run, Workspace

EXPERIMENT = "mixtura"


def tracker_of(space: Workspace, run: Run, config: Config, parent_run_id: str | None = None) -> MlflowTracker:
    """The run in the workspace's MLflow store, nested in another one for a trial of a search."""
    return MlflowTracker(
        store_uri(space, config),
        EXPERIMENT,
        run.name,
        run.path / "mlflow.json",
        params=parameters(config.to_dict()),
        tags={"mixtura.identity": config.identity(), **provenance(run)},
        tasks=evaluated_tasks(config),
        data=training_data(run),
        loader=LOADER,
        parent_run_id=parent_run_id,
    )


def store_uri(space: Workspace, config: Config) -> str:
    """The store that a run goes to: its recipe's, or the workspace's."""
    return config.tracking.uri or space.tracking_uri


def refuse_unusable_store(space: Workspace, config: Config) -> None:
    """Raise ResourceError where the run's store cannot be reached or written to: hours later would be late to know.

    Once the run has begun, a store that is away is waited for.
    """
    uri = store_uri(space, config)
    experiment(uri, connect(uri), EXPERIMENT)


def experiment_id(space: Workspace) -> str | None:
    """MLflow's id of the experiment that all runs of a workspace are in; None before the first run."""
    found = connect(space.tracking_uri).get_experiment_by_name(EXPERIMENT)
    return None if found is None else str(found.experiment_id)


def runs_on_servers(space: Workspace) -> dict[str, tuple[str, str]]:
    """The runs that were sent to a tracking server: its address, and the id of their experiment there."""
    states = {run.name: State.load(run.path / "mlflow.json") for run in space.runs()}
    return {name: (state.store, state.experiment_id) for name, state in states.items() if is_server(state.store)}


def evaluated_tasks(config: Config) -> tuple[str, ...]:
    """The tasks of a mixture that have a metric."""
    return tuple(name for name, task in tasks_of(config).items() if task.metrics and "validation" in task.evaluated)


def parameters(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A tree of settings as flat parameters.

    >>> parameters({"training": {"steps": 10}})
    {'training.steps': '10'}
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= parameters(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
