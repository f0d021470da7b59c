"""MLflow's registry: checkpoints as versions of registered models, and the aliases that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mixtura.platform.errors import CheckpointError, ResourceError, UnknownNameError
from mixtura.platform.tracking.aliases import read_aliases, set_alias
from mixtura.platform.tracking.mlflow_models import Loader, write_model
from mixtura.platform.tracking.mlflow_state import CHECKPOINT_URI, Checkpoint, State
from mixtura.platform.tracking.mlflow_store import connect, shown_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def checkpoint_of_alias(store_uri: str, model: str, alias: str) -> str:
    """The folder of the checkpoint that an alias of a registered model points to."""
    from mlflow.exceptions import MlflowException

    client = connect(store_uri)
    try:
        version = client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        found = client.search_registered_models()
        if model not in {one.name for one in found}:
            raise UnknownNameError("registered model", model, [one.name for one in found]) from error
        known = client.get_registered_model(model).aliases
        raise UnknownNameError("alias", alias, known, where=f" of the registered model {model!r}") from error
    place = version.tags.get(CHECKPOINT_URI) or _place_of_run(client, version)
    if not place:
        raise CheckpointError(
            f"version {version.version} of {model!r}, which alias {alias!r} points to, says nowhere where its files "
            f"are: no run of ours registered it (its tag {CHECKPOINT_URI} is missing)"
        )
    return str(place)


def _place_of_run(client: MlflowClient, version: ModelVersion) -> str:
    """Where the files are of a version that a person registered on MLflow's pages, which copy no tags."""
    if not version.run_id:
        return ""
    return str(client.get_run(version.run_id).data.tags.get(CHECKPOINT_URI, ""))


def promote(
    store_uri: str, state_path: Path, run_name: str, step: int, alias: str, model: str | None, loader: Loader
) -> tuple[str, str]:
    """Point an alias of a registered model, by default the run's own, at the checkpoint of a step.

    Returns the model's name and version. `state_path` is the run's `mlflow.json`, which says what MLflow knows of it;
    `loader` loads the checkpoint where MLflow serves it.
    """
    from mlflow.exceptions import MlflowException

    client, state = connect(store_uri), State.load(state_path)
    checkpoint = state.checkpoints.get(str(step)) if state.store == store_uri else None
    if checkpoint is None:
        raise ResourceError(
            f"the tracking store {shown_uri(store_uri)} has no checkpoint {run_name}@{step} yet: "
            "run the training command once more, which sends what is missing"
        )
    name = model or run_name
    before = read_aliases(state_path.parent)
    set_alias(state_path.parent, name, alias, step)
    try:
        if not checkpoint.served:
            write_model(client, loader, checkpoint)
        version = version_of(client, name, f"{run_name}@{step}", step, checkpoint)
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        set_alias(state_path.parent, name, alias, before.get(f"{name}@{alias}"))
        raise ResourceError(f"the registry refused models:/{name}@{alias}: {error.message}") from error
    # A driver that follows the run may have written down what was there before.
    set_alias(state_path.parent, name, alias, step)
    return name, version


def version_of(client: MlflowClient, model: str, description: str, step: int, checkpoint: Checkpoint) -> str:
    """A checkpoint's version of a registered model; both are made if need be."""
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model, description=f"Checkpoints of the run {description.rpartition('@')[0]}.")
    # Versions do not give their model's id back, so ours keep it as a tag; one made on the pages has it as its source.
    versions = client.search_model_versions(f"name = '{model}'")
    known = {
        version.tags.get("model_id", version.source.removeprefix("models:/")): str(version.version)
        for version in versions
    }
    return known.get(checkpoint.model_id) or _register(client, model, description, step, checkpoint)


def _register(client: MlflowClient, model: str, description: str, step: int, checkpoint: Checkpoint) -> str:
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    logged = client.get_logged_model(checkpoint.model_id)
    version = client.create_model_version(
        model,
        # Not "models:/ID", which the store would look for at the address of the whole process.
        source=logged.artifact_location,
        run_id=checkpoint.run_id,
        tags={"model_id": checkpoint.model_id, CHECKPOINT_URI: logged.tags.get(CHECKPOINT_URI, ""), "step": str(step)},
        description=description,
        model_id=checkpoint.model_id,
    )
    # The pages show a model's versions from this tag; MLflow's own function to register a model sets it too.
    others = json.loads(logged.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    versions = [*others, {"name": model, "version": version.version}]
    client.set_logged_model_tags(checkpoint.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})
    return str(version.version)
