"""The MLflow store that everything of ours goes to: a SQLite file beside the runs, or a tracking server."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from mixtura.platform.errors import ResourceError, first_line
from mixtura.platform.files import exclusive_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_OTHER_STORE = "; MLFLOW_TRACKING_URI or tracking.uri names another one, and without both it is the workspace's own"
_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def connect(store_uri: str) -> MlflowClient:
    """A client of a store, which says nothing on the terminal and nothing to anyone else.

    Raises ResourceError where the store cannot be reached, or does not let us in.
    """
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # a model of ours is no uv project of the working directory
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # whoever follows a run tries again anyway
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs a traceback of each error that it raises, and what is raised reaches a person in our words.
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    with refusals_in_words(store_uri, _OTHER_STORE):
        _create_file_store(store_uri)
        client = MlflowClient(store_uri, registry_uri=store_uri)
        client.search_experiments(max_results=1)
    return client


def experiment(store_uri: str, client: MlflowClient, name: str) -> str:
    """The id of an experiment that may be written to; it is made if need be.

    Raises ResourceError where the store lets us read it only.
    """
    with refusals_in_words(store_uri, _OTHER_STORE):
        found = client.get_experiment_by_name(name)
        if found is None:
            # Without it MLflow would name a folder in whatever directory this is; a server knows its own place.
            folder = artifact_folder(store_uri)
            location = None if folder is None else folder.as_uri()
            return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
        for key, value in _KIND.items():
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def is_server(store_uri: str) -> bool:
    """Whether a store is a tracking server, reached over HTTP.

    >>> is_server("http://127.0.0.1:5000"), is_server("sqlite:////runs/mlflow.db")
    (True, False)
    """
    return store_uri.startswith(("http://", "https://"))


def artifact_folder(store_uri: str) -> Path | None:
    """Where small files of a SQLite store are kept, beside it: plots, samples of answers, how a model is served."""
    if not store_uri.startswith(_SQLITE):
        return None
    return Path(store_uri.removeprefix(_SQLITE)).absolute().parent / "mlflow-artifacts"


def shown_uri(store_uri: str) -> str:
    """A store for people: without the password that may stand in it.

    >>> shown_uri("postgresql://ann:secret@db:5432/mlflow"), shown_uri("sqlite:////runs/mlflow.db")
    ('postgresql://ann:***@db:5432/mlflow', 'sqlite:////runs/mlflow.db')
    """
    parts = urlsplit(store_uri)
    if parts.password is None:
        return store_uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1)))


@contextmanager
def refusals_in_words(store_uri: str, hint: str = "") -> Iterator[None]:
    """Turn what a store refuses into a ResourceError: which store, why, and what to change."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        status = error.get_http_status_code() if isinstance(error, MlflowException) else None
        why = _no_permission(status) or _no_answer(error) or f"cannot be used ({first_line(error)})"
        raise ResourceError(f"the tracking store {shown_uri(store_uri)} {why}{hint}") from error


def _no_permission(status: int | None) -> str | None:
    user = os.environ.get(_USER)
    if status == HTTPStatus.UNAUTHORIZED:
        if not user:
            return f"asks who we are: set {_USER} and {_PASSWORD}"
        return f"does not know the user {user!r} with this password: set {_USER} and {_PASSWORD} to others"
    if status == HTTPStatus.FORBIDDEN:
        return f"does not let {f'the user {user!r}' if user else 'us'} write: ask who looks after it for a permission"
    return None


def _no_answer(error: BaseException) -> str | None:
    """The reason at the bottom of a failed connection, without what each library wraps around it."""
    import requests

    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(below)
    if not any(isinstance(each, requests.exceptions.RequestException) for each in chain):
        return None
    reasons = [each.strerror for each in chain if isinstance(each, OSError) and each.strerror]
    return f"does not answer ({reasons[-1] if reasons else first_line(chain[-1])})"


def _create_file_store(store_uri: str) -> None:
    """Make a SQLite store under another name first: MLflow cannot mend one whose making was cut short, by a kill or a
    full disk, and would refuse it for ever."""
    from mlflow import MlflowClient

    path = Path(store_uri.removeprefix(_SQLITE))
    if not store_uri.startswith(_SQLITE) or path.exists():
        return
    with exclusive_lock(path.with_name(f".{path.name}.lock"), "the tracking store is being made", wait=True):
        if path.exists():
            return
        # Another name each time: MLflow remembers what it made under a name, even if the file is gone.
        made = path.with_name(f".{path.name}.{time.time_ns():x}")
        try:
            MlflowClient(f"{_SQLITE}{made}", registry_uri=f"{_SQLITE}{made}").search_experiments(max_results=1)
            made.replace(path)
        finally:
            for leftover in path.parent.glob(f"{made.name}*"):
                leftover.unlink()
