"""The Ray executor: Ray Data prepares and builds blocks, Ray Train holds the ranks, actors evaluate."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.errors import MixturaError, TrainingError, from_plain, to_plain
from mixtura.platform.files import write_json_atomically
from mixtura.platform.orchestration.block_pipeline import quiet_data
from mixtura.platform.orchestration.blocks import RayBlocks, refuse_too_few_blocks
from mixtura.platform.orchestration.cluster import Ledger
from mixtura.platform.orchestration.evaluate import evaluation_events
from mixtura.platform.orchestration.evaluation_job import EvaluationJob, forget_model, in_parts, run_job
from mixtura.platform.orchestration.executor import Job
from mixtura.platform.orchestration.failures import (
    MEMORY_RAN_OUT,
    add_restart,
    forget_failures,
    hang_message,
    has_failed,
    last_restart,
    raise_failure,
    reason_of,
    write_failure,
)
from mixtura.platform.orchestration.lost_nodes import NodeWatch
from mixtura.platform.orchestration.out_of_memory import relief, relief_of_machine
from mixtura.platform.orchestration.watchdog import leave_process
from mixtura.platform.orchestration.worker import Rank, TrainPlan
from mixtura.platform.workspace import Run

_DAY_S = 24 * 3600
_NICENESS = 15


class RayExecutor:
    """Runs functions on the cluster that this process is connected to, within a ledger."""

    def __init__(self, ledger: Ledger, max_failures: int, shards_at_once: int | None, blocks_per_lane: int) -> None:
        self.ledger, self.max_failures = ledger, max_failures
        self.shards_at_once = shards_at_once or max(1, int(ledger.cpus))
        self.blocks_per_lane = blocks_per_lane
        self.threads = ledger.threads
        self._evaluators: list[Any] = []

    def describe(self) -> str:
        """Where the work runs."""
        return f"Ray: {self.ledger.describe()}"

    def map_shards(self, function: Callable[[Job], Job], jobs: Sequence[Job]) -> Iterator[Job]:
        """Ray Data maps the function over the jobs, a task for each."""
        share = min(1.0, self.ledger.cpus / self.shards_at_once)
        return _map_jobs(function, jobs, cpus=share, at_once=self.shards_at_once)

    def map_beside(
        self,
        function: Callable[..., Job],
        jobs: Sequence[Job],
        stopped: Callable[[], bool],  # noqa: ARG002 (a pipeline that is let go ends its tasks)
    ) -> Iterator[Job]:
        """A pipeline of its own on the CPUs that the ledger keeps for it."""
        return _map_jobs(function, jobs, cpus=self.ledger.preparer_cpus, at_once=self.ledger.preparers)

    def evaluate(self, jobs: Sequence[EvaluationJob]) -> list[Job]:
        """Share the jobs among the evaluators."""
        return evaluate_on(self.evaluators(), jobs)

    def evaluators(self) -> list[Any]:
        """The evaluator actors, started when first needed; they keep the model of the last checkpoint."""
        import ray

        if not self._evaluators:
            ledger = self.ledger
            shared = ledger.evaluates_on_gpus_of_workers
            kind = ray.remote(
                num_cpus=ledger.evaluator_cpus,
                num_gpus=ledger.evaluator_gpus,
                resources=_near_a_gpu() if shared else None,
                scheduling_strategy="SPREAD",
                max_restarts=-1,
                max_task_retries=3,
                # Without it Ray hides the GPUs from whoever has none of them to itself.
                runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}} if shared else None,
            )(Evaluator)
            on_gpu = shared or ledger.evaluator_gpus > 0
            self._evaluators = [
                kind.remote(ledger.evaluator_threads, number if on_gpu else None, ledger.evaluates_beside)
                for number in range(ledger.evaluators)
            ]
        return self._evaluators

    def train(self, plan: TrainPlan, validation: Sequence[EvaluationJob]) -> bool:
        """One Ray Train run; a worker that dies makes all ranks go on from the last verified checkpoint."""
        import ray.train
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        run, ledger = Run(Path(plan.run)), self.ledger
        refuse_too_few_blocks(StreamSpec.from_dict(plan.stream), ledger.workers, ledger.stream_memory)
        forget_failures(run)
        (run.path / "outcome.json").unlink(missing_ok=True)
        gpu = ledger.worker_gpus > 0
        resources = {"CPU": ledger.worker_cpus, **({"GPU": ledger.worker_gpus} if gpu else {})}
        environment = {"OMP_NUM_THREADS": str(plan.threads), **({} if gpu else {"DS_ACCELERATOR": "cpu"})}
        trainer = TorchTrainer(
            _train_rank,
            train_loop_config={
                "plan": plan.__dict__,
                "validation": [job.__dict__ for job in validation],
                "evaluators": self.evaluators() if validation else [],
                "builder_cpus": ledger.builder_cpus,
                "builders": ledger.builders,
                "blocks_per_lane": self.blocks_per_lane,
                "memory": ledger.stream_memory,
                "max_failures": self.max_failures,
            },
            scaling_config=ScalingConfig(num_workers=ledger.workers, use_gpu=gpu, resources_per_worker=resources),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_DAY_S),
            run_config=RunConfig(
                name=f"attempt-{plan.attempt:04d}",
                storage_path=str(run.path / "ray"),
                failure_config=FailureConfig(max_failures=self.max_failures),
                callbacks=[_failure_log()(plan, ledger)],
                worker_runtime_env={"env_vars": environment},
            ),
        )
        try:
            with NodeWatch(run, plan.attempt, ledger):
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise_failure(run)
            raise self._given_up(run, error) from error
        raise_failure(run)
        return bool(json.loads((run.path / "outcome.json").read_text())["finished"])

    def _given_up(self, run: Run, error: Exception) -> TrainingError:
        """What to say when the workers were started again as often as they may be."""
        last = last_restart(run, self.max_failures)
        times = 1 if last is None else last.counted
        return TrainingError(
            f"the workers of run {run.name!r} failed {times} time{'s' * (times > 1)}, and executor.max_failures is "
            f"{self.max_failures}. The last time: {_last_line(str(error)) if last is None else last.reason}\n"
            f"Everything committed is kept, and the same command goes on from there; the workers' logs are below "
            f"{run.path / 'ray'}"
        )


def _map_jobs(function: Callable[[Job], Job], jobs: Sequence[Job], *, cpus: float, at_once: int) -> Iterator[Job]:
    if not jobs:
        return
    import ray.data

    quiet_data()
    requests = [{"job": json.dumps(job)} for job in jobs]
    dataset = ray.data.from_items(requests, override_num_blocks=len(requests)).map(
        partial(_call_as_json, function=function), num_cpus=cpus, concurrency=min(at_once, len(jobs))
    )
    for row in dataset.iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise from_plain(answer["error"])
        yield answer["result"]


def _near_a_gpu() -> dict[str, float] | None:
    """A little of a resource that only nodes with a GPU have: Ray names the kinds of them that it finds."""
    import ray

    kinds = [name for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
    return {kinds[0]: 0.001} if len(kinds) == 1 else None


def _let_others_go_first() -> None:
    """Work only where a CPU would idle: Linux then also wakes others there, as if nobody was at work."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # no Linux
        os.nice(_NICENESS)


class Evaluator:
    """A process that answers evaluation jobs; on a GPU, which of those that it sees says its number, or on CPUs.

    `after_others` lets every other process go first where there are more of them than CPUs.
    """

    def __init__(self, threads: int, number: int | None, after_others: bool) -> None:
        import torch

        if after_others:
            _let_others_go_first()

        torch.set_num_threads(threads)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self._device = "cpu"
        if number is not None and torch.cuda.is_available():
            self._device = f"cuda:{number % torch.cuda.device_count()}"

    def run(self, job: Job) -> Job:
        """One job."""
        return run_job(EvaluationJob(**job), self._device)

    def release(self) -> None:
        """Leave the GPU's memory to those who train."""
        if self._device != "cpu":
            forget_model()


def evaluate_on(evaluators: Sequence[Any], jobs: Sequence[EvaluationJob]) -> list[Job]:
    """Jobs on actors, each taking the next one when it is free; results in the order of the jobs. Large ones are
    answered in parts, and judged when all parts are there."""
    import ray
    from ray.util import ActorPool

    def run(some: Sequence[EvaluationJob]) -> list[Job]:
        return list(ActorPool(evaluators).map(lambda actor, job: actor.run.remote(job.__dict__), some))

    jobs = in_parts(jobs, len(evaluators))
    parts = [replace(job, part=part) for job in jobs if job.parts > 1 for part in range(job.parts)]
    whole = [job for job in jobs if job.parts == 1]
    try:
        of_whole = iter(run([*parts, *whole])[len(parts) :])
        of_parts = iter(run([job for job in jobs if job.parts > 1]))
        ray.get([actor.release.remote() for actor in evaluators])
    except ray.exceptions.RayTaskError as error:
        raise _own_error(error) from None
    finally:
        for job in jobs:
            for path in job.part_files if job.parts > 1 else ():
                path.unlink(missing_ok=True)
    return [next(of_whole if job.parts == 1 else of_parts) for job in jobs]


def _call_as_json(row: dict[str, Any], function: Callable[[Job], Job]) -> dict[str, Any]:
    """The result, or what is wrong as plain values: Ray Data would keep only the text of an error."""
    try:
        answer: Job = {"result": function(json.loads(row["job"]))}
    except MixturaError as error:
        answer = {"error": to_plain(error)}
    return {"answer": json.dumps(answer)}


def _train_rank(given: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    if get_device().type == "cuda":
        torch.cuda.set_device(get_device())
    plan = TrainPlan(**given["plan"])
    run, context = Run(Path(plan.run)), ray.train.get_context()
    if has_failed(run):
        return  # trying again would only meet the same error; the driver reports it
    validation = [EvaluationJob(**job) for job in given["validation"]]
    rank = Rank(
        plan,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        make_blocks=lambda stream, state: RayBlocks(
            stream,
            state,
            builder_cpus=given["builder_cpus"],
            builders=given["builders"],
            blocks_per_lane=given["blocks_per_lane"],
            memory=given["memory"],
        ),
        evaluate=lambda path, step: evaluation_events(
            run.path, path, step, validation, partial(evaluate_on, given["evaluators"])
        ),
        end=leave_process,
        restart=last_restart(run, given["max_failures"]),
        first_of_node=context.get_node_rank() if context.get_local_rank() == 0 else None,
    )
    try:
        finished = rank.train()
    except MixturaError as error:
        if not rank.may_pass(error):
            write_failure(run, error)
        raise
    if rank.rank == 0:
        write_json_atomically(run.path / "outcome.json", {"finished": finished})


def _failure_log() -> type[Any]:
    """What Ray Train tells of failures; a class of its own library, which is imported only when it is used."""
    from ray.train import UserCallback

    class FailureLog(UserCallback):  # type: ignore[misc]
        """Writes down in the run's folder why the workers are started again."""

        def __init__(self, plan: TrainPlan, ledger: Ledger) -> None:
            self.plan, self.ledger = plan, ledger

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
            run = Run(Path(self.plan.run))
            raise_failure(run)  # what a callback raises ends the training: the same error would only be met again
            reason = hang_message(run, self.plan.attempt) or reason_of(worker_exceptions)
            if MEMORY_RAN_OUT in reason:
                reason += f". What would make room: {'; '.join(self._relief())}"
            add_restart(run, reason, worker_exceptions)

        def _relief(self) -> list[str]:
            if self.ledger.worker_gpus:
                return relief_of_machine(self.plan.tree, self.ledger.workers)
            return relief(self.plan.tree, self.ledger.workers, on_gpu=False)

    return FailureLog


def _own_error(error: Any) -> Exception:
    """The error that a task raised, where it is one of ours; otherwise what Ray made of it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, MixturaError) else error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
