"""What a person is told of an attempt that failed, and what would make room where memory ran out."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.platform.config import Config
from mixtura.platform.errors import CheckpointError, TrainingError
from mixtura.platform.orchestration.cluster import Ledger, Node
from mixtura.platform.orchestration.executor import Executor, InlineExecutor
from mixtura.platform.orchestration.failures import (
    add_restart,
    forget_failures,
    has_failed,
    last_restart,
    launch_name,
    raise_failure,
    reason_of,
    write_failure,
)
from mixtura.platform.orchestration.lost_nodes import what_it_means
from mixtura.platform.orchestration.memory import savings
from mixtura.platform.orchestration.out_of_memory import (
    explain_out_of_memory,
    is_out_of_memory,
    relief,
    relief_of_machine,
)
from mixtura.platform.training import checkpoint_writer
from mixtura.platform.training.checkpoint import list_checkpoints, verify
from mixtura.platform.workspace import Run


class ActorDiedError(Exception):
    """Named as Ray's, which knows whether the machine was taken back."""

    preempted = False


class PreemptedError(ActorDiedError):
    preempted = True


class WorkerHealthCheckFailedError(Exception):
    """As Ray Train's, which hides the death in an attribute."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("A worker health check failed")
        self.health_check_failure = failure


KILLED = "The actor is dead because its worker process has died: killed by SIGKILL by OOM killer, or ray stop"
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:3172")


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ({1: WorkerHealthCheckFailedError(ActorDiedError("the actor died"))}, "the process of rank 1 died"),
        ({0: CLOSED, 1: ActorDiedError("The actor died unexpectedly")}, "the process of rank 1 died"),
        ({1: ActorDiedError(KILLED)}, "the process of rank 1 died"),
        (
            {
                0: CLOSED,
                1: WorkerHealthCheckFailedError(PreemptedError("The actor died because its node was preempted")),
            },
            "the machine of rank 1 was taken back by its provider",
        ),
        ({0: CLOSED}, "rank 0 lost its connection to another rank, which died"),
        (
            {1: ActorDiedError("The actor died because its node has died.")},
            "the machine of rank 1 was lost",
        ),
        (
            {1: ActorDiedError("killed due to the node running low on memory")},
            "the process of rank 1 was killed because its machine ran out of memory",
        ),
        ({0: CLOSED, 1: TrainingError("rank 1 ran out of memory")}, "rank 1 ran out of memory"),
        ({2: ValueError("no such row\nsecond line")}, "rank 2: ValueError: no such row"),
    ],
)
def test_the_rank_that_failed_first_is_named_and_not_those_that_lost_it(
    errors: dict[int, Exception], reason: str
) -> None:
    assert reason_of(errors) == reason


def test_restarts_are_counted_from_the_beginning_of_an_attempt(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert last_restart(run, 3) is None
    for reason in ("first", "second"):
        add_restart(run, reason, {1: ActorDiedError("the actor died")})
    last = last_restart(run, 3)
    assert last is not None
    assert last.going_on(40) == "attempt failed: second; going on from step 40, 1 of 3 restarts left"
    assert launch_name(2, last.number) == "0002.2"
    write_failure(run, TrainingError("the loss is not finite"))
    assert has_failed(run)
    with pytest.raises(TrainingError, match="not finite"):
        raise_failure(run)
    forget_failures(run)
    assert last_restart(run, 3) is None
    raise_failure(run)


def test_machines_that_are_taken_back_do_not_use_restarts_up(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for error in (ActorDiedError("the actor died"), PreemptedError("taken"), PreemptedError("taken")):
        add_restart(run, "again", {1: error})
    last = last_restart(run, 3)
    assert last is not None
    assert (last.number, last.counted) == (3, 1)
    assert last.going_on(40).endswith("2 of 3 restarts left")


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
    )
    assert not is_out_of_memory(RuntimeError("shapes differ"))


BIG = ("model.d_model=1024", "model.d_ff=4096", "model.num_layers=24", "optimizer.name=adamw")


def test_the_three_settings_that_make_room_are_named_with_what_each_saves(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    tree = tiny_config(tmp_path, "big", *BIG)
    text = explain_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"), tree, 3, 8)
    head, *lines = text.splitlines()
    assert head.startswith("rank 3 ran out of memory (OutOfMemoryError: CUDA out of memory).")
    assert len(lines) == 3
    planned = savings(tree, 8, on_gpu=True)
    assert planned[0].override in lines[0]
    assert f"about {planned[0].saved / 1e9:.1f} GB" in lines[0]
    settings = [line.split("=")[0].strip() for line in lines]
    assert len(set(settings)) == 3
    assert "training.zero_stage" in settings


def test_one_worker_without_a_gpu_is_not_told_to_divide_or_to_offload(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    rows = ("data.inputs_length=512", "data.targets_length=114", "data.stream_memory=2GB")
    text = explain_out_of_memory(MemoryError(), tiny_config(tmp_path, "big", *BIG, *rows), 0, 1)
    assert "training.microbatch_size=3" in text
    assert "model.activation_checkpointing=true" in text
    assert "offload_optimizer" not in text
    assert "\n  training.zero_stage" not in text


def test_where_all_of_that_is_in_use_other_ways_are_named(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    used = ("training.microbatch_size=1", "model.activation_checkpointing=true", "training.zero_stage=3")
    found = relief(tiny_config(tmp_path, "big", *BIG, *used), 2, on_gpu=False)
    assert [text.split(":")[0] for text in found] == [
        "executor.workers=4 at training.zero_stage=3",
        "training.precision=bf16",
        "half of data.inputs_length and data.targets_length",
    ]
    assert all("MB" in text or "GB" in text for text in found)


def test_what_a_machine_keeps_beside_its_gpus_is_named_where_it_has_no_memory_left(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    found = relief_of_machine(tiny_config(tmp_path, "big", *BIG, "data.stream_memory=4GB"), 4)
    assert found[0].startswith("data.stream_memory=2000MB: about 2.0 GB")
    assert found[1].startswith("a worker fewer on each machine: about ")
    offloads = "training.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}"
    found = relief_of_machine(tiny_config(tmp_path, "big", *BIG, offloads), 4)
    assert found[2].startswith("training.deepspeed without offload_optimizer: about ")


LEDGER = Ledger(4, 2, 0.8, 0, 0.2, 1, 0.4, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("now", "means"),
    [
        ([Node(1)], "a node was lost, 1 with 1 CPU is left: the 2 workers with 0.8 CPU each do not fit there"),
        ([Node(2)], "a node was lost, 1 with 2 CPUs is left: the 2 workers fit there; building blocks and"),
        ([Node(4)], "a node was lost, 1 with 4 CPUs is left: the run fits there"),
        ([Node(2), Node(2), Node(2)], "a node joined, there are 3 now: the run fits there"),
    ],
)
def test_a_lost_node_is_told_with_what_it_means_for_the_run(now: list[Node], means: str) -> None:
    assert what_it_means(2, now, LEDGER).startswith(means)


# ---- what trying again would only meet again -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_harms_no_checkpoint(
    new_workspace: Path,
    tiny_config: Callable[..., Config],
    train_only: Callable[[Config, Executor], Path],
    steps_of: Callable[[Path], dict[int, object]],
) -> None:
    given = ("executor.kind=inline", "schedule.factor=1e30", "checkpoints.every=1")
    with pytest.raises(TrainingError, match=r"not finite at step \d"):
        train_only(tiny_config(new_workspace, "diverged", *given), InlineExecutor())
    saved = list_checkpoints(new_workspace / "diverged" / "checkpoints")
    assert saved
    for info in saved:
        verify(info.path)
        assert info.step in steps_of(new_workspace / "diverged")


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once(
    new_workspace: Path,
    tiny_config: Callable[..., Config],
    train_only: Callable[[Config, Executor], Path],
    steps_of: Callable[[Path], dict[int, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writing thread fails, and the run that would go on without ever saving again does not."""
    write, saved = checkpoint_writer.write_small_files, []

    def fail_the_second_time(*given: Any) -> Any:
        saved.append(given)
        if len(saved) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return write(*given)

    monkeypatch.setattr(checkpoint_writer, "write_small_files", fail_the_second_time)
    given = ("executor.kind=inline", "training.steps=400", "checkpoints.every=4")
    with pytest.raises(
        CheckpointError, match=r"step 8 cannot be saved in .*Input/output error.*the newest is of step 4"
    ):
        train_only(tiny_config(new_workspace, "unwritable", *given), InlineExecutor())
    assert [info.step for info in list_checkpoints(new_workspace / "unwritable" / "checkpoints")] == [4]
    assert max(steps_of(new_workspace / "unwritable")) <= 12
