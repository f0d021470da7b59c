"""The driver of a training run: prepare, show the mixture, train, measure the best checkpoint, say what is next."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mixtura.platform.config import Config, parse_bytes
from mixtura.platform.data.stream import StreamSpec
from mixtura.platform.data.vocabulary import ROWS_MULTIPLE, Vocabulary
from mixtura.platform.errors import RequestError, RunError
from mixtura.platform.files import disk_full_is_an_answer, write_json_atomically
from mixtura.platform.filesystems import last_name
from mixtura.platform.orchestration.assemble import model_config
from mixtura.platform.orchestration.evaluate import evaluation_events, final_jobs_for, jobs_for
from mixtura.platform.orchestration.evaluation_beside import EvaluationBeside
from mixtura.platform.orchestration.executor import Executor, InlineExecutor
from mixtura.platform.orchestration.mixture import (
    benchmark_shares,
    mixture_table,
    opened_stream,
    readable,
    refuse_short_stream,
    sampled,
    size_differences,
    stream_notes,
    stream_spec,
)
from mixtura.platform.orchestration.prepare import Prepared, prepare
from mixtura.platform.orchestration.prepare_plan import prepared_later, refuse_unfit_lengths, refuse_waiting_in_vain
from mixtura.platform.orchestration.preparer import Preparer
from mixtura.platform.orchestration.provenance import keep_provenance
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.result import benchmark_lines, next_commands, result_table, summary_line
from mixtura.platform.orchestration.retention import delete_superseded
from mixtura.platform.orchestration.select import best_checkpoint, checkpoint_path
from mixtura.platform.orchestration.starting_model import starting_model, vocabulary_of
from mixtura.platform.orchestration.tasks import measured_tasks, refuse_unusable, tasks_of
from mixtura.platform.orchestration.track import refuse_unusable_store, tracker_of
from mixtura.platform.orchestration.watch import Watcher
from mixtura.platform.orchestration.worker import TrainPlan
from mixtura.platform.recipe_files import recipe_name
from mixtura.platform.tracking.mlflow_tracker import MlflowTracker
from mixtura.platform.tracking.plot import plot_losses
from mixtura.platform.tracking.records import EventWriter, RunFinished, RunStarted, read_events
from mixtura.platform.tracking.selection import settled_steps
from mixtura.platform.tracking.tracker import Tailer
from mixtura.platform.training.checkpoint import list_checkpoints
from mixtura.platform.workspace import Run, Workspace, workspace


@contextlib.contextmanager
def executor_for(config: Config, *, preparing: bool = False, beside: bool = False) -> Iterator[Executor]:
    """The executor that a recipe asks for, connected while the context lasts.

    With `preparing` and `beside`, some CPUs are kept for shards that are prepared, and for checkpoints that are
    evaluated, while something trains.
    """
    if config.executor.kind == "inline":
        yield InlineExecutor()
        return
    from mixtura.platform.orchestration.cluster import connected
    from mixtura.platform.orchestration.on_ray import RayExecutor

    memory = parse_bytes(config.data.stream_memory)
    with connected(config.executor, preparing=preparing, beside=beside, stream_memory=memory) as ledger:
        yield RayExecutor(
            ledger, config.executor.max_failures, config.data.prepare_at_once, config.data.prefetch_blocks
        )


def train_recipe(recipe: str, config: Config, reporter: Reporter) -> bool:
    """Train a recipe to its last step, from wherever its run stands; a run that is done says so.

    Returns whether the last step was reached; a run that was asked to stop before it goes on with the same command.
    """
    space = workspace(config.run.root)
    run = space.run(config.run.name or recipe_name(recipe))
    with disk_full_is_an_answer(space.root, "training"), run.held():
        if is_done(run, config):
            reporter.line(f"run {run.name!r} is done: {summary_line(run)}")
            show_result(space, run, reporter)
            return True
        refuse_bad_request(space, run, config)
        refuse_unusable_store(space, config)
        if run.begins_anew(config):
            reporter.line(f"run {run.name!r} was begun with other settings and has no checkpoint yet: it begins anew")
            run.clear()
        attempt = run.begin(recipe, config)
        describe(run, recipe, config, attempt, reporter)
        try:
            preparing = any(prepared_later(config, task) for task in tasks_of(config).values())
            beside = config.evaluation.when == "beside" and bool(measured_tasks(config))
            with executor_for(config, preparing=preparing, beside=beside) as executor:
                training = Training(space, run, config, executor, reporter, attempt)
                training.go()
                return training.finished
        except BaseException as error:
            reporter.settle()
            with contextlib.suppress(OSError):  # a disk that is too full for it: the error itself says so
                run.set_status("failed" if isinstance(error, Exception) else "resumable")
            raise


def refuse_bad_request(space: Workspace, run: Run, config: Config) -> None:
    """Raise what a name or a file that is not there would raise later: then nothing was begun, and nothing is kept."""
    refuse_waiting_in_vain(config)
    refuse_unfit_lengths(config)
    begun = bool(list_checkpoints(run.checkpoints))
    if not begun:  # a run that was begun passed this, and preparing looks at what is not prepared yet
        refuse_unusable(config)
    given = config.vocabulary.path
    if given is not None and not Path(given).is_file():
        raise RequestError(f"vocabulary.path is {given!r}, but there is no such file")
    if given is not None:
        Vocabulary(given)
    model_config(config.model, embedding_rows=ROWS_MULTIPLE)
    if config.run.fork is not None and not begun:
        checkpoint_path(space, config.run.fork)
    if config.model.start is not None and not begun:
        starting_model(config)


def going_on(config: Config, space: Workspace, run: Run) -> Config:
    """The configuration with the vocabulary of the run's own checkpoints, where it began with that of another model,
    which may not be there any more."""
    saved = list_checkpoints(run.checkpoints)
    began_alone = config.run.fork is None and config.model.start is None
    if not saved or began_alone or config.vocabulary.path is not None:
        return config
    path = str(vocabulary_of(space, saved[-1].path))
    return config.model_copy(update={"vocabulary": config.vocabulary.model_copy(update={"path": path})})


def is_done(run: Run, config: Config) -> bool:
    """Whether the run was finished with these settings, and has no more steps to do now."""
    facts = run.facts()
    if facts.get("status") != "done" or facts.get("identity") != config.identity():
        return False
    saved = list_checkpoints(run.checkpoints)
    return bool(saved) and saved[-1].step >= config.training.steps


def describe(run: Run, recipe: str, config: Config, attempt: int, reporter: Reporter) -> None:
    """Print the whole resolved configuration, a line for each section; of its tasks what is not as usual."""
    reporter.line(f"run {run.name!r} of recipe {recipe!r} in {run.path}, attempt {attempt}")
    sections = config.to_dict()
    tasks = config.mixture.model_dump(mode="json", include={"tasks"}, exclude_defaults=True)["tasks"]
    sections["mixture"]["tasks"] = tasks
    for name, section in sections.items():
        values = json.dumps(section, ensure_ascii=False)[1:-1].replace('"', "")
        reporter.line(f"  {name:<12}{values}")
    reporter.line(f"identity {config.identity()} (hash of all settings that decide the result)")


@dataclass
class Training:
    """One attempt of a run."""

    space: Workspace
    run: Run
    config: Config
    executor: Executor
    reporter: Reporter
    attempt: int
    finished: bool = False

    def go(self) -> None:
        """Prepare (or begin to), train, and if the last step was reached, measure."""
        self.reporter.line(self.executor.describe())
        prepared = prepare(
            going_on(self.config, self.space, self.run),
            self.space,
            self.executor.map_shards,
            self.reporter,
            leave_pending=True,
        )
        with Preparer(prepared.pending, self.executor, self.reporter) as preparer:
            spec = self._show_mixture(prepared)
            keep_provenance(self.run)
            self.run.stop_sign.unlink(missing_ok=True)
            with self._tracked(), self._told(), Watcher(self.run, self.config.training.steps, self.reporter) as watcher:
                with stop_on_signals(self.run, self.reporter):
                    self.finished = self._train(prepared, spec)
                preparer.stop()
                watcher.look()
                self.reporter.settle()
                if self.finished:
                    self._measure_best(prepared)
                    self._plot_losses()
        self._say_the_end()

    def _train(self, prepared: Prepared, spec: StreamSpec) -> bool:
        """Train, and evaluate beside it where that is wanted."""
        jobs, settings = jobs_for(self.config, prepared), self.config.evaluation
        plan = self._plan(prepared, spec, evaluated=bool(jobs))
        if settings.when != "beside" or not jobs:
            return self.executor.train(plan, jobs)
        beside = EvaluationBeside(self.run, jobs, self.executor.evaluate, settings.waiting, self.reporter)
        with beside:
            finished = self.executor.train(plan, ())
            if finished:
                beside.finish()
        return finished

    def _show_mixture(self, prepared: Prepared) -> StreamSpec:
        """Decide the stream, keep it with the run, and say what it means for each task."""
        spec = stream_spec(self.config, prepared)
        stream = opened_stream(self.config, spec)
        sample = sampled(stream)
        refuse_short_stream(self.config, spec, sample)
        keep_stream(self.run, spec)
        rows = mixture_table(self.config, stream, sample)
        notes = [benchmark_shares(self.config, rows), f"stream {spec.fingerprint}"]
        self.reporter.table("Mixture", readable(rows), "; ".join(filter(None, notes)))
        for line in [*stream_notes(self.config, spec, sample), *size_differences(self.config, rows)]:
            self.reporter.line(line)
        return spec

    def _tracked(self) -> Tailer[MlflowTracker]:
        """Everything that the run reports goes on to MLflow, from this process alone."""
        return Tailer(
            self.run.events, lambda: tracker_of(self.space, self.run, self.config), self.reporter.line, interval_s=2.0
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The run's own record that an attempt began, and how it ended."""
        name = f"driver-{self.attempt:04d}-{time.time_ns()}.jsonl"
        with EventWriter(self.run.events / name) as events:
            events.write(RunStarted(self.attempt))
            try:
                yield
            except Exception as error:
                with contextlib.suppress(OSError):  # a disk that is too full for it: the error itself says so
                    events.write(RunFinished("failed", str(error)))
                raise
            except BaseException:
                events.write(RunFinished("resumable"))
                raise
            events.write(RunFinished("done" if self.finished else "resumable"))

    def _plan(self, prepared: Prepared, spec: StreamSpec, *, evaluated: bool) -> TrainPlan:
        fork = None if list_checkpoints(self.run.checkpoints) else self.config.run.fork
        return TrainPlan(
            config=self.config.to_dict(),
            run=str(self.run.path),
            stream=spec.to_dict(),
            vocabulary=str(prepared.vocabulary),
            attempt=self.attempt,
            evaluated=evaluated,
            threads=self.executor.threads,
            fork=None if fork is None else str(checkpoint_path(self.space, fork)),
        )

    def _measure_best(self, prepared: Prepared) -> None:
        jobs = final_jobs_for(self.config, prepared)
        if self.config.evaluation.when != "pause":
            self._validate_all(prepared)
            delete_superseded(self.run, self.config, evaluated=True)
        best = best_checkpoint(self.run)
        if not (jobs and self.config.evaluation.test):
            return
        self.reporter.line(f"measuring the best checkpoint on average, of step {best.step}, on whole splits")
        evaluation_events(self.run.path, best.path, best.step, jobs, self.executor.evaluate)

    def _validate_all(self, prepared: Prepared) -> None:
        """Evaluate the checkpoints that wait for it."""
        jobs, settled = jobs_for(self.config, prepared), settled_steps(read_events(self.run.events))
        for info in list_checkpoints(self.run.checkpoints):
            if info.step not in settled:
                evaluation_events(self.run.path, info.path, info.step, jobs, self.executor.evaluate)

    def _say_the_end(self) -> None:
        if not self.finished:
            self.run.set_status("resumable")
            self.reporter.line(f"run {self.run.name!r} was stopped and is resumable: {summary_line(self.run)}")
            self.reporter.line("the same command goes on from there")
            return
        self.run.set_status("done")
        for text in self._data_statistics():
            self.reporter.line(text)
        show_result(self.space, self.run, self.reporter)

    def _plot_losses(self) -> None:
        """Before the run's end is told, so that whoever follows it finds the picture."""
        plot_losses(read_events(self.run.events), f"Training loss by task, run {self.run.name}", self.run.losses_plot)

    def _data_statistics(self) -> Iterator[str]:
        """What each rank was delivered, and Ray Data's account of its last window, operators only."""
        for path in sorted(self.run.path.glob("ray-data-rank-*.txt")):
            lines = path.read_text().splitlines()
            rank = path.stem.removeprefix("ray-data-")
            yield f"Ray Data, {rank}: {lines[0]} (whole account in {path}); its last window:"
            for line in lines[1:]:
                if line.startswith("Operator") or "wall time" in line or "num rows per block" in line:
                    yield f"  {line.strip()}"


def keep_stream(run: Run, spec: StreamSpec) -> None:
    """Store what the stream is a function of; refuse to go on with another one."""
    path = run.path / "stream.json"
    if path.exists() and list_checkpoints(run.checkpoints):
        before = StreamSpec.from_dict(json.loads(path.read_text()))
        if before.fingerprint != spec.fingerprint:
            raise RunError(
                f"run {run.name!r} was begun on another stream ({_difference(before, spec)}): the data, the vocabulary "
                "or the Python that its text comes from changed. Start another run with run.name=NAME"
            )
    write_json_atomically(path, spec.to_dict())


def _difference(before: StreamSpec, after: StreamSpec) -> str:
    old, new = before.to_dict(), after.to_dict()
    tasks = [
        f"the cache of {was['name']} is now {last_name(now['cache'])}, was {last_name(was['cache'])}"
        for was, now in zip(old.pop("tasks"), new.pop("tasks"), strict=False)
        if last_name(was["cache"]) != last_name(now["cache"])
    ]
    rest = [f"{name} is now {new[name]}, was {old[name]}" for name in old if old[name] != new[name]]
    return "; ".join([*tasks, *rest]) or "other tasks or rates"


@contextlib.contextmanager
def stop_on_signals(run: Run, reporter: Reporter) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the run to save and end after the current step; a second Ctrl-C ends it at once."""

    def ask(number: int, _: FrameType | None) -> None:
        if run.stop_sign.exists() and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.ask_to_stop(f"{signal.Signals(number).name} at {time.time():.0f}")
        reporter.line("stopping: the current step is finished and saved; Ctrl-C again ends at once")

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, ask)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_result(space: Workspace, run: Run, reporter: Reporter) -> None:
    """The final table, the benchmarks' averages, and what to do next, as commands that can be pasted."""
    rows = result_table(run)
    if rows:
        notes = "interval: 95 % bootstrap over examples"
        if any(row["split"] == "validation" for row in rows):
            notes += "; a checkpoint that was chosen on the validation split looks a little better there than it is"
        reporter.table("Best checkpoint on average, whole splits", rows, notes)
    for line in benchmark_lines(run):
        reporter.line(line)
    reporter.line(f"loss curves by task: {run.losses_plot}")
    reporter.line("next:")
    for command in next_commands(space, run):
        reporter.line(f"  {command}")
