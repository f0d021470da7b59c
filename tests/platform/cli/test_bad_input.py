"""Bad input gets one clear message, no traceback and the documented exit code, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixtura.platform.training.checkpoint import list_checkpoints, verify
from mixtura.platform.workspace import Run

from .asking import Answer, Ask

STEPS, SAVED = 8, 4


@pytest.fixture(scope="module")
def trained(workspace_root: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with a finished run `done`, saved at steps 4 and 8."""
    from mixtura.platform import recipe_files
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.train import train_recipe

    root = tmp_path_factory.mktemp("trained") / "runs"
    root.mkdir()
    (root / "caches").symlink_to(workspace_root / "caches")
    given = [*tiny, *INLINE, f"training.steps={STEPS}", f"run.root={root}", "run.name=done"]
    train_recipe("quickstart", recipe_files.load("quickstart", given), SilentReporter())
    return root


INLINE = (
    "executor.kind=inline",
    "evaluation.when=after",
    "evaluation.examples=2",
    "evaluation.test=false",
    f"checkpoints.every={SAVED}",
)


def assert_one_message(answer: Answer, code: int, *parts: str) -> None:
    """The answer is one message with these parts, after which nothing follows."""
    assert answer.code == code, answer
    assert answer.message.startswith("error: ")
    assert answer.message.count("error: ") == 1
    for part in parts:
        assert part in answer.message


# ---- requests that are refused before any work -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["quickstart", "training.stepz=4"], ["training.stepz: no such key", "nearest: training.steps"]),
        (["quickstart", "trainin.steps=4"], ["trainin: no such key", "nearest: training"]),
        (["quickstart", "steps=4"], ["steps: no such key", "training.steps"]),
        (["quickstart", "training.steps"], ["'training.steps' has no value", "write key=value"]),
        (["quickstart", "training.steps=many"], ["training.steps: 'many' was given", "integer"]),
        (["quickstart", "training.precision=fp16"], ["fp16 is refused", "use bf16 or fp32"]),
        (["quickstart", "data.lanes=5"], ["data.lanes is 5", "does not divide training.global_batch_size"]),
        (["quickstart", "executor.workers=100"], ["executor.workers is 100", "use at most"]),
        (["quickstart", "mixture.tasks=[python_docs_modul]"], ["no task", "nearest: 'python_docs_module'"]),
        (["quickstart", "model.size=v1_1_smal"], ["no model size", "nearest: 'v1_1"]),
        (["quickstart", "run.name=../above"], ["run.name: a run's name is letters, digits"]),
        (["quickstart", "run.from=nobody@last"], ["no run 'nobody'"]),
        (["quickstart", "vocabulary.path=nowhere/spiece.model"], ["'nowhere/spiece.model'", "no such file"]),
        (["quickstart", "data.targets_length=8"], ["task 'python_docs_span_corruption': targets_length is 8", "raise"]),
        (["quickstart", "run.stop_after=soon"], ["'soon' is not a duration", "3h30m"]),
        (["quikstart"], ["no recipe 'quikstart'", "nearest: 'quickstart'"]),
        (["recipes/mine.yaml"], ["'recipes/mine.yaml' is a file by its name", "is not there"]),
    ],
)
def test_a_bad_request_is_refused_by_name_and_leaves_no_run(
    ask: Ask, tmp_path: Path, given: list[str], parts: list[str]
) -> None:
    root = tmp_path / "runs"
    answer = ask("train", *given, f"run.root={root}", "executor.kind=inline")
    assert_one_message(answer, 2, *parts)
    assert answer.output == ""
    assert not list(root.glob("*/run.json"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("training: [1, 2", "is not YAML"),
        ("- a list", "a recipe is a mapping of sections"),
        ("extends: nobody\n", "no recipe 'nobody'"),
        ("extends: mine.yaml\n", "extend each other in a circle"),
        ("extends: quickstart\ntraining: {step: 4}\n", "training.step: no such key; nearest: training.steps"),
    ],
)
def test_a_recipe_file_that_describes_no_run_is_refused(ask: Ask, tmp_path: Path, text: str, part: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    assert_one_message(ask("train", str(recipe), f"run.root={tmp_path / 'runs'}"), 2, part)


def test_a_file_that_is_no_vocabulary_is_named(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_text("not a model")
    given = (f"vocabulary.path={path}", f"run.root={tmp_path / 'runs'}", "executor.kind=inline")
    assert_one_message(ask("train", "quickstart", *given), 1, str(path), "is not a SentencePiece model")
    assert not list(tmp_path.glob("runs/*/run.json"))


def test_runs_in_a_bucket_are_refused_with_what_to_give(ask: Ask) -> None:
    assert_one_message(ask("train", "quickstart", "run.root=s3://bucket/runs"), 2, "s3://bucket/runs", "absolute path")


def test_an_address_where_no_cluster_answers_is_refused(ask: Ask, tmp_path: Path, tiny: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    given = (*tiny, f"run.root={tmp_path / 'runs'}", f"executor.address=127.0.0.1:{port}")
    assert_one_message(
        ask("train", "quickstart", *given), 1, f"no Ray cluster answers at 127.0.0.1:{port}", "ray start"
    )


# ---- checkpoints by name ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["predict", "nobody@last", "text"], ["no run 'nobody'", "known: done"]),
        (["predict", "done@5", "text"], ["no checkpoint 'done@5'", "steps: 4, 8"]),
        (["predict", "done@newest", "text"], ["'best-TASK'"]),
        (["predict", "done", "text"], ["'done' names no checkpoint", "RUN@STEP"]),
        (["predict", "done@last", "--input", "nowhere.txt"], ["nowhere.txt", "no such file"]),
        (["evaluate", "nobody"], ["'nobody' is no run", "runs: done", "--recipe"]),
        (["evaluate", "done", "--tasks", "modul"], ["no evaluated task 'modul'", "python_docs_module"]),
        (["evaluate", "done@5"], ["no checkpoint 'done@5'"]),
        (["evaluate", "done", "--set", "a=b"], ["--set", "--recipe"]),
        (["checkpoints", "list", "nobody"], ["no run 'nobody'", "known: done"]),
        (["checkpoints", "pick", "done", "--by", "python_docs_modul"], ["no evaluated task", "'python_docs_module'"]),
        (["checkpoints", "list", "done", "--by", "modul"], ["no evaluated task 'modul'", "python_docs_module"]),
        (["checkpoints", "promote", "done@5", "mine"], ["no checkpoint 'done@5'", "steps: 4, 8"]),
        (["checkpoints", "promote", "done", "mine"], ["RUN@STEP"]),
        (["checkpoints", "promote", "done@8", "a b"], ["cannot be an alias"]),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_those_that_are(
    ask: Ask, trained: Path, command: list[str], parts: list[str]
) -> None:
    assert_one_message(ask(*command, "--root", str(trained)), 2, *parts)


# ---- bytes that changed ----------------------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_a_corrupt_cache_names_the_file_and_the_remedy_and_the_remedy_works(
    ask: Ask, workspace_root: Path, tmp_path: Path, tiny: list[str]
) -> None:
    root = tmp_path / "runs"
    shutil.copytree(workspace_root / "caches", root / "caches")
    damaged = next(root.glob("caches/python_docs_module-*/train-00002-of-*.arrow"))
    whole = damaged.read_bytes()
    flip_a_byte(damaged)
    command = ("train", "quickstart", *tiny, *INLINE, "training.steps=1", f"run.root={root}")
    refused = ask(*command)
    assert_one_message(refused, 1, damaged.name, str(damaged.parent), "the same command")
    remedy = re.search(r"Run `(rm [^`]+)`", refused.message)
    assert remedy is not None
    subprocess.run(remedy[1], shell=True, check=True)
    again = ask(*command)
    assert again.code == 0, again
    assert damaged.read_bytes() == whole


@pytest.fixture
def damaged_run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run whose last checkpoint has a byte changed."""
    root = tmp_path / "runs"
    shutil.copytree(trained, root, symlinks=True)
    flip_a_byte(root / f"done/checkpoints/step-{STEPS:06d}/model.safetensors")
    return root / "done"


@pytest.mark.slow
def test_training_passes_over_a_checkpoint_with_a_byte_changed_and_says_so(
    ask: Ask, damaged_run: Path, tiny: list[str]
) -> None:
    more = ("training.steps=9", f"run.root={damaged_run.parent}", "run.name=done")
    answer = ask("train", "quickstart", *tiny, *INLINE, *more)
    assert answer.code == 0, answer
    said = " ".join(answer.output.split())
    assert re.search(rf"checkpoint of step {STEPS} was passed over: .*bytes of model\.safetensors changed", said)
    checkpoints = list_checkpoints(damaged_run / "checkpoints")
    assert [info.step for info in checkpoints] == [SAVED, STEPS, 9]
    for info in checkpoints:
        verify(info.path)


@pytest.mark.slow
def test_predict_refuses_a_checkpoint_with_a_byte_changed(ask: Ask, damaged_run: Path) -> None:
    root = ("--root", str(damaged_run.parent))
    refused = ask("predict", "done@last", "text", *root)
    assert_one_message(refused, 1, f"step-{STEPS:06d}", "the bytes of model.safetensors changed", "xxh3-128")
    assert refused.output == ""
    assert ask("predict", f"done@{SAVED}", "text", *root).code == 0


# ---- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB: about three checkpoints of the tiny quickstart beside what else a run writes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def start_on(small_disk: Path, workspace_root: Path, tiny: list[str], ask: Ask) -> Callable[[], Answer]:
    """Trains on the small disk, saving every step."""
    root = small_disk / "runs"
    root.mkdir()
    (root / "caches").symlink_to(workspace_root / "caches")
    return lambda: ask("train", "quickstart", *tiny, *INLINE, *saving_often(small_disk))


@pytest.fixture
def start_anew(small_disk: Path, tiny: list[str]) -> Callable[[], None]:
    """The same in a process of its own, as a person would do it: libraries of this one remember the full disk."""
    command = [sys.executable, "-m", "mixtura", "train", "quickstart", *tiny, *INLINE, *saving_often(small_disk)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3] / "src")}

    def start() -> None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    return start


def saving_often(disk: Path) -> list[str]:
    return ["checkpoints.every=1", "training.steps=9", f"run.root={disk / 'runs'}", "run.name=full"]


@pytest.mark.slow
def test_a_full_disk_while_saving_is_one_message_loses_nothing_and_the_same_command_goes_on_after(
    small_disk: Path, start_on: Callable[[], Answer], start_anew: Callable[[], None]
) -> None:
    full = start_on()
    run = small_disk / "runs/full"
    before = list_checkpoints(run / "checkpoints")
    assert before
    newest = f"the newest is of step {before[-1].step}"
    assert_one_message(
        full, 1, "the disk is full", str(run / "checkpoints"), "are free", newest, "run the same command"
    )
    assert Run(run).facts()["status"] in {"failed", "running"}  # there may be no byte left to say so
    for info in before:
        verify(info.path)
    assert not list((run / "checkpoints").glob(".*partial"))

    remount(small_disk, "size=64m")
    start_anew()
    after = list_checkpoints(run / "checkpoints")
    assert [info.step for info in after] == list(range(1, 10))
    assert [info.created_s for info in after[: len(before)]] == [info.created_s for info in before]


@pytest.mark.slow
def test_a_disk_without_a_single_free_byte_is_one_message(
    small_disk: Path, start_on: Callable[[], Answer], start_anew: Callable[[], None]
) -> None:
    ballast = small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert_one_message(start_on(), 1, "the disk is full", str(small_disk))
    ballast.unlink()
    remount(small_disk, "size=64m")
    start_anew()


def test_a_disk_that_cannot_be_written_is_one_message(small_disk: Path, start_on: Callable[[], Answer]) -> None:
    remount(small_disk, "ro")
    assert_one_message(start_on(), 1, "Read-only file system", str(small_disk))


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


# ---- archives for a benchmark's site ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_archive_is_of_one_checkpoint_of_a_run_with_such_tasks(ask: Ask, trained: Path, tmp_path: Path) -> None:
    def answer(*what: str) -> Answer:
        return ask("evaluate", *what, "--root", str(trained), "--submission", str(tmp_path / "glue.zip"))

    assert_one_message(answer("done"), 2, "run 'done' has 2 checkpoints", "done@best")
    assert_one_message(answer("done@4", "done@8"), 2, "of one model, and 2 are named: done@4, done@8")
    assert_one_message(answer("done@5"), 2, "no checkpoint 'done@5'")
    assert_one_message(answer("dome@4"), 2, "'dome@4' is no run or checkpoint of one (runs: done)", "--recipe")
    assert_one_message(answer("done@8"), 2, "'done' has no task of glue or super_glue")
    assert not list(tmp_path.iterdir())


# ---- a port that is taken --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(ask: Ask, trained: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = ask("ui", "--root", str(trained), "--port", str(port))
    assert_one_message(answer, 1, f"port {port} on 127.0.0.1 is taken", "--port")


def test_pages_of_a_folder_without_runs_are_refused(ask: Ask, tmp_path: Path) -> None:
    assert_one_message(ask("ui", "--root", str(tmp_path)), 2, "has no tracked run yet", "mixtura train quickstart")
