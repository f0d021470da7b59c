"""Models of the hub, which a server on this machine plays for the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from model_hub import COMMIT, REPOSITORY, ModelHub
from object_store import Store, serve

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
from pathlib import Path
from mixtura.platform.errors import MixturaError
from mixtura.platform.orchestration.hub import hub_folder, parse_hub_name
answers = []
for name, weights in json.loads(sys.argv[1]):
    try:
        folder = hub_folder(parse_hub_name(name), weights=weights)
        answers.append({"folder": str(folder), "files": sorted(file.name for file in folder.iterdir())})
    except MixturaError as error:
        answers.append({"error": f"{type(error).__name__}: {error}"})
print(json.dumps(answers))
"""

Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def hub() -> Iterator[Store]:
    files = {
        "README.md": b"# T5",
        "config.json": b'{"model_type": "t5"}',
        "spiece.model": b"pieces",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"\x80\x04never",
        "tf_model.h5": b"never",
        "modeling_mine.py": b"raise SystemExit",
    }
    with serve(ModelHub, files) as store:
        yield store


@pytest.fixture
def ask(hub: Store, repository: Path, tmp_path: Path) -> Ask:
    """Asks for models in a process of its own, since the client reads its settings when it is loaded."""

    def run(*wanted: tuple[str, bool], port: int | None = None, **environment: str) -> list[dict[str, Any]]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = {"HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{port or hub.port}"}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(wanted)],
            env={**kept, "PYTHONPATH": str(repository / "src"), **own, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        assert "it/s" not in result.stderr, "bars are for terminals"
        answers: list[dict[str, Any]] = json.loads(result.stdout.splitlines()[-1])
        return answers

    return run


def test_only_what_a_model_is_made_of_is_downloaded_once_and_kept_for_times_without_a_network(
    ask: Ask, hub: Store
) -> None:
    first, second, tag, commit = ask(
        (REPOSITORY, False), (REPOSITORY, True), (f"{REPOSITORY}@v1", True), (f"{REPOSITORY}@{COMMIT}", True)
    )
    assert first["files"] == ["config.json", "spiece.model"]
    assert second["files"] == ["config.json", "model.safetensors", "spiece.model"]
    assert tag == commit == second
    assert Path(second["folder"]).name == COMMIT
    assert len(hub.asked("GET /someone/t5-tiny/resolve")) == 3
    assert not hub.asked(".bin") + hub.asked(".py") + hub.asked(".h5")

    names = [(name, True) for name in (REPOSITORY, f"{REPOSITORY}@v1", f"{REPOSITORY}@{COMMIT}")]
    assert ask(*names, port=9) == ask(*names, HF_HUB_OFFLINE="1") == [second] * 3


def test_the_login_of_the_user_is_used(ask: Ask, hub: Store) -> None:
    hub.needs_token = "hf_secret"
    (refused,) = ask((REPOSITORY, True))
    assert refused["error"].startswith(f"RequestError: the model {REPOSITORY} is gated")
    (answer,) = ask((REPOSITORY, True), HF_TOKEN="hf_secret")
    assert "model.safetensors" in answer["files"]


def test_what_is_not_there_is_told(ask: Ask, hub: Store) -> None:
    unknown, revision = ask(("someone/t6", True), (f"{REPOSITORY}@v9", True))
    assert unknown["error"].startswith("RequestError: the hub has no model 'someone/t6' that you may see")
    assert revision["error"].startswith(f"RequestError: the model '{REPOSITORY}' has no revision 'v9'")
    (nobody,) = ask((REPOSITORY, True), HF_HUB_OFFLINE="1")
    assert nobody["error"].startswith(f"CheckpointError: the model {REPOSITORY} cannot be had from the hub")
    assert "check the network (and HF_ENDPOINT" in nobody["error"]

    del hub.files["model.safetensors"]
    (pickled,) = ask((REPOSITORY, False))
    assert "hf download someone/t5-tiny" in pickled["error"]
    assert "python -c" in pickled["error"]
    assert not hub.asked(".bin")
    del hub.files["config.json"]
    (no_model,) = ask((REPOSITORY, False))
    assert "it has no config.json" in no_model["error"]


def test_weights_in_shards_come_with_their_index(ask: Ask, hub: Store) -> None:
    del hub.files["model.safetensors"]
    shards = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    hub.files |= dict.fromkeys((*shards, "model.safetensors.index.json", "flax_model.msgpack"), b"weights")
    (answer,) = ask((REPOSITORY, True))
    assert answer["files"] == ["config.json", *shards, "model.safetensors.index.json", "spiece.model"]
