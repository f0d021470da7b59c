"""Where a run comes from: recipe, code, libraries, data. What somebody needs who wants the same numbers again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from mixtura.platform.data.cache import is_closed, read_manifest
from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.files import write_json_atomically
from mixtura.platform.filesystems import last_name, shown
from mixtura.platform.tracking.mlflow_data import Dataset
from mixtura.platform.workspace import Run

_LIBRARIES = ("mixtura", "torch", "deepspeed", "ray", "sentencepiece", "pyarrow")
_GIT_TIMEOUT_S = 10.0
_COMMIT = "mlflow.source.git.commit"
"""MLflow's own tag, which its pages show as the version."""


def provenance(run: Run) -> dict[str, str]:
    """What is known of the run's last attempt; of a run that keeps none, what is so now."""
    kept = run.path / "provenance.json"
    return dict(json.loads(kept.read_text())) if kept.is_file() else _found(run)


def keep_provenance(run: Run) -> None:
    """Write down where the attempt that begins now comes from: later the code may be another."""
    write_json_atomically(run.path / "provenance.json", _found(run))


def _found(run: Run) -> dict[str, str]:
    """By the names of tags in MLflow."""
    facts = {
        "mixtura.folder": str(run.path),
        "mixtura.recipe": str(run.facts().get("recipe", "")),
        "mixtura.python": platform.python_version(),
        "mixtura.machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        **{f"mixtura.version.{name}": version for name in _LIBRARIES if (version := _version(name))},
        **git_state(Path.cwd()),
        **_data(run),
    }
    return {name: value for name, value in facts.items() if value}


def git_state(folder: Path) -> dict[str, str]:
    """Commit and changes of the repository that a folder is in, the user's own; nothing where there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") or ""
    files = [line[3:] for line in changed.splitlines()]
    return {
        _COMMIT: commit,
        "mixtura.git.branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "",
        "mixtura.git.changed": ", ".join(files[:20] + ["..."] * (len(files) > 20)) or "nothing",
    }


def training_data(run: Run) -> list[Dataset]:
    """What a run is trained on, a dataset for each task; nothing before its stream is known."""
    spec = _stream(run)
    return [
        Dataset(
            f"{task.name}/{task.split}",
            last_name(task.cache).rpartition("-")[2],
            shown(task.cache),
            _rows(task.cache, task.split),
        )
        for task in (spec.tasks if spec else ())
    ]


def _rows(cache: str, split: str) -> int | None:
    """How many examples a cache has; None while it is being prepared."""
    return int(read_manifest(cache)["splits"][split]["rows"]) if is_closed(cache) else None


def _data(run: Run) -> dict[str, str]:
    """What the stream is a function of, by digest: all of it, and each task's cache."""
    spec = _stream(run)
    if spec is None:
        return {}
    caches = {f"mixtura.data.{task.name}": last_name(task.cache) for task in spec.tasks}
    return {"mixtura.stream": spec.fingerprint, **caches}


def _stream(run: Run) -> StreamSpec | None:
    path = run.path / "stream.json"
    return StreamSpec.from_dict(json.loads(path.read_text())) if path.is_file() else None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip("\n") if done.returncode == 0 else None
