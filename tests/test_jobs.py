"""The documented `ray job submit`, from a checkout to a cluster with a token: killed, gone on with, found again."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SUBMIT = ["job", "submit", "--runtime-env", "job.yaml", "--working-dir", "."]
START = ["--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
START += ["--object-store-memory=200000000", "--disable-usage-stats"]
PATIENCE_S = 900.0
EVERY = 10


# ---- what is uploaded ------------------------------------------------------------------------------------------------


def uploaded(folder: Path, target: Path) -> dict[str, int]:
    """The files that Ray would upload of a checkout, by job.yaml and .gitignore, with their sizes in bytes."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    excludes = yaml.safe_load((folder / "job.yaml").read_text())["excludes"]
    create_package(str(folder), target, include_gitignore=True, excludes=get_runtime_env_default_excludes() + excludes)
    with zipfile.ZipFile(target) as package:
        return {entry.filename: entry.file_size for entry in package.infolist() if not entry.is_dir()}


def test_jobs_upload_the_sources_only(tmp_path: Path) -> None:
    sizes = uploaded(REPOSITORY, tmp_path / "package.zip")
    assert sum(sizes.values()) < 20e6
    assert {"src/mixtura/platform/recipes/quickstart.yaml", "src/mixtura/tasks/__init__.py"} <= set(sizes)
    assert not [name for name in sizes if name.startswith((".git/", ".venv/", "runs/", "tests/", "platform/"))]
    assert not [name for name in sizes if "__pycache__" in name or name.endswith((".pyc", ".db"))]


def test_what_a_checkout_gathers_is_not_uploaded(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    left = shutil.ignore_patterns(".git", ".venv", "runs", "build", "__pycache__", ".*_cache", ".hypothesis", "*.db")
    shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=left)
    before = uploaded(copy, tmp_path / "before.zip")
    for name in (
        ".git/objects/pack/a",
        ".venv/lib/python3.11/site-packages/torch/a",
        "runs/quickstart/a",
        "runs/mlflow.db",
        "build/a",
        "mlflow.db",
        "mlruns/a",
        "platform/__pycache__/a.pyc",
        ".mypy_cache/a",
        ".hypothesis/a",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(bytes(4_000_000))
    assert uploaded(copy, tmp_path / "after.zip") == before


# ---- a cluster -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A head node of two CPUs on loopback, whose Python has all that Mixtura needs, but not Mixtura."""

    address: str
    stale: Path
    """A folder early on the path of the cluster's Python, empty at first."""
    environment: dict[str, str]

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A client's command, from the checkout."""
        return subprocess.run(
            [*RAY, *arguments], cwd=REPOSITORY, env=self.environment | environment, capture_output=True, text=True
        )

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        """The documented command, up to the end of the job."""
        return self.ray(*SUBMIT, "--", *command)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    python = bare_python(folder / "python")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    port, dashboard, client = free_ports(3)
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "MIXTURA_ROOT")
    clean = {name: value for name, value in os.environ.items() if name not in dropped}
    environment = clean | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    # Sockets have short names, so Ray's own folder cannot lie as deep as the tests' folders do.
    session = Path(tempfile.mkdtemp(prefix="mixtura-", dir="/tmp"))
    stale = folder / "stale"
    stale.mkdir()
    ports = {"port": port, "dashboard-port": dashboard, "ray-client-server-port": client}
    ports |= dict.fromkeys(("dashboard-agent-listen-port", "min-worker-port", "max-worker-port"), 0)
    options = [f"--{name}={number}" for name, number in ports.items()]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [python, *RAY[1:], "start", *START, f"--temp-dir={session}", *options],
            # Without the last variable Ray listens on all interfaces, whatever address it is given.
            env=environment
            | {"PATH": f"{python.parent}:{environment['PATH']}", "PYTHONPATH": str(stale)}
            | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        log_path = folder / "head.log"
        wait_for(lambda: process.poll() is not None or "Ray runtime started" in log_path.read_text(), log_path)
        assert process.poll() is None, log_path.read_text()[-3000:]
        yield Head(f"127.0.0.1:{port}", stale, environment)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for left in processes_naming(str(session)):
            left.kill()
        shutil.rmtree(session, ignore_errors=True)


def bare_python(folder: Path) -> Path:
    """A Python with the libraries of this one and no Mixtura: .pth files of a folder that a .pth names do not count."""
    import sysconfig

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin/python"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.05)


def processes_naming(*words: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if process.pid != os.getpid() and all(word in line for word in words):
            found.append(process)
    return found


def install_another_mixtura(folder: Path) -> Path:
    """An older Mixtura that leaves a mark when anything imports it."""
    mark = folder / "imported"
    (folder / "mixtura").mkdir()
    text = f"__version__ = '0.0.1'\nopen({str(mark)!r}, 'a').write(__import__('sys').argv[0] + '\\n')\n"
    (folder / "mixtura/__init__.py").write_text(text)
    return mark


# ---- jobs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.jobs
def test_every_server_of_the_head_listens_on_loopback(head: Head) -> None:
    session = processes_naming("gcs_server", head.address.rpartition(":")[2])
    family = [one for process in session for one in (process.parent() or process).children(recursive=True)]
    addresses = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.jobs
def test_a_client_without_the_token_is_refused(head: Head) -> None:
    refused = head.ray("job", "list", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "Authentication required" in refused.stderr


@pytest.mark.slow
@pytest.mark.jobs
def test_a_job_refuses_a_relative_root_and_imports_its_own_sources(head: Head) -> None:
    look = "import mixtura, platform, sys; print('found', mixtura.__file__, platform.__file__, platform.system())"
    line = f'python -c "{look}"; python -m mixtura train quickstart; echo "exit code $?"'
    job = head.submit("sh", "-c", line)
    found = next(text.split() for text in job.stdout.splitlines() if text.startswith("found"))
    assert "/working_dir_files/" in found[1]
    assert found[1].endswith("/src/mixtura/__init__.py")
    assert "working_dir_files" not in found[2]
    assert found[3] == "Linux" or sys.platform != "linux"
    assert "error: run.root is 'runs', but a submitted job works in a copy of its folder" in job.stdout
    assert "run.root=$PWD/runs" in job.stdout
    assert "exit code 2" in job.stdout
    assert "Traceback" not in job.stdout


@pytest.fixture(scope="module")
def root(workspace_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "runs"
    folder.mkdir()
    (folder / "caches").symlink_to(workspace_root / "caches")
    return folder


@pytest.fixture(scope="module")
def command(root: Path, tiny: list[str]) -> list[str]:
    given = [f"run.root={root}", "run.name=job", *tiny, f"checkpoints.every={EVERY}", "evaluation.test=false"]
    return ["python", "-m", "mixtura", "train", "quickstart", *given]


@pytest.mark.slow
@pytest.mark.jobs
@pytest.mark.timeout(1800)
def test_a_job_stopped_and_a_job_killed_are_gone_on_with_and_a_done_one_says_so(
    head: Head, root: Path, command: list[str], tmp_path: Path
) -> None:
    run = root / "job"
    # So many steps that a stop comes in time on any machine. No Mixtura is installed; the job is asked to stop.
    endless = [*command, "training.steps=1000000"]
    with submitted(head, "first", endless, tmp_path / "first.log") as log:
        wait_for(lambda: over(log) or checkpoint(run, EVERY).exists(), log)
        stopped = head.ray("job", "stop", "first")
    assert stopped.returncode == 0, stopped.stderr
    assert "run 'job' was stopped and is resumable" in log.read_text()
    assert facts(run)["status"] == "resumable"
    first = last_step(run)

    # The same command again. An older Mixtura is installed; the driver is killed.
    mark = install_another_mixtura(head.stale)
    with submitted(head, "second", endless, tmp_path / "second.log") as log:
        wait_for(lambda: over(log) or checkpoint(run, first - first % EVERY + EVERY).exists(), log)
        for driver in processes_naming("python", "-m mixtura train", str(root)):
            with contextlib.suppress(psutil.NoSuchProcess):
                driver.send_signal(signal.SIGKILL)
    assert facts(run)["status"] == "running"
    second = last_step(run)

    # Where a run ends may change while it lasts.
    steps = second - second % EVERY + EVERY
    ending = [*command, f"training.steps={steps}"]
    third = head.submit(*ending)
    assert third.returncode == 0, third.stdout[-3000:]
    assert (facts(run)["status"], facts(run)["attempts"], last_step(run)) == ("done", 3, steps)
    assert first_steps(run) == [1, first + 1, second + 1]

    fourth = head.submit(*ending)
    assert fourth.returncode == 0, fourth.stdout[-3000:]
    assert f"run 'job' is done: {steps} of {steps} steps" in fourth.stdout
    assert facts(run)["attempts"] == 3
    assert not mark.exists(), f"the installed Mixtura was imported by {mark.read_text()}"


@pytest.mark.slow
@pytest.mark.jobs
def test_the_checkout_shows_the_run_of_a_job(root: Path) -> None:
    listed = json.loads(mixtura("checkpoints", "list", "job", "--root", str(root), "--json"))
    assert {row["step"] for row in listed} >= {EVERY, last_step(root / "job")}
    answer = mixtura("predict", "job@best", "--root", str(root), "--json", "name docstring: Return the size of a file.")
    assert set(json.loads(answer)) == {"input", "output", "log_probability"}
    names = tracked_runs(root)
    assert names.count("job") == 1, "all attempts are one run"
    assert {f"job@{row['step']}" for row in listed} <= set(names)


def mixtura(*arguments: str) -> str:
    """A command in the checkout."""
    result = subprocess.run(
        [sys.executable, "-m", "mixtura", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def tracked_runs(root: Path) -> list[str]:
    """Names of the runs in a workspace's MLflow store."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run.info.run_name for run in client.search_runs(experiments)]


@contextlib.contextmanager
def submitted(head: Head, name: str, command: list[str], log: Path) -> Iterator[Path]:
    """A job under way; what is done meanwhile has to end it."""
    with log.open("w") as file:
        client = subprocess.Popen(
            [*RAY, *SUBMIT, "--submission-id", name, "--", *command],
            cwd=REPOSITORY,
            env=head.environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield log
        client.wait(PATIENCE_S)
    finally:
        client.kill()


def over(log: Path) -> bool:
    """Whether the client says that its job ended, whatever the reason."""
    return any(f"' {end}" in log.read_text() for end in ("failed", "succeeded", "was stopped"))


def facts(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "run.json").read_text()))


def checkpoint(run: Path, step: int) -> Path:
    """What makes a checkpoint committed."""
    return run / f"checkpoints/step-{step:06d}/manifest.json"


def last_step(run: Path) -> int:
    return max(int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*/manifest.json"))


def first_steps(run: Path) -> list[int]:
    """The first step that each attempt trained."""
    from mixtura.platform.tracking.records import TrainPoint, from_line

    first: dict[str, int] = {}
    for path in sorted((run / "events").glob("train-*.jsonl")):
        for record in map(from_line, path.read_text().splitlines()):
            if isinstance(record, TrainPoint):
                first.setdefault(path.name.split("-")[1], record.step)
    return list(first.values())
