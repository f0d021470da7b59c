"""One rank's part of a training run, the same under Ray and inline: put the parts together, go on, train."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.distributed as dist

from mixtura.platform.config import Config, parse_duration_s, validated
from mixtura.platform.data.cache import MANIFEST
from mixtura.platform.data.cache_store import store_at
from mixtura.platform.data.features import global_fingerprint
from mixtura.platform.data.lanes import BlockSource, Position, RankStream, lane_positions
from mixtura.platform.data.stream import MixtureStream, StreamSpec
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.errors import CheckpointError, TrainingError
from mixtura.platform.files import exclusive_lock
from mixtura.platform.orchestration import assemble
from mixtura.platform.orchestration.failures import Restart, launch_name, stacks_folder
from mixtura.platform.orchestration.meters import StepMeter, SystemMonitor
from mixtura.platform.orchestration.out_of_memory import explain_out_of_memory, is_out_of_memory
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.retention import delete_superseded
from mixtura.platform.orchestration.starting_model import load_starting_weights
from mixtura.platform.orchestration.watchdog import Launch, Watchdog
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationSkipped,
    EventWriter,
    Note,
    TrainPoint,
    read_events,
)
from mixtura.platform.tracking.selection import settled_steps
from mixtura.platform.training.checkpoint import MANIFEST as CHECKPOINT_MANIFEST
from mixtura.platform.training.checkpoint import (
    CheckpointInfo,
    folder_name,
    latest_verified,
    list_checkpoints,
    read_optimizer,
    read_state,
    read_weights,
)
from mixtura.platform.training.checkpoint_writer import CheckpointWriter
from mixtura.platform.training.engine import Engine, create_engine
from mixtura.platform.training.loop import Hooks, LoopSettings, StepReport, TrainingLoop, microbatches_per_step
from mixtura.platform.training.snapshot import Snapshot
from mixtura.platform.workspace import Run

if TYPE_CHECKING:
    from mixtura.models.t5 import TextToText


class Blocks(BlockSource, Protocol):
    """A source of blocks that can be closed and may have something to tell."""

    statistics: str

    def close(self) -> None:
        """Stop building."""


@dataclass(frozen=True)
class TrainPlan:
    """All that a rank needs to know; plain values, so that it can be sent anywhere."""

    config: dict[str, Any]
    run: str
    stream: dict[str, Any]
    vocabulary: str
    attempt: int
    fork: str | None = None
    """Checkpoint folder whose weights and optimizer state a new run begins with."""
    evaluated: bool = False
    """Whether checkpoints are evaluated, so that those that wait for it are kept."""
    threads: int = 1
    """Of torch in this process, where the model is on the CPU; never more than the machine has."""

    @property
    def tree(self) -> Config:
        """The configuration."""
        return validated(self.config, where="the plan of a run")


@dataclass
class Rank:
    """One training process of a run."""

    plan: TrainPlan
    rank: int
    world_size: int
    make_blocks: Callable[[MixtureStream, Mapping[int, Position]], Blocks]
    evaluate: Callable[[Path, int], object]
    """Called on rank 0 with a committed checkpoint, where evaluation pauses training."""
    end: Callable[[str], None]
    """Ends this process's training with a message, from another thread, where it stands still."""
    restart: Restart | None = None
    """Why all ranks were started again."""
    first_of_node: int | None = 0
    """The node's number, where this rank is the first one there."""
    config: Config = field(init=False)
    run: Run = field(init=False)
    stepped: bool = field(init=False, default=False)
    """Whether a step has ended in this launch."""

    def __post_init__(self) -> None:
        self.config, self.run = self.plan.tree, Run(Path(self.plan.run))
        self._deadline_s = _deadline_s(self.config)
        self._snapshot: Snapshot | None = None
        self._saved_s: float | None = None

    def train(self) -> bool:
        """Train from the last verified checkpoint to the last step; False if asked to stop before it.

        Raises TrainingError where memory ran out, with what would make room.
        """
        try:
            return self._as_writer()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(explain_out_of_memory(error, self.config, self.rank, self.world_size)) from error

    def may_pass(self, error: BaseException) -> bool:
        """Whether an error may not be met again: memory ran out after steps that had enough of it."""
        return self.stepped and error.__cause__ is not None and is_out_of_memory(error.__cause__)

    def _as_writer(self) -> bool:
        """Rank 0 alone writes what the run reports, and holds the run for as long."""
        if self.rank:
            return self._train(None)
        # The rank 0 of an attempt whose driver was killed may live a moment longer than it.
        with exclusive_lock(self.run.path / ".writer.lock", "the run is still being written", wait=True):
            self.run.events.mkdir(exist_ok=True)
            name = f"train-{self.plan.attempt:04d}-{time.time_ns()}.jsonl"
            with EventWriter(self.run.events / name) as events:
                return self._train(events)

    def _train(self, events: EventWriter | None) -> bool:
        torch.set_num_threads(max(1, min(self.plan.threads, os.cpu_count() or 1)))
        vocabulary = Vocabulary(self.plan.vocabulary)
        architecture = assemble.model_config(self.config.model, vocabulary.embedding_rows)
        model = assemble.build_model(architecture, self.config.run.seed, self.config.model)
        if self.config.model.start is not None and not list_checkpoints(self.run.checkpoints):
            load_starting_weights(model, self.config)
        engine = create_engine(
            model,
            optimizer=assemble.optimizer_settings(self.config),
            zero_stage=self.config.training.zero_stage,
            precision=self.config.training.precision,
            passthrough=self.config.training.deepspeed,
        )
        names = assemble.hf_names(model)
        if events is not None and engine.notes:
            events.write(*(Note(note) for note in engine.notes))
        step, state = self._go_on(engine, names, events)
        restarts = 0 if self.restart is None else self.restart.number
        launch = launch_name(self.plan.attempt, _from_rank_0(restarts, engine.device))
        if events is not None and self.restart is not None:
            events.write(Note(self.restart.going_on(step)))
        stream = MixtureStream(StreamSpec.from_dict(self.plan.stream), copies_of(self.config))
        stream.open()
        place = _stream_state(step, state)
        blocks = self.make_blocks(stream, lane_positions(stream.spec, self.rank, self.world_size, place))
        reader = RankStream(stream, self.rank, self.world_size, place, blocks)
        writer = CheckpointWriter(
            self.run.checkpoints,
            self.rank,
            self.world_size,
            assemble.checkpoint_format(architecture, vocabulary),
            attempt=f"{launch}-{step}",
        )
        try:
            with (
                self._monitor(),
                self._watchdog(launch, lambda: (_bytes_prepared(stream.spec), writer.unfinished_bytes)) as watchdog,
            ):
                if events is not None:
                    with watchdog.paused():
                        self._catch_up(step, events)
                return self._loop(engine, reader, writer, events, step, state, watchdog)
        finally:
            blocks.close()
            if blocks.statistics:
                (self.run.path / f"ray-data-rank-{self.rank}.txt").write_text(blocks.statistics)

    def _go_on(
        self, engine: Engine, names: Mapping[str, tuple[str, ...]], events: EventWriter | None
    ) -> tuple[int, dict[str, Any]]:
        """Restore the last verified checkpoint, which rank 0 picks for all; or begin, with a fork's state if asked."""
        info, skipped = latest_verified(self.run.checkpoints) if self.rank == 0 else (None, [])
        for bad in skipped:
            if events is not None:
                events.write(Note(f"checkpoint of step {bad.info.step} was passed over: {bad.reason}"))
        step = _from_rank_0(info.step if info is not None else 0, engine.device)
        if step == 0:
            if self.plan.fork is not None:
                _restore(engine, Path(self.plan.fork), names)
            elif self.config.run.fork or (self.config.model.start and list_checkpoints(self.run.checkpoints)):
                source = self.config.run.fork or self.config.model.start
                folder = self.run.checkpoints
                raise CheckpointError(
                    f"no checkpoint in {folder} is whole, and the run began with the weights of {source}: "
                    "remove that folder and run the same command to begin with them again"
                )
            return 0, {}
        path = self.run.checkpoints / folder_name(step)
        _restore(engine, path, names)
        return step, read_state(path)

    def _loop(
        self,
        engine: Engine,
        reader: RankStream,
        writer: CheckpointWriter,
        events: EventWriter | None,
        step: int,
        state: Mapping[str, Any],
        watchdog: Watchdog,
    ) -> bool:
        def save(at: int, trained: Mapping[str, Mapping[str, int]]) -> None:
            place = reader.state()
            lanes = {str(lane): [turn, row] for lane, turn, row in place["lanes"]}
            mine = {
                "stream": place["stream"],
                "lanes": lanes,
                "trained": trained,
                "epochs": epochs_of(trained, reader.stream.known_epoch_sizes),
                "identity": self.config.identity(),
            }
            started = time.perf_counter()
            writer.wait()  # before the copy: there is never more than one in memory
            stall_s = time.perf_counter() - started
            self._committed(writer, events, watchdog)
            started = time.perf_counter()
            self._snapshot = engine.snapshot(reuse=self._snapshot)
            writer.save(at, self._snapshot, mine)
            self._saved_s = stall_s + time.perf_counter() - started

        settings = self._settings(reader, cast("TextToText", engine.module))
        meter = StepMeter(
            cast("TextToText", engine.module).config,
            settings,
            self.config.training.precision,
            self.world_size,
            engine.device,
        )

        def on_step(report: StepReport) -> None:
            self.stepped = True
            watchdog.progress(report.step)
            writer.poll()
            if events is not None:
                point = _point(report, epochs_of(report.trained, reader.stream.known_epoch_sizes))
                metrics = {**point.metrics, **meter.of(report)}
                events.write(self._with_stall(replace(point, metrics=metrics)))
            self._committed(writer, events, watchdog)

        loop = TrainingLoop(
            settings=settings,
            engine=engine,
            hooks=Hooks(
                next_batch=reader.next_batch,
                global_fingerprint=global_fingerprint,
                on_step=on_step,
                save=save,
                stop_requested=self._stop_requested,
                text_of=Vocabulary(self.plan.vocabulary).decode,
            ),
            step=step,
            trained=state.get("trained", {}),
        )
        finished = loop.run()
        writer.wait()
        self._committed(writer, events, watchdog)
        return finished

    def _monitor(self) -> AbstractContextManager[object]:
        every = self.config.tracking.system_every
        if self.first_of_node is None or every is None:
            return nullcontext()
        return SystemMonitor(self.run, self.first_of_node, parse_duration_s(every))

    def _watchdog(self, launch: str, works_elsewhere: Callable[[], object]) -> Watchdog:
        hang_after = self.config.executor.hang_after
        return Watchdog(
            Launch(stacks_folder(self.run), launch, self.rank, self.world_size),
            None if hang_after is None else parse_duration_s(hang_after),
            self.end,
            works_elsewhere,
        )

    def _with_stall(self, point: TrainPoint) -> TrainPoint:
        """A step's point, with how long the checkpoint before it made training stand still."""
        stall_s, self._saved_s = self._saved_s, None
        return point if stall_s is None else replace(point, metrics={**point.metrics, "save_s": stall_s})

    def _catch_up(self, step: int, events: EventWriter) -> None:
        """Report and evaluate checkpoints that an attempt committed and was killed before it could."""
        records = read_events(self.run.events)
        reported = {record.step for record in records if isinstance(record, CheckpointCommitted)}
        settled = settled_steps(records)
        for info in list_checkpoints(self.run.checkpoints):
            if info.step <= step and info.step not in reported:
                events.write(CheckpointCommitted(info.step, str(info.path)))
            if info.step <= step and info.step not in settled and self.config.evaluation.when == "pause":
                self._evaluate(info, events)

    def _committed(self, writer: CheckpointWriter, events: EventWriter | None, watchdog: Watchdog) -> None:
        """Report what was committed since the last call; evaluate it where training is to pause for that."""
        infos = writer.newly_committed()
        if not infos or events is None:
            return
        pauses = self.config.evaluation.when == "pause"
        for info in infos:
            events.write(CheckpointCommitted(info.step, str(info.path)))
            if pauses:
                with watchdog.paused():
                    self._evaluate(info, events)
        delete_superseded(self.run, self.config, evaluated=self.plan.evaluated)

    def _evaluate(self, info: CheckpointInfo, events: EventWriter) -> None:
        """Evaluate a checkpoint, unless somebody deletes it meanwhile: that is no reason to end the training."""
        try:
            self.evaluate(info.path, info.step)
        except Exception:
            if (info.path / CHECKPOINT_MANIFEST).is_file():
                raise
            events.write(EvaluationSkipped(info.step, "its files are gone"))

    def _settings(self, reader: RankStream, model: TextToText) -> LoopSettings:
        spec, training = reader.stream.spec, self.config.training
        return LoopSettings(
            features=model.features,
            steps=training.steps,
            global_batch_size=spec.global_batch_size,
            microbatches=microbatches_per_step(_rows_of_ranks(spec, self.world_size), training.microbatch_size),
            microbatch_size=training.microbatch_size,
            inputs_length=spec.inputs_length,
            targets_length=spec.row_lengths[1],
            tasks=tuple(task.name for task in spec.tasks),
            seed=self.config.run.seed,
            learning_rate=assemble.schedule(self.config),
            normalizer=training.normalizer,
            normalizer_constant=training.normalizer_constant,
            frozen_at=assemble.frozen_at(model, training.unfreeze_every),
            gradient_norms_every=training.gradient_norms_every,
            z_loss=training.z_loss,
            label_smoothing=training.label_smoothing,
            checkpoint_every=self.config.checkpoints.every,
        )

    def _stop_requested(self) -> bool:
        if self.rank:
            return False
        return self.run.stop_sign.exists() or (self._deadline_s is not None and time.time() > self._deadline_s)


def _restore(engine: Engine, path: Path, names: Mapping[str, tuple[str, ...]]) -> None:
    state = read_state(path)
    engine.restore(read_weights(path, names), read_optimizer(path) or None, int(state["optimizer_step"]))


def _stream_state(step: int, state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stream's place in a checkpoint, as `RankStream` takes it."""
    if not state:
        return None
    lanes = [[int(lane), turn, row] for lane, (turn, row) in state["lanes"].items()]
    return {"stream": state["stream"], "step": step, "lanes": sorted(lanes)}


def _rows_of_ranks(spec: StreamSpec, world_size: int) -> list[int]:
    """Rows that each rank has in a global batch."""
    return [len(range(rank, spec.lanes, world_size)) * spec.rows_per_lane for rank in range(world_size)]


def _from_rank_0(value: int, device: torch.device) -> int:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64, device=device)
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


def _bytes_prepared(spec: StreamSpec) -> list[int]:
    """Bytes of the caches that are still being prepared: a rank that waits for a shard waits for these to grow."""
    stores = [store_at(task.cache) for task in spec.tasks]
    return [sum(store.sizes().values()) for store in stores if store.read(MANIFEST) is None]


def _deadline_s(config: Config) -> float | None:
    return None if config.run.stop_after is None else time.time() + parse_duration_s(config.run.stop_after)


def epochs_of(trained: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]) -> dict[str, float]:
    """Passes over each task's examples so far, where it is known how many there are.

    >>> epochs_of({"examples": {"rte": 30, "c4": 500}}, {"rte": 20})
    {'rte': 1.5}
    """
    examples = trained.get("examples", {})
    return {task: examples[task] / sizes[task] for task in examples if task in sizes}


def _point(report: StepReport, epochs: Mapping[str, float]) -> TrainPoint:
    metrics = {
        "loss": report.loss,
        **{f"loss/{task}": loss for task, loss in report.loss_by_task.items()},
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        **{f"gradient_norm/{task}": norm for task, norm in report.gradient_norm_by_task.items()},
        "target_tokens": float(report.target_tokens),
        "data_wait_s": report.data_wait_s,
        "step_s": report.step_s,
        **{f"epochs/{task}": passes for task, passes in epochs.items()},
        **{f"{name}/{task}": float(count) for name, counts in report.trained.items() for task, count in counts.items()},
    }
    return TrainPoint(report.step, metrics=metrics, fingerprint=report.fingerprint)
