"""Where the functions of the other rooms run: in this process, or on a Ray cluster with the same results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixtura.platform.data.lanes import InlineBlocks
from mixtura.platform.orchestration.evaluate import evaluation_events
from mixtura.platform.orchestration.evaluation_job import EvaluationJob, forget_model, run_job
from mixtura.platform.orchestration.watchdog import Interruption
from mixtura.platform.orchestration.worker import Rank, TrainPlan

Job = dict[str, Any]


class Executor(Protocol):
    """Runs functions many times; decides nothing about their results."""

    threads: int
    """Threads of one training process."""

    def describe(self) -> str:
        """Where the work runs, in one line."""

    def map_shards(self, function: Callable[[Job], Job], jobs: Sequence[Job]) -> Iterator[Job]:
        """Call a function on every job; results in any order."""

    def map_beside(
        self, function: Callable[..., Job], jobs: Sequence[Job], stopped: Callable[[], bool]
    ) -> Iterator[Job]:
        """The same while something trains, on CPUs of its own. In this process the function is also given `stopped`,
        which says when to give up."""

    def evaluate(self, jobs: Sequence[EvaluationJob]) -> list[Job]:
        """Run evaluation jobs; results in their order."""

    def train(self, plan: TrainPlan, validation: Sequence[EvaluationJob]) -> bool:
        """Train to the last step; False where the run was asked to stop before it."""


class InlineExecutor:
    """Everything in this process, one after the other, without Ray."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or os.cpu_count() or 1

    def describe(self) -> str:
        """Where the work runs."""
        return "inline: this process, without Ray"

    def map_shards(self, function: Callable[[Job], Job], jobs: Sequence[Job]) -> Iterator[Job]:
        """One job after the other."""
        return map(function, jobs)

    def map_beside(
        self, function: Callable[..., Job], jobs: Sequence[Job], stopped: Callable[[], bool]
    ) -> Iterator[Job]:
        """One job after the other, on the caller's thread."""
        return (function(job, stopped) for job in jobs)

    def evaluate(self, jobs: Sequence[EvaluationJob]) -> list[Job]:
        """One job after the other."""
        import torch

        torch.set_num_threads(self.threads)
        results = [run_job(job) for job in jobs]
        if torch.cuda.is_available():
            forget_model()
        return results

    def train(self, plan: TrainPlan, validation: Sequence[EvaluationJob]) -> bool:
        """Train as the only rank."""
        from mixtura.platform.training.engine import initialize_distributed_single_process

        initialize_distributed_single_process()
        with Interruption() as end:
            rank = Rank(
                plan,
                rank=0,
                world_size=1,
                make_blocks=lambda stream, _: InlineBlockSource(stream),
                evaluate=lambda path, step: evaluation_events(Path(plan.run), path, step, validation, self.evaluate),
                end=end,
            )
            return rank.train()


class InlineBlockSource(InlineBlocks):
    """Blocks built in this process when they are asked for."""

    statistics = ""

    def close(self) -> None:
        """Nothing runs ahead, so nothing has to stop."""
