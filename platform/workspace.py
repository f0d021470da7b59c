"""The workspace: a folder of runs, and beside them the caches and the MLflow store that all of them share.

runs/
  caches/                 vocabularies and token caches, by what they were made from
  mlflow.db               the tracking store
  NAME/                   one run
    config.yaml           the whole resolved configuration of the last attempt
    run.json              recipe, identity hash, status
    stream.json           what the mixture stream is a function of
    provenance.json       code, libraries and data of the last attempt
    events/*.jsonl        everything that the run reports
    checkpoints/step-N/   committed checkpoints
    predictions/          what the checkpoints answered
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mixtura.platform import config as configuration
from mixtura.platform.config import Config, Effect
from mixtura.platform.errors import RequestError, RunError, UnknownNameError
from mixtura.platform.files import exclusive_lock, write_bytes_atomically, write_json_atomically

CHECKPOINT_PREFIX = "step-"


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path

    @property
    def name(self) -> str:
        """Its name in the workspace."""
        return self.path.name

    @property
    def events(self) -> Path:
        """Folder of the JSON lines that the run reports."""
        return self.path / "events"

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """Folder of what its checkpoints answered."""
        return self.path / "predictions"

    @property
    def stop_sign(self) -> Path:
        """A file that asks the run to save and end after the step that it is in."""
        return self.path / "stop"

    @property
    def losses_plot(self) -> Path:
        """A picture of the training losses by task."""
        return self.path / "losses.png"

    def ask_to_stop(self, why: str) -> None:
        """Put the stop sign up."""
        self.stop_sign.write_text(f"{why}\n")

    def exists(self) -> bool:
        """Whether a run of this name was ever started."""
        return (self.path / "run.json").is_file()

    def facts(self) -> dict[str, Any]:
        """What `run.json` says: recipe, identity, status, attempts."""
        return dict(json.loads((self.path / "run.json").read_text())) if self.exists() else {}

    def config(self) -> Config:
        """The configuration of its last attempt."""
        values = yaml.safe_load((self.path / "config.yaml").read_text())
        return configuration.validated(values, where=str(self.path / "config.yaml"))

    def set_status(self, status: str, **facts: Any) -> None:
        """Write down `running`, `resumable`, `done` or `failed`, with the time."""
        write_json_atomically(self.path / "run.json", {**self.facts(), **facts, "status": status, "at": time.time()})

    def begin(self, recipe: str, config: Config, kind: Literal["train", "search"] = "train") -> int:
        """Take up the run with this configuration: check it against the last attempt's, store it, count the attempt.

        Raises RunError with the difference where a key that makes the run what it is was changed, or where the run of
        this name is one of another kind.
        """
        facts = self.facts()
        if facts:
            if facts.get("kind", "train") != kind:
                raise RunError(
                    f"run {self.name!r} was begun by `mixtura {facts.get('kind', 'train')}`: use another run.name"
                )
            refuse_changed_identity(self.name, self.config(), config)
        attempt = int(facts.get("attempts", 0)) + 1
        self.path.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(self.path / "config.yaml", config.to_yaml().encode())
        self.set_status("running", kind=kind, recipe=recipe, identity=config.identity(), attempts=attempt)
        return attempt

    def begins_anew(self, config: Config) -> bool:
        """Whether there is nothing to go on with and another configuration: it was begun, and has no checkpoint yet."""
        if not self.exists() or self.facts().get("kind", "train") != "train":
            return False
        saved = any(self.checkpoints.glob(f"{CHECKPOINT_PREFIX}*/manifest.json"))
        before = self.config()
        return not saved and (before.identity(), before.model.resolved) != (config.identity(), config.model.resolved)

    def clear(self) -> None:
        """Remove all that earlier attempts left, so that the next one is the first."""
        (self.path / "run.json").unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.endswith(".lock"):
                path.unlink()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run for this process; a second `mixtura train` of the same run is refused meanwhile."""
        refusal = f"run {self.name!r} is being worked on; wait for it, stop it, or use another run.name"
        with exclusive_lock(self.path / ".driver.lock", refusal):
            yield


def refuse_changed_identity(name: str, old: Config, new: Config) -> None:
    """Raise RunError if a stream or mathematics key differs; free keys may."""
    changed = [change for change in configuration.changes(old, new) if change[1] is not Effect.FREE]
    if changed:
        lines = [f"  {path} ({effect}): {was!r} -> {now!r}" for path, effect, was, now in changed]
        raise RunError(
            f"run {name!r} was begun with other settings, so it cannot go on with these:\n"
            + "\n".join(lines)
            + f"\nStart another run with run.name=NAME, or fork this one with run.name=NAME run.from={name}@last"
        )


@dataclass(frozen=True)
class Workspace:
    """A folder of runs."""

    root: Path

    @property
    def caches(self) -> Path:
        """Vocabularies and token caches."""
        return self.root / "caches"

    @property
    def tracking_uri(self) -> str:
        """The MLflow store: `MLFLOW_TRACKING_URI`, or a SQLite file beside the runs."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    def run(self, name: str) -> Run:
        """The run of that name, whether or not it exists."""
        return Run(self.root / name)

    def runs(self) -> list[Run]:
        """All runs, oldest name first."""
        found = (Run(path.parent) for path in self.root.glob("*/run.json"))
        return sorted(found, key=lambda run: run.name)

    def existing_run(self, name: str) -> Run:
        """The run of that name; UnknownNameError where there is none."""
        if not self.run(name).exists():
            raise UnknownNameError("run", name, [run.name for run in self.runs()], where=f" in {self.root}")
        return self.run(name)


def workspace(root: str) -> Workspace:
    """The workspace at `root`; refuses what could not be found again after the work."""
    if "://" in root:
        raise RequestError(
            f"run.root is {root!r}: runs are kept in a folder that all nodes share (a disk, NFS, a mounted bucket); "
            "give its absolute path"
        )
    path = Path(root).expanduser()
    if not path.is_absolute() and in_submitted_job():
        raise RequestError(
            f"run.root is {root!r}, but a submitted job works in a copy of its folder that is deleted later: "
            "give an absolute path, for example run.root=$PWD/runs"
        )
    return Workspace(path.absolute())


def in_submitted_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "runtime_resources/working_dir_files" in str(Path.cwd())
