"""How tests of whole runs start them, and what they read of them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mixtura.platform import recipe_files
from mixtura.platform.config import Config
from mixtura.platform.orchestration.executor import Executor
from mixtura.platform.orchestration.mixture import stream_spec
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.train import keep_stream
from mixtura.platform.orchestration.worker import TrainPlan
from mixtura.platform.tracking.records import TrainPoint, read_events
from mixtura.platform.workspace import workspace

Step = tuple[float, str]
"""Loss and fingerprint of the global batch."""

PATIENCE_S = 500.0


@dataclass
class Command:
    """A running or ended `mixtura ...`."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        """What it has printed until now, errors too."""
        return self.output.read_text()


Start = Callable[..., Command]


@pytest.fixture(scope="module")
def module_workspace(workspace_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder of runs for all tests of a module, with the caches of the tiny quickstart."""
    root = tmp_path_factory.mktemp("runs") / "runs"
    root.mkdir()
    (root / "caches").symlink_to(workspace_root / "caches")
    return root


@pytest.fixture(scope="session")
def steps_of() -> Callable[[Path], dict[int, Step]]:
    """Loss and fingerprint of every step of a run; a step that was done twice was the same both times."""

    def read(run: Path) -> dict[int, Step]:
        steps: dict[int, Step] = {}
        for record in read_events(run / "events"):
            if isinstance(record, TrainPoint):
                assert record.fingerprint is not None
                this = (record.metrics["loss"], record.fingerprint)
                assert steps.setdefault(record.step, this) == this, f"step {record.step} was another one the next time"
        return steps

    return read


@pytest.fixture(scope="session")
def attempts_of() -> Callable[[Path], list[list[int]]]:
    """The steps that each attempt of a run did, in their order."""

    def read(run: Path) -> list[list[int]]:
        files = sorted((run / "events").glob("train-*.jsonl"))
        lines = [[json.loads(line) for line in file.read_bytes().splitlines() if line.endswith(b"}")] for file in files]
        return [[record["step"] for record in records if record["kind"] == "train"] for records in lines]

    return read


@pytest.fixture(scope="session")
def tiny_config(tiny: list[str]) -> Callable[..., Config]:
    """The tiny quickstart in a folder of runs, under a name, with overrides; no test split is measured."""

    def load(root: Path, name: str, *overrides: str) -> Config:
        given = [*tiny, f"run.root={root}", f"run.name={name}", "evaluation.test=false", *overrides]
        return recipe_files.load("quickstart", given)

    return load


@pytest.fixture(scope="session")
def train_only() -> Callable[[Config, Executor], Path]:
    """Trains on an executor, with no evaluation and no tracking; returns the run's folder."""

    def train(tree: Config, executor: Executor) -> Path:
        space = workspace(tree.run.root)
        run = space.run(str(tree.run.name))
        prepared = prepare(tree, space, map_inline, SilentReporter())
        spec = stream_spec(tree, prepared)
        attempt = run.begin("quickstart", tree)
        keep_stream(run, spec)
        plan = TrainPlan(tree.to_dict(), str(run.path), spec.to_dict(), str(prepared.vocabulary), attempt)
        assert executor.train(plan, [])
        return run.path

    return train


@pytest.fixture
def mixtura(repository: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts `mixtura ...` as a process of its own; what it started is ended after the test."""
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
        output = tmp_path / f"output-{len(started)}.txt"
        with open(output, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "mixtura", *arguments],
                cwd=tmp_path,
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        started.append(Command(process, output))
        return started[-1]

    yield start
    for command in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            kill_all(psutil.Process(command.pid))
        command.process.wait()


def kill_all(process: psutil.Process) -> None:
    """SIGKILL for a process and everything below it."""
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


@pytest.fixture(scope="session")
def kill_with_children() -> Callable[[int], None]:
    """SIGKILL for a process and everything below it, as when the machine goes down."""
    return lambda pid: kill_all(psutil.Process(pid))


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """Polls until something holds; fails if the command ends before."""

    def wait(holds: Callable[[], Any], what: str, command: Command | None = None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            if command is not None and command.process.poll() is not None and not holds():
                pytest.fail(f"the command ended before {what}: {command.said}")
            assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def web_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder with so many files of a web corpus, in C4's format: 40 documents each, and two rows without text."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "every", "other", "animal", "very", "quiet"]
    made: dict[int, Path] = {}

    def make(files: int) -> Path:
        if files not in made:
            made[files] = tmp_path_factory.mktemp("web")
            for index in range(files):
                chance = random.Random(index)
                rows: list[dict[str, Any]] = [
                    {
                        "text": " ".join(chance.choices(words, k=chance.randrange(5, 90))),
                        "url": f"https://{index}/{row}",
                    }
                    for row in range(40)
                ]
                rows[7], rows[20] = {"url": "https://no.text"}, {"text": ""}
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (made[files] / f"c4-train.{index:05d}-of-{files:05d}.json").write_text(lines)
        return made[files]

    return make


@pytest.fixture(scope="session")
def web_vocabulary(web_text: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of 300 ids for that text."""
    from mixtura.platform.data.vocabulary import train_vocabulary

    lines = (web_text(2) / "c4-train.00000-of-00002.json").read_text().splitlines()
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    train_vocabulary([text for line in lines if (text := json.loads(line).get("text"))], path, 130)
    return path
