"""A run that goes to a tracking server: whose stops it outlives, and whose password it asks for before any work."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.config import Config
from mixtura.platform.errors import ResourceError
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
    Record,
    TrainPoint,
    evaluation_results,
    read_events,
)
from mixtura.platform.tracking.server import HOST, UiServer, serve_ui
from mixtura.platform.workspace import workspace

pytestmark = pytest.mark.slow

Start = Callable[..., Any]
Load = Callable[..., Config]
ADMIN, PASSWORD = "admin", "a-password-for-tests"


@dataclass
class Outage:
    """What was seen of a run whose server was killed and came back."""

    folder: Path
    store: Path
    url: str
    said: str
    exit_code: int
    step_when_told: int
    step_before_return: int

    def records(self) -> list[Record]:
        return read_events(self.folder / "events")

    def rows(self, query: str) -> set[tuple[Any, ...]]:
        with sqlite3.connect(self.store) as store:
            return set(store.execute(query))


def answers_at(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def last_step(events: Path) -> int:
    return max((record.step for record in read_events(events) if isinstance(record, TrainPoint)), default=0)


@pytest.fixture
def outage(
    mixtura: Start, wait_for: Callable[..., None], tiny: list[str], new_workspace: Path, tmp_path: Path
) -> Iterator[Outage]:
    """A run whose server is killed after the first checkpoint is there, and comes back when training has gone on."""
    store, folder = tmp_path / "store" / "mlflow.db", new_workspace / "away"
    store.parent.mkdir()
    server = serve_ui(f"sqlite:///{store}", log=tmp_path / "server.log")
    endless = ["training.steps=1000000", "checkpoints.every=100", "evaluation.test=false", "executor.kind=inline"]
    where = [f"run.root={new_workspace}", "run.name=away", f"tracking.uri={server.url}"]
    command = mixtura("train", "quickstart", *tiny, *endless, *where)
    state = folder / "mlflow.json"
    wait_for(lambda: state.is_file() and json.loads(state.read_text())["averages"], "a result in the store", command)

    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(lambda: "does not answer" in command.said, "the store is said to be away", command)
    told = last_step(folder / "events")

    def goes_on() -> bool:
        later = [record for record in read_events(folder / "events") if getattr(record, "step", 0) > told + 20]
        return {CheckpointCommitted, EvaluationResult, TrainPoint} <= {type(record) for record in later}

    wait_for(goes_on, "a checkpoint is saved and measured without the store", command)
    before_return = last_step(folder / "events")
    assert not answers_at(server.url)

    with serve_ui(f"sqlite:///{store}", int(server.url.rpartition(":")[2]), log=tmp_path / "server.log") as again:
        wait_for(lambda: "is back" in command.said, "the store is said to be back", command)
        command.process.send_signal(signal.SIGTERM)
        code = command.process.wait(300)
        yield Outage(folder, store, again.url, command.said, code, told, before_return)


def test_a_server_that_is_killed_and_comes_back_costs_no_step_and_no_record(
    outage: Outage, repository: Path, tmp_path: Path
) -> None:
    assert outage.exit_code == 0, outage.said
    assert outage.step_before_return > outage.step_when_told + 20
    records = outage.records()

    curves = outage.rows("select key, step, value from metrics join runs using (run_uuid) where name = 'away'")
    points = [record for record in records if isinstance(record, TrainPoint)]
    assert len(points) > 100
    assert {(name, one.step, value) for one in points for name, value in one.metrics.items()} <= curves

    committed = {record.step for record in records if isinstance(record, CheckpointCommitted)}
    assert {f"away-step-{step:06d}" for step in committed} == {
        name for (name,) in outage.rows("select name from logged_models")
    }
    results = evaluation_results(records)
    assert {(f"{one.split}/{one.task}/{one.metric}", one.step, one.value) for one in results} <= curves
    measured = outage.rows("select name, key, value from metrics join runs using (run_uuid)")
    named = {(f"away@{one.step}", f"{one.task}/{one.metric}", float(f"{one.value:.5g}")) for one in results}
    assert named <= measured

    assert outage.said.count("does not answer") == 1
    assert "what is reported waits on disk" in outage.said
    assert outage.said.count("the tracking store is back") == 1

    code = "import mlflow; print(len(mlflow.pyfunc.load_model('models:/away@champion').predict(['a', 'b'])))"
    environment = {**os.environ, "PYTHONPATH": str(repository / "src"), "MLFLOW_TRACKING_URI": outage.url}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "2", done.stderr


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that asks for a password; a user `reader` may read and no more."""
    pytest.importorskip("flask_wtf", reason="MLflow's server with passwords needs Flask-WTF")
    folder = tmp_path_factory.mktemp("guarded")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{folder}/auth.db",
        "admin_username": ADMIN,
        "admin_password": PASSWORD,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    (folder / "auth.ini").write_text("[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--host", HOST, "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    with UiServer(process, f"http://{HOST}:{port}") as server:
        while not answers_at(server.url):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        add_user(server.url, "reader")
        yield server.url


def add_user(url: str, name: str) -> None:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    login = b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
    body = json.dumps({"username": name, "password": PASSWORD})
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    connection.request("POST", "/api/2.0/mlflow/users/create", body, headers)
    assert connection.getresponse().status == 200


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def log_in(user: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return log_in


def test_a_run_goes_to_a_server_with_a_password(
    guarded: str, log_in: Callable[[str, str], None], new_workspace: Path, tiny_config: Load
) -> None:
    from mlflow import MlflowClient

    log_in(ADMIN, PASSWORD)
    config = tiny_config(new_workspace, "guarded", "executor.kind=inline", f"tracking.uri={guarded}")
    assert train_recipe("quickstart", config, SilentReporter())
    client = MlflowClient(guarded, registry_uri=guarded)
    version = client.get_model_version_by_alias("guarded", "champion")
    assert {file.path for file in client.list_logged_model_artifacts(version.tags["model_id"])} >= {"MLmodel"}
    assert {file.path for file in client.list_artifacts(version.run_id)} == {"predictions"}

    log_in("reader", PASSWORD)
    refused = tiny_config(new_workspace, "of-reader", "executor.kind=inline", f"tracking.uri={guarded}")
    with pytest.raises(ResourceError, match=r"does not let the user 'reader' write: ask"):
        train_recipe("quickstart", refused, SilentReporter())
    assert not workspace(str(new_workspace)).run("of-reader").exists()


@pytest.mark.parametrize(
    ("login", "answer"),
    [
        (None, r"asks who we are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ((ADMIN, "wrong"), r"does not know the user 'admin' with this password"),
    ],
)
def test_a_missing_or_wrong_password_is_refused_before_any_work(
    guarded: str,
    login: tuple[str, str] | None,
    answer: str,
    log_in: Callable[[str, str], None],
    new_workspace: Path,
    tiny_config: Load,
) -> None:
    if login:
        log_in(*login)
    config = tiny_config(new_workspace, "refused", "executor.kind=inline", f"tracking.uri={guarded}")
    with pytest.raises(ResourceError, match=answer):
        train_recipe("quickstart", config, SilentReporter())
    assert not workspace(str(new_workspace)).run("refused").exists()


def test_a_server_that_is_not_there_is_refused_before_any_work(
    mixtura: Start, new_workspace: Path, tiny: list[str]
) -> None:
    command = mixtura("train", "quickstart", *tiny, f"run.root={new_workspace}", "tracking.uri=http://127.0.0.1:9")
    assert command.process.wait(300) == 1
    assert "the tracking store http://127.0.0.1:9 does not answer (Connection refused)" in command.said
    assert "MLFLOW_TRACKING_URI or tracking.uri" in command.said
    assert not workspace(str(new_workspace)).run("quickstart").exists()
