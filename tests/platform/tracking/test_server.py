"""MLflow's server for a person: on loopback, on a port that is free, gone when it is stopped."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixtura.platform.errors import ResourceError
from mixtura.platform.tracking.records import CheckpointCommitted, EvaluationResult, EventWriter, RunStarted, TrainPoint
from mixtura.platform.tracking.server import HOST, serve_ui
from mixtura.platform.tracking.tracker import Tailer

REPOSITORY = Path(__file__).resolve().parents[3]


def get(url: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port {port} on 127.0.0.1 is taken: give another one with --port"):
            serve_ui(f"sqlite:///{tmp_path}/mlflow.db", port)


@pytest.mark.slow
def test_a_server_that_does_not_come_up_is_an_answer_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(ResourceError, match=rf"did not come up .* what it said is in {log}"):
        serve_ui("sqlite:////dev/null/mlflow.db", log=log)
    assert log.read_text()


@pytest.mark.slow
def test_a_run_is_tracked_through_a_server_as_well_and_can_be_seen_there(tmp_path: Path) -> None:
    from mixtura.platform.tracking.mlflow_tracker import MlflowTracker

    run = tmp_path / "demo"
    with EventWriter(run / "events" / "train-0001.jsonl") as events:
        events.write(RunStarted(1), TrainPoint(10, {"loss": 3.0}), CheckpointCommitted(10, str(run / "step-000010")))
        events.write(*(EvaluationResult(10, task, "validation", "accuracy", 50.0) for task in ("rte", "squad")))
    with serve_ui(f"sqlite:///{tmp_path}/mlflow.db", log=tmp_path / "server.log") as server:
        tailer = Tailer(run / "events", lambda: MlflowTracker(server.url, "mixtura", "demo", run / "mlflow.json"))
        tailer.pump()
        assert tailer.tracker is not None
        run_id = tailer.tracker.run_id
        (run / "mlflow.json").unlink()
        again = Tailer(run / "events", lambda: MlflowTracker(server.url, "mixtura", "demo", run / "mlflow.json"))
        again.pump()
        assert again.tracker is not None
        assert again.tracker.run_id == run_id
        status, body = get(server.url, f"/api/2.0/mlflow/runs/get?run_id={run_id}")
        assert status == http.HTTPStatus.OK
        metrics = {metric["key"]: metric["value"] for metric in json.loads(body)["run"]["data"]["metrics"]}
        assert metrics == {
            "loss": 3.0,
            "validation/rte/accuracy": 50.0,
            "validation/squad/accuracy": 50.0,
            "validation/average": 50.0,
        }
        assert get(server.url, "/")[0] == http.HTTPStatus.OK
        pid = server.process.pid
        if shutil.which("ss"):
            listening = os.popen("ss -ltnp").read()
            assert all("127.0.0.1:" in line for line in listening.splitlines() if f"pid={pid}," in line)
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent ended")
def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from mixtura.platform.tracking.server import serve_ui\n"
        "server = serve_ui(sys.argv[1]); print(server.url, flush=True); time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    assert get(url, "/health")[0] == http.HTTPStatus.OK
    starter.kill()
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            get(url, "/health")
        except OSError:
            return
        time.sleep(0.2)
    pytest.fail(f"the server at {url} outlived its starter")
