"""One rank's part of a training run, the same under Ray and inline: put the parts together, go on, train."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mixtura.platform.config import Config, validated
from mixtura.platform.data.features import global_fingerprint
from mixtura.platform.data.lanes import BlockSource, Position, RankStream, lane_positions
from mixtura.platform.data.stream import MixtureStream, StreamSpec
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.errors import CheckpointError, MixturaError, to_plain
from mixtura.platform.files import exclusive_lock, write_json_atomically
from mixtura.platform.orchestration import assemble
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
    EventWriter,
    Note,
    TrainPoint,
    read_events,
)
from mixtura.platform.tracking.selection import best_for, pareto_front, scores
from mixtura.platform.training.checkpoint import (
    CheckpointInfo,
    delete_checkpoint,
    latest_verified,
    list_checkpoints,
    read_optimizer,
    read_state,
    read_weights,
    retain,
)
from mixtura.platform.training.checkpoint_writer import CheckpointWriter
from mixtura.platform.training.engine import Engine, create_engine
from mixtura.platform.training.loop import Hooks, LoopSettings, StepReport, TrainingLoop, microbatches_per_step
from mixtura.platform.workspace import Run


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
    config: Config = field(init=False)
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        self.config, self.run = self.plan.tree, Run(Path(self.plan.run))
        self._deadline_s = _deadline_s(self.config)

    def train(self) -> bool:
        """Train from the last verified checkpoint to the last step; False if asked to stop before it."""
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
        model = assemble.build_model(architecture, self.config.run.seed, self.config.model.attention)
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
        stream = MixtureStream(StreamSpec.from_dict(self.plan.stream), copies_of(self.config))
        stream.open()
        place = _stream_state(step, state)
        blocks = self.make_blocks(stream, lane_positions(stream.spec, self.rank, self.world_size, place))
        reader = RankStream(stream, self.rank, self.world_size, place, blocks)
        writer = CheckpointWriter(
            self.run.checkpoints,
            self.rank,
            self.world_size,
            assemble.checkpoint_format(model, vocabulary),
            attempt=f"{self.plan.attempt}-{step}",
        )
        try:
            if events is not None:
                self._catch_up(step, events)
            return self._loop(engine, reader, writer, events, step, state)
        finally:
            blocks.close()
            if blocks.statistics:
                (self.run.path / f"ray-data-rank-{self.rank}.txt").write_text(blocks.statistics)

    def _go_on(
        self, engine: Engine, names: Mapping[str, str], events: EventWriter | None
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
            elif self.config.run.fork is not None:
                raise CheckpointError(
                    f"no checkpoint in {self.run.checkpoints} is whole, and the run began with the weights of "
                    f"{self.config.run.fork}: remove that folder and run the same command to begin with them again"
                )
            return 0, {}
        path = self.run.checkpoints / f"step-{step:06d}"
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
            writer.save(at, engine.snapshot(), mine)
            if self.config.evaluation.when == "pause":
                writer.wait()
                self._committed(writer, events)

        def on_step(report: StepReport) -> None:
            writer.poll()
            if events is not None:
                events.write(_point(report, epochs_of(report.trained, reader.stream.known_epoch_sizes)))

        loop = TrainingLoop(
            settings=self._settings(reader),
            engine=engine,
            hooks=Hooks(
                next_batch=reader.next_batch,
                global_fingerprint=global_fingerprint,
                on_step=on_step,
                save=save,
                stop_requested=self._stop_requested,
            ),
            step=step,
            trained=state.get("trained", {}),
        )
        finished = loop.run()
        writer.wait()
        self._committed(writer, events)
        return finished

    def _catch_up(self, step: int, events: EventWriter) -> None:
        """Report and evaluate checkpoints that an attempt committed and was killed before it could."""
        records = read_events(self.run.events)
        reported = {record.step for record in records if isinstance(record, CheckpointCommitted)}
        evaluated = {record.step for record in records if isinstance(record, EvaluationResult)}
        for info in list_checkpoints(self.run.checkpoints):
            if info.step <= step and info.step not in reported:
                events.write(CheckpointCommitted(info.step, str(info.path)))
            if info.step <= step and info.step not in evaluated and self.config.evaluation.when == "pause":
                self.evaluate(info.path, info.step)

    def _committed(self, writer: CheckpointWriter, events: EventWriter | None) -> None:
        infos: list[CheckpointInfo] = writer.newly_committed()
        for info in infos:
            if events is not None:
                events.write(CheckpointCommitted(info.step, str(info.path)))
                if self.config.evaluation.when == "pause":
                    self.evaluate(info.path, info.step)
        if infos and self.config.evaluation.when == "pause":
            self._delete_superseded()

    def _delete_superseded(self) -> None:
        """Keep the newest checkpoints, and those that are best for a task or on average, or that no other one beats."""
        found = scores(read_events(self.run.events))
        protected = {
            *(step for step, what in best_for(found).items() if what),
            *(one.step for one in pareto_front(found)),
        }
        infos = {info.step: info for info in list_checkpoints(self.run.checkpoints)}
        for step in retain(infos.values(), self.config.checkpoints.keep, protected):
            delete_checkpoint(infos[step])

    def _settings(self, reader: RankStream) -> LoopSettings:
        spec, training = reader.stream.spec, self.config.training
        return LoopSettings(
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
            z_loss=training.z_loss,
            label_smoothing=training.label_smoothing,
            checkpoint_every=self.config.checkpoints.every,
        )

    def _stop_requested(self) -> bool:
        if self.rank:
            return False
        return (self.run.path / "stop").exists() or (self._deadline_s is not None and time.time() > self._deadline_s)


def _restore(engine: Engine, path: Path, names: Mapping[str, str]) -> None:
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


def _deadline_s(config: Config) -> float | None:
    from mixtura.platform.config import parse_duration_s

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
        "target_tokens": float(report.target_tokens),
        "data_wait_s": report.data_wait_s,
        "step_s": report.step_s,
        **{f"epochs/{task}": passes for task, passes in epochs.items()},
        **{f"{name}/{task}": float(count) for name, counts in report.trained.items() for task, count in counts.items()},
    }
    return TrainPoint(report.step, metrics=metrics, fingerprint=report.fingerprint)


def write_failure(run: Run, error: MixturaError) -> None:
    """Leave word of an error that trying again would only meet again."""
    write_json_atomically(run.path / "failure.json", to_plain(error))
