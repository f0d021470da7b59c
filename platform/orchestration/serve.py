"""A checkpoint as MLflow loads and serves it; `mixtura.platform.tracking.mlflow_models` writes what leads here.

mlflow models serve -m models:/base@champion --env-manager local --port 5001
mlflow.pyfunc.load_model("models:/base@champion").predict(["a text"], params={"beams": 4})
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtura.platform.errors import CheckpointError
from mixtura.platform.tracking.mlflow_models import INPUTS, PARAMETERS, Loader, bad_request
from mixtura.platform.training.checkpoint import MANIFEST, manifest_digest, read_manifest, verify

if TYPE_CHECKING:
    import pandas as pd

    from mixtura.models.t5 import Answering
    from mixtura.platform.data.vocabulary import Vocabulary

_CHECKPOINT, _MANIFEST = "checkpoint", "manifest_xxh3_128"
_LOWEST = {"decode_length": 1, "beams": 1, "length_penalty": 0}


def config_of(path: Path) -> dict[str, str] | None:
    """Which checkpoint is to be served, by its folder and its manifest's digest; None where none is there."""
    if not (path / MANIFEST).is_file():
        return None
    return {_CHECKPOINT: str(path), _MANIFEST: manifest_digest(read_manifest(path))}


LOADER = Loader(__name__, config_of)


class Served:
    """Answers texts with a model, one request after the other, so that each has all threads."""

    def __init__(self, model: Answering, vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self._answering = threading.Lock()

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row for each text: `prediction` and its `log_probability`. MLflow names the arguments so."""
        import pandas as pd

        from mixtura.platform.orchestration.predict import answers

        asked = {name: default for name, (_, default) in PARAMETERS.items()} | dict(params or {})
        for name, lowest in _LOWEST.items():
            if asked[name] < lowest:
                raise bad_request(f"{name} is {asked[name]}, and must be {lowest} or more")
        texts = texts_of(model_input)
        with self._answering:
            found = answers(self.model, self.vocabulary, texts, **asked)
        return pd.DataFrame(
            {
                "prediction": [one.text for one in found],
                "log_probability": [one.log_probability for one in found],
            }
        )


def texts_of(frame: pd.DataFrame) -> list[str]:
    """The texts of a request, as MLflow hands on what it takes: a list of texts, a table with the column `inputs`, or
    a dictionary with a list under that name."""
    name = frame.columns[0] if len(frame.columns) else None
    if name not in (0, INPUTS):
        raise bad_request(f"the first column is {name!r}: give a list of texts, or a table with the column {INPUTS!r}")
    texts = [text for cell in frame[name] for text in _in_cell(cell)]
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise bad_request(f"row {place} of {INPUTS!r}, counted from 0, is no text: {text!r}")
    return texts


def _in_cell(cell: Any) -> Iterable[Any]:
    """The values of a cell: MLflow hands a list on as it is, and a lone text sometimes as an array of no dimension."""
    plain = cell.tolist() if hasattr(cell, "tolist") else cell
    return plain if isinstance(plain, list) else [plain]


def _load_pyfunc(path: str, config: Mapping[str, str] | None = None) -> Served:  # noqa: ARG001
    """The model of a checkpoint whose every byte is the one that was committed. MLflow calls this by its name.

    Raises CheckpointError where the files are gone, or are those of another checkpoint.
    """
    from mixtura.platform.orchestration.ensembles import Answerer, load

    checkpoint, expected = (config or {}).get(_CHECKPOINT, ""), (config or {}).get(_MANIFEST, "")
    place = Path(checkpoint)
    if not (place / MANIFEST).is_file():
        raise CheckpointError(
            f"the files of this model are not at {checkpoint!r}: deleted, moved, or not on this machine. Say where "
            f"""they are now with MLFLOW_PYFUNC_INFERENCE_CONFIG='{{"{_CHECKPOINT}": "FOLDER"}}'"""
        )
    found = manifest_digest(read_manifest(place))
    if found != expected:
        raise CheckpointError(
            f"{place} holds another checkpoint than the one that this model is of: "
            f"the xxh3-128 of its manifest is {found}, expected was {expected}"
        )
    verify(place)
    return Served(*load(Answerer("one", (checkpoint,), (place,))))
