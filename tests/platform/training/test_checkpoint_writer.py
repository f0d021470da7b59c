"""Committed or absent: whatever happens while a checkpoint is written, what is listed is whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mixtura.platform.errors import CheckpointError
from mixtura.platform.training import checkpoint, checkpoint_writer
from mixtura.platform.training.checkpoint import CheckpointFormat
from mixtura.platform.training.checkpoint_writer import CheckpointWriter, merge_states
from mixtura.platform.training.snapshot import FragmentState, Snapshot

REPOSITORY = Path(__file__).resolve().parents[3]
FORMAT = CheckpointFormat(hf_config={"model_type": "t5"}, hf_names={"w": ("shared.weight",)})


def snapshot(value: float, start: int = 0, length: int = 12, numel: int = 12) -> Snapshot:
    tensors = {kind: torch.full((length,), value) for kind in ("master", "exp_avg")}
    return Snapshot([FragmentState("w", (numel // 4, 4), start, tensors)], {}, int(value))


def listed(directory: Path) -> list[int]:
    return [info.step for info in checkpoint.list_checkpoints(directory)]


def test_save_returns_before_the_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    write = checkpoint_writer.write_tensors
    monkeypatch.setattr(checkpoint_writer, "write_tensors", lambda *args: (gate.wait(10), write(*args))[1])
    writer = CheckpointWriter(tmp_path, 0, 1, FORMAT)
    writer.save(1, snapshot(1.0), {})
    assert listed(tmp_path) == []
    assert writer.newly_committed() == []
    gate.set()
    writer.wait()
    assert listed(tmp_path) == [1]
    assert [info.step for info in writer.newly_committed()] == [1]
    assert writer.newly_committed() == []


def test_a_second_save_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoint_writer.write_tensors
    monkeypatch.setattr(checkpoint_writer, "write_tensors", lambda *args: (time.sleep(0.1), write(*args))[1])
    writer = CheckpointWriter(tmp_path, 0, 1, FORMAT)
    for step in (1, 2, 3):
        writer.save(step, snapshot(step), {})
        assert sum(thread.name.startswith("checkpoint-") for thread in threading.enumerate()) == 1
        assert listed(tmp_path) == list(range(1, step))
    writer.wait()
    assert listed(tmp_path) == [1, 2, 3]


def test_later_changes_of_the_state_do_not_reach_the_file(tmp_path: Path) -> None:
    state = {"counts": {"rte": 1}}
    writer = CheckpointWriter(tmp_path, 0, 1, FORMAT)
    writer.save(1, snapshot(1.0), state)
    state["counts"]["rte"] = 2
    writer.wait()
    assert checkpoint.read_state(tmp_path / "step-000001")["counts"] == {"rte": 1}
    with pytest.raises(ValueError, match="'step'"):
        writer.save(2, snapshot(1.0), {"step": 2})


def test_an_error_of_one_rank_is_raised_on_that_rank_and_on_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (CheckpointWriter(tmp_path, rank, 2, FORMAT, timeout_s=30) for rank in (0, 1))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint_writer, "save_part", fail)
    first.save(5, snapshot(1.0, 0, 6), {})
    second.save(5, snapshot(1.0, 6, 6), {})
    with pytest.raises(CheckpointError, match=r"step 5 cannot be saved in .*Input/output error.*there is none yet"):
        second.wait()
    with pytest.raises(CheckpointError, match="rank 1 could not write its part of step 5: OSError"):
        first.wait()
    first.poll()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_never_comes_is_named_after_the_time_limit(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 3, FORMAT, timeout_s=0.1)
    CheckpointWriter(tmp_path, 1, 3, FORMAT).save(5, snapshot(1.0, 4, 4), {})
    writer.save(5, snapshot(1.0, 0, 4), {})
    with pytest.raises(CheckpointError, match=r"after 0 s the parts of rank\(s\) (1, )?2 of 3"):
        writer.wait()
    assert listed(tmp_path) == []


def test_parts_of_an_earlier_attempt_are_not_taken(tmp_path: Path) -> None:
    zombie = CheckpointWriter(tmp_path, 1, 2, FORMAT, attempt=0)
    writers = [CheckpointWriter(tmp_path, rank, 2, FORMAT, attempt=1) for rank in (0, 1)]
    zombie.save(5, snapshot(9.0, 6, 6), {})
    zombie.wait()
    for rank, writer in enumerate(writers):
        writer.save(5, snapshot(1.0, 6 * rank, 6), {})
    writers[0].wait()
    assert checkpoint.read_weights(tmp_path / "step-000005", {"w": ("shared.weight",)})["w"].tolist() == [[1.0] * 4] * 3


def test_missing_pieces_and_disagreements_are_errors(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1, FORMAT)
    writer.save(1, snapshot(1.0, start=0, length=7), {})
    with pytest.raises(CheckpointError, match=r"no rank gave element 7 of the 12 of 'shared.weight'"):
        writer.wait()
    writer.save(1, Snapshot([FragmentState("v", (1,), 0, {"master": torch.zeros(1)})]), {})
    with pytest.raises(CheckpointError, match=r"1 parameters are missing, for example 'w'; 1 have no"):
        writer.wait()
    with pytest.raises(CheckpointError, match=r"lanes.0 is 1 on an earlier rank and 2 on rank 3"):
        merge_states({"lanes": {"0": 1}}, {"lanes": {"0": 2}}, "rank 3")


def test_a_whole_checkpoint_of_the_same_step_stays_and_a_broken_one_makes_room(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1, FORMAT)
    path = tmp_path / "step-000005"

    def first_weight() -> float:
        return float(checkpoint.read_weights(path, {"w": ("shared.weight",)})["w"][0, 0])

    for value in (1.0, 2.0):
        writer.save(5, snapshot(value), {})
        writer.wait()
        assert first_weight() == 1.0
    (path / "state.json").write_text("{}")
    writer.save(5, snapshot(3.0), {})
    writer.wait()
    assert first_weight() == 3.0
    checkpoint.verify(path)
    assert [child.name for child in tmp_path.iterdir()] == ["step-000005"]


def test_a_full_disk_is_one_clear_answer_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1, FORMAT)
    writer.save(50, snapshot(1.0), {})
    writer.wait()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_writer, "write_tensors", fail)
        writer.save(100, snapshot(2.0), {})
        with pytest.raises(CheckpointError) as raised:
            writer.wait()
    for words in (
        "the disk is full",
        f"step 100 in {tmp_path}",
        "0.0 MB for rank 0",
        "MB are free",
        "the newest is of step 50",
        "run the same command",
    ):
        assert words in str(raised.value)
    assert [child.name for child in tmp_path.iterdir()] == ["step-000050"]
    checkpoint.verify(tmp_path / "step-000050")
    writer.save(100, snapshot(2.0), {})
    writer.wait()
    assert listed(tmp_path) == [50, 100]


def test_a_folder_that_cannot_be_read_any_more_is_an_error_and_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saying what happened needs the same disk that failed."""
    writer = CheckpointWriter(tmp_path, 0, 1, FORMAT)

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    for name in ("write_tensors", "list_checkpoints"):
        monkeypatch.setattr(checkpoint_writer, name, stale)
    writer.save(5, snapshot(1.0), {})
    with pytest.raises(CheckpointError, match=r"step 5 cannot be saved .*Stale file handle.*cannot be read now"):
        writer.wait()


def test_bytes_of_unfinished_checkpoints_show_that_saving_goes_on(tmp_path: Path) -> None:
    first, second = (CheckpointWriter(tmp_path, rank, 2, FORMAT, attempt="0001.0-0") for rank in (0, 1))
    assert first.unfinished_bytes == 0
    second.save(5, snapshot(1.0, 6, 6), {})
    second.wait()
    assert first.unfinished_bytes > 2 * 6 * 4
    assert CheckpointWriter(tmp_path, 1, 2, FORMAT, attempt="0002.0-0").unfinished_bytes == 0
    first.save(5, snapshot(1.0, 0, 6), {})
    first.wait()
    assert first.unfinished_bytes == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("ask_first", [True, False])
def test_a_really_full_disk_keeps_the_checkpoints_that_are_there(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, ask_first: bool
) -> None:
    if not ask_first:
        monkeypatch.setattr(CheckpointWriter, "_require_space", lambda *_: None)
    writer = CheckpointWriter(small_disk, 0, 1, FORMAT)
    for step in (1, 2, 3, 4):
        writer.save(step, snapshot(step, length=40_000, numel=40_000), {})
    with pytest.raises(CheckpointError, match=r"the disk is full: saving step 4 .*the newest is of step 3"):
        writer.wait()
    assert [child.name for child in sorted(small_disk.iterdir())] == [f"step-{step:06d}" for step in (1, 2, 3)]
    for info in checkpoint.list_checkpoints(small_disk):
        checkpoint.verify(info.path)


SAVING = """
import itertools, os, sys, time, torch
from pathlib import Path
from mixtura.platform.training.checkpoint import CheckpointFormat, retain, list_checkpoints, delete_checkpoint
from mixtura.platform.training.checkpoint_writer import CheckpointWriter
from mixtura.platform.training.snapshot import FragmentState, Snapshot
torch.set_num_threads(1)
directory = Path(sys.argv[1])
made = CheckpointFormat({"model_type": "t5"}, {"w": ("shared.weight",)}, max_shard_bytes=300_000)

def save_for_ever(writer, rank, first):
    for step in itertools.count(first):
        infos = list_checkpoints(directory)
        while step > max([info.step for info in infos], default=0) + 2:  # as ranks do that train together
            time.sleep(0.001)
            infos = list_checkpoints(directory)
        tensors = {kind: torch.full((60_000,), float(step)) for kind in ("master", "exp_avg")}
        writer.save(step, Snapshot([FragmentState("w", (1200, 100), 60_000 * rank, tensors)], {}, step), {"s": step})
        for old in retain(infos, 3) if rank == 0 else ():
            delete_checkpoint(next(info for info in infos if info.step == old))

for attempt, line in enumerate(sys.stdin):
    first = max([info.step for info in list_checkpoints(directory)], default=0) + 1
    ranks = []
    for rank in (0, 1):  # rank 0 removes what the last ones left before rank 1 begins, as in a run
        ready, done = os.pipe()
        process = os.fork()
        if not process:
            writer = CheckpointWriter(directory, rank, 2, made, attempt=attempt)
            os.write(done, b"r")
            save_for_ever(writer, rank, first)
        os.read(ready, 1)
        os.close(ready), os.close(done)
        ranks.append(process)
    print(*ranks, flush=True)
    for process in ranks:
        os.waitpid(process, 0)
    print("gone", flush=True)
"""


@pytest.fixture
def savers(tmp_path: Path) -> Iterator[Callable[[], tuple[list[int], Callable[[], None]]]]:
    """Starts two processes, the ranks of a run that does nothing but save; gives their ids, and a way to wait until
    they are gone. They are forked from one that has imported everything, since a hundred of them are needed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    nursery: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    asked, said = nursery.stdin, nursery.stdout

    def start() -> tuple[list[int], Callable[[], None]]:
        asked.write("next\n")
        asked.flush()
        return [int(process) for process in said.readline().split()], lambda: (said.readline(), None)[1]

    yield start
    asked.close()
    nursery.wait()
    said.close()


@pytest.mark.slow
def test_a_hundred_kills_at_any_instant_of_saving_leave_a_hundred_whole_last_checkpoints(
    tmp_path: Path, savers: Callable[[], tuple[list[int], Callable[[], None]]]
) -> None:
    chance = random.Random(1)
    newest, found, unfinished = 0, [], 0
    for _ in range(100):
        ranks, until_gone = savers()
        time.sleep(chance.uniform(0.0, 0.2))
        chance.shuffle(ranks)
        os.kill(ranks[0], signal.SIGKILL)
        time.sleep(chance.choice([0.0, 0.0, 0.05]))  # the other one lives on for a moment
        os.kill(ranks[1], signal.SIGKILL)
        until_gone()
        unfinished += any(tmp_path.glob(".step-*"))
        info, skipped = checkpoint.latest_verified(tmp_path)
        assert not skipped
        assert info is not None or newest == 0
        if info is not None:
            assert info.step >= newest, "what was listed once must not be gone"
            newest = info.step
            weights = checkpoint.read_weights(info.path, {"w": ("shared.weight",)})["w"]
            assert weights.unique().tolist() == [info.step]
            assert checkpoint.read_optimizer(info.path)["w"]["exp_avg"].unique().tolist() == [info.step]
            assert checkpoint.read_state(info.path)["s"] == info.step
        found.append(newest)
    assert len(found) == 100
    assert unfinished > 50, "the ranks were killed between two saves"
    assert newest > 100, "the ranks were killed before they could save"
