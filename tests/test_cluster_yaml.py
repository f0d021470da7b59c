"""cluster.yaml: valid for Ray, safe as it stands, and its setup installs the project on an empty machine."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))


def check(cluster: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does with the file before it touches any node."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    return dict(prepared)


def test_ray_finds_the_cluster_valid(cluster: dict[str, Any]) -> None:
    prepared = check(cluster)
    assert prepared["head_setup_commands"] == cluster["setup_commands"] + cluster["head_setup_commands"]
    assert prepared["worker_setup_commands"] == cluster["setup_commands"]


@pytest.mark.parametrize("place", ["", "provider.security_group", "available_node_types.training", "auth"])
def test_a_misspelt_key_is_refused(cluster: dict[str, Any], place: str) -> None:
    from jsonschema import ValidationError

    spoilt = yaml.safe_load(yaml.safe_dump(cluster))
    section = spoilt
    for name in place.split(".") if place else ():
        section = section.setdefault(name, {})
    section["max_wokers"] = 3
    with pytest.raises(ValidationError, match="max_wokers"):
        check(spoilt)


def test_it_has_a_head_that_computes_nothing_and_nodes_that_come_and_go(cluster: dict[str, Any]) -> None:
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert {"GPU" in kind["resources"] for kind in types.values()} == {True, False}
    assert all(kind["min_workers"] < kind["max_workers"] for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) >= cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] > 0


def test_every_node_asks_for_the_token_and_the_dashboard_stays_on_loopback(cluster: dict[str, Any]) -> None:
    starts = [cluster[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert all("RAY_AUTH_MODE=token" in command and "ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in cluster["file_mounts"]


@pytest.fixture
def home(cluster: dict[str, Any]) -> Iterator[Path]:
    """A node's home folder with the files that are mounted; removed afterwards, as an environment is large."""
    folder = Path(tempfile.mkdtemp(prefix="mixtura-home-"))
    assert cluster["file_mounts"]["~/mixtura"] == "."
    mount(REPOSITORY, folder / "mixtura", cluster["rsync_exclude"])
    yield folder
    shutil.rmtree(folder)


def mount(source: Path, target: Path, patterns: list[str]) -> None:
    """Copy as rsync would with these patterns: links stay links, a pattern without a slash holds at any depth."""
    names = [pattern.removeprefix("**/") for pattern in patterns]

    def left_out(_: str, entries: list[str]) -> set[str]:
        return {entry for entry in entries if any(fnmatch.fnmatch(entry, name) for name in names)}

    shutil.copytree(source, target, symlinks=True, ignore=left_out)


def test_only_the_sources_are_mounted(cluster: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for name in (
        ".git/a",
        ".venv/a",
        "runs/a",
        "platform/__pycache__/a.pyc",
        ".mypy_cache/a",
        "mlflow.db",
        "platform/a.py",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"a")
    mount(copy, tmp_path / "mounted", cluster["rsync_exclude"])
    assert [path.name for path in (tmp_path / "mounted").rglob("*") if path.is_file()] == ["a.py"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_its_setup_installs_the_project_in_an_empty_folder(cluster: dict[str, Any], home: Path) -> None:
    assert not list((home / "mixtura").glob("*/__pycache__"))
    environment = node_environment(home)
    for command in [*cluster["setup_commands"], *cluster["head_setup_commands"]]:
        result = subprocess.run(
            ["bash", "-c", command], cwd=home, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    said = run_at(home, "python -m mixtura --help")
    assert "train" in said
    versions = run_at(
        home, "python -c 'import mixtura, ray, deepspeed, boto3, torch; print(mixtura.__file__, torch.__version__)'"
    )
    where, torch = versions.split()[-2:]
    assert where == str(home / "mixtura/src/mixtura/__init__.py")
    assert f"torch=={torch.partition('+')[0]}" in (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert "mixtura" in run_at(home, ". ~/.profile && command -v mixtura")


def node_environment(home: Path) -> dict[str, str]:
    """A fresh machine's environment, but for pip's cache and settings, so that nothing is loaded twice."""
    cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
    dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PIP_CONSTRAINT")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        "PIP_CACHE_DIR": cache.stdout.strip(),
        "XDG_CONFIG_HOME": kept.get("XDG_CONFIG_HOME", str(Path("~/.config").expanduser())),
    }


def run_at(home: Path, command: str) -> str:
    """A command on the node, with the environment's programs first."""
    environment = node_environment(home)
    environment["PATH"] = f"{home / 'mixtura-env/bin'}:{os.environ['PATH']}"
    result = subprocess.run(["bash", "-c", command], cwd=home, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
