"""A checkpoint as a model that MLflow itself loads and serves: text in, text out.

    MLmodel               signature; which module of ours loads it, and of which checkpoint, by folder and digest
    requirements.txt      mixtura, mlflow and torch as they were (conda.yaml and python_env.yaml say the same)
    input_example.json    a request

A few kilobytes. The weights stay where they were written, and nothing is pickled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mixtura
from mixtura.platform.tracking.mlflow_state import Checkpoint
from mixtura.platform.tracking.pages import serve_command

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

INPUTS = "inputs"
"""The column of texts to answer; a plain list of texts will do as well."""
PARAMETERS: Mapping[str, tuple[str, float]] = {
    "decode_length": ("long", 128),
    "beams": ("long", 1),
    "length_penalty": ("double", 0.6),
}
"""What may be asked beside the texts: MLflow's type and what is taken if it is left out, as `mixtura predict` does."""
EXTERNAL = "mlflow.model.isExternal"
"""MLflow's tag of a model without such files."""

NOTE = "mlflow.note.content"
"""MLflow's tag that its pages show as the description."""

_EXAMPLE = "translate English to German: That is good."


@dataclass(frozen=True)
class Loader:
    """Who loads a checkpoint where MLflow serves it."""

    module: str
    """A module with `_load_pyfunc(path, config)`."""
    config_of: Callable[[Path], dict[str, str] | None]
    """The `config` that it needs for a checkpoint's folder; None where no whole checkpoint is there."""


def write_model(client: MlflowClient, loader: Loader, checkpoint: Checkpoint) -> bool:
    """Write the files of a checkpoint's model to its place in MLflow, and return whether that can be: the checkpoint
    may have been deleted meanwhile. Writing them twice changes nothing."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    config = loader.config_of(Path(checkpoint.path)) if checkpoint.path else None
    if config is None:
        return False
    model = client.get_logged_model(checkpoint.model_id)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_model(
            path,
            loader_module=loader.module,
            model_config=config,
            signature=_signature(),
            pip_requirements=_requirements(),
            input_example=([_EXAMPLE], {"beams": 1}),
            mlflow_model=Model(**_identity(model)),
        )
        client.log_model_artifacts(model.model_id, str(path))
    client.set_logged_model_tags(model.model_id, {NOTE: _description(model.model_id, checkpoint.path)})
    if EXTERNAL in model.tags:
        client.delete_logged_model_tag(model.model_id, EXTERNAL)
    return True


def bad_request(text: str) -> Exception:
    """What a loader raises so that MLflow's server answers with 400 and this text."""
    from mlflow.exceptions import MlflowException

    error: Exception = MlflowException.invalid_parameter_value(text)
    return error


def _description(model_id: str, folder: str) -> str:
    asked = ", ".join(f"`{name}` ({default})" for name, (_, default) in PARAMETERS.items())
    return (
        f"Text in, text out: takes a list of texts, or a table with the column `{INPUTS}`; gives `prediction` and "
        f"`log_probability`. Parameters: {asked}.\n\nTo serve it, where MLFLOW_TRACKING_URI names this store: "
        f"`{serve_command(model_id)}`. The weights are in `{folder}`."
    )


def _identity(model: LoggedModel) -> dict[str, Any]:
    return {
        "artifact_path": model.artifact_location,
        "model_uuid": model.model_id,
        "model_id": model.model_id,
        "run_id": model.source_run_id,
    }


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        # Without a name: for a named column MLflow refuses plain lists of texts before a loader sees them.
        inputs=Schema([ColSpec("string")]),
        outputs=Schema([ColSpec("string", "prediction"), ColSpec("double", "log_probability")]),
        params=ParamSchema([ParamSpec(name, kind, default) for name, (kind, default) in PARAMETERS.items()]),
    )


def _requirements() -> list[str]:
    """Pinned, without the local part of a version (as in 2.13.0+cpu), which no index has."""
    pinned = {name: metadata.version(name).partition("+")[0] for name in ("mlflow", "torch")}
    return [f"{name}=={version}" for name, version in {"mixtura": mixtura.__version__, **pinned}.items()]
