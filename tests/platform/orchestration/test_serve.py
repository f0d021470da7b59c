"""MLflow loads and serves a checkpoint that stays where it was written, and says what is wrong with a request."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from mixtura.platform.config import Config
from mixtura.platform.errors import CheckpointError, CorruptCheckpointError
from mixtura.platform.orchestration.ensembles import answerer, load
from mixtura.platform.orchestration.predict import answers
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.select import promote_checkpoint
from mixtura.platform.orchestration.serve import LOADER, _load_pyfunc, config_of, texts_of
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.mlflow_models import PARAMETERS
from mixtura.platform.workspace import Run, workspace

TEXTS = ["module docstring: Read files.", "returns docstring: Return <extra_id_0> bytes."]


@pytest.fixture(scope="module")
def run(module_workspace: Path, tiny_config: Callable[..., Config]) -> Run:
    """A run of two checkpoints whose model is small enough to look at all of what MLflow has of it."""
    train_recipe("quickstart", tiny_config(module_workspace, "served", "executor.kind=inline"), SilentReporter())
    return workspace(str(module_workspace)).run("served")


@pytest.fixture(scope="module")
def environment(run: Run, repository: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(repository / "src"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{run.path.parent}/mlflow.db",
    }


def expected(run: Run, **asked: Any) -> list[dict[str, Any]]:
    found = answers(*load(answerer(workspace(str(run.path.parent)), "models:/served@champion")), TEXTS, **asked)
    return [{"prediction": one.text, "log_probability": pytest.approx(one.log_probability, abs=1e-4)} for one in found]


@pytest.fixture(scope="module")
def url(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` of the champion, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    folder = tmp_path_factory.mktemp("server")
    command = ["mlflow", "models", "serve", "-m", "models:/served@champion", "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", address.partition(":")[2]]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while request(address, "/ping", None)[0] != http.HTTPStatus.OK:
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield address
    finally:
        for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]:
            process.kill()
        server.wait()


def request(address: str, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read().strip() or "null")
    except OSError:
        return 0, None
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    [
        {"inputs": TEXTS},
        {"instances": TEXTS},
        {"dataframe_split": {"columns": ["inputs"], "data": [[text] for text in TEXTS]}},
        {"dataframe_records": [{"inputs": text} for text in TEXTS]},
    ],
    ids=["inputs", "instances", "split", "records"],
)
def test_a_served_checkpoint_answers_over_http_as_predict_does(run: Run, url: str, texts: dict[str, Any]) -> None:
    status, found = request(url, "/invocations", {**texts, "params": {"decode_length": 6}})
    assert (status, found) == (http.HTTPStatus.OK, {"predictions": expected(run, decode_length=6)})


@pytest.mark.slow
def test_length_and_beams_can_be_asked_for_over_http(run: Run, url: str) -> None:
    asked = {"decode_length": 4, "beams": 3, "length_penalty": 1.0}
    status, found = request(url, "/invocations", {"inputs": TEXTS, "params": asked})
    assert (status, found) == (http.HTTPStatus.OK, {"predictions": expected(run, **asked)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"inputs": TEXTS, "params": {"beams": 0}}, "beams is 0, and must be 1 or more"),
        ({"inputs": TEXTS, "params": {"beams": "two"}}, "beams"),
        ({"dataframe_records": [{"text": "a"}]}, "the first column is 'text'.*a table with the column 'inputs'"),
        ({"texts": TEXTS}, "exactly one of the input fields"),
    ],
)
def test_a_bad_request_over_http_is_answered_with_what_is_wrong(url: str, body: Any, answer: str) -> None:
    status, found = request(url, "/invocations", body)
    assert status == http.HTTPStatus.BAD_REQUEST
    with pytest.raises(ValueError, match=answer):
        raise ValueError(found["message"])


@pytest.mark.slow
def test_alias_version_and_model_id_all_load_and_nothing_is_copied_or_pickled(
    run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    promote_checkpoint(workspace(str(run.path.parent)), "served@4", "early", "answers")
    code = (
        "import json, sys, mlflow\n"
        "found = mlflow.MlflowClient().get_model_version_by_alias('served', 'champion')\n"
        "uris = ['models:/served@champion', f'models:/served/{found.version}', f'models:/{found.tags[\"model_id\"]}']\n"
        "rows = [mlflow.pyfunc.load_model(uri).predict(json.loads(sys.argv[1]), params={'decode_length': 6})\n"
        "        for uri in [*uris, 'models:/answers@early']]\n"
        "print(json.dumps([row.to_dict('records') for row in rows]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(TEXTS)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *of_champion, early = json.loads(done.stdout.splitlines()[-1])
    assert of_champion == [expected(run, decode_length=6)] * 3
    model, vocabulary = load(answerer(workspace(str(run.path.parent)), "served@4"))
    assert [row["prediction"] for row in early] == [one.text for one in answers(model, vocabulary, TEXTS, 6)]

    models = run.path.parent / "mlflow-artifacts" / "models"
    files = [path for path in models.rglob("*") if path.is_file()]
    assert len(list(models.iterdir())) == 2
    assert {path.suffix for path in files} == {"", ".txt", ".yaml", ".json"}
    assert sum(path.stat().st_size for path in files) < 20_000


@pytest.mark.slow
def test_mlflow_answers_a_file_in_one_go(run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    pd.DataFrame({"inputs": TEXTS}).to_csv(tmp_path / "texts.csv", index=False)
    command = ["mlflow", "models", "predict", "-m", "models:/served@champion", "--env-manager", "local", "-t", "csv"]
    command += ["-i", "texts.csv", "-o", "answers.json"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found == {"predictions": expected(run, decode_length=128)}


@pytest.mark.slow
def test_a_model_whose_files_are_gone_or_others_says_so(run: Run, tmp_path: Path) -> None:
    first, second = sorted(run.checkpoints.iterdir())
    config = config_of(first)
    assert config is not None
    moved = tmp_path / "moved"
    shutil.copytree(first, moved)
    assert _load_pyfunc("", {**config, "checkpoint": str(moved)}).predict(pd.DataFrame(TEXTS)).shape == (2, 2)
    with pytest.raises(CheckpointError, match=r"holds another checkpoint .* expected was"):
        _load_pyfunc("", {**config, "checkpoint": str(second)})
    (moved / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors has 5 bytes"):
        _load_pyfunc("", {**config, "checkpoint": str(moved)})
    shutil.rmtree(moved)
    with pytest.raises(CheckpointError, match=r"not at '.*moved': deleted, moved, .*MLFLOW_PYFUNC_INFERENCE_CONFIG"):
        _load_pyfunc("", {**config, "checkpoint": str(moved)})
    assert LOADER.config_of(moved) is None


def test_texts_come_as_a_list_a_table_or_a_dictionary() -> None:
    assert texts_of(pd.DataFrame(["a", "b"])) == ["a", "b"]
    assert texts_of(pd.DataFrame({"inputs": ["a", "b"]})) == ["a", "b"]
    assert texts_of(pd.DataFrame([{"inputs": ["a", "b"]}])) == ["a", "b"]
    assert texts_of(pd.DataFrame({"inputs": [np.array("a"), "b"]})) == ["a", "b"]
    assert texts_of(pd.DataFrame({"inputs": []})) == []


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(Exception, match=r"row 1 of 'inputs', counted from 0, is no text"):
        texts_of(pd.DataFrame(["a", None]))
    with pytest.raises(Exception, match=r"the first column is 'id'"):
        texts_of(pd.DataFrame({"id": ["1"], "inputs": ["a"]}))


def test_what_is_left_out_of_a_request_is_as_in_predict() -> None:
    import inspect

    from mixtura.platform.cli.predict import predict

    command = inspect.signature(predict).parameters
    assert {name: command[name].default for name in PARAMETERS} == {
        name: default for name, (_, default) in PARAMETERS.items()
    }
