"""The driver of a search: prepare, find a mixture, compare it with the plain ones, say what may be concluded."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config, ExecutorSection, parse_duration_s
from mixtura.platform.errors import ConfigError, TrainingError
from mixtura.platform.files import disk_full_is_an_answer, write_json_atomically
from mixtura.platform.orchestration.executor import Executor, InlineExecutor
from mixtura.platform.orchestration.prepare import prepare
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.search import (
    GivenTrials,
    InlineTrials,
    MixtureSearch,
    Tally,
    Trials,
    tune_trials,
)
from mixtura.platform.orchestration.search_book import TrialBook
from mixtura.platform.orchestration.search_report import Report, findings, report_of, show_report, task_shares
from mixtura.platform.orchestration.search_watch import SearchTracking, SearchWatch
from mixtura.platform.orchestration.select import checkpoint_path
from mixtura.platform.orchestration.track import evaluated_tasks, refuse_unusable_store
from mixtura.platform.orchestration.train import describe, executor_for, refuse_bad_request, stop_on_signals
from mixtura.platform.orchestration.trial import delete_checkpoints
from mixtura.platform.recipe_files import override_values, recipe_name
from mixtura.platform.search.space import Candidate, Space
from mixtura.platform.search.trials import TrialResult, best, finished, grouped_reasons, too_many_failed, trial_folders
from mixtura.platform.search.winner import winner_file, write_winner
from mixtura.platform.tracking.records import EventWriter, Note, RunFinished, RunStarted, TrainPoint
from mixtura.platform.workspace import Run, Workspace, workspace

_ROUNDS = 2
"""How often a trial of the comparison that failed is tried."""


def search_recipe(recipe: str, overrides: Sequence[str], config: Config, reporter: Reporter) -> Report | None:
    """Search the mixing proportions of a recipe, from wherever the search stands; one that is done says so.

    Returns the report, or None for a search that was asked to stop and goes on with the same command.
    """
    mixtures = Space.of(config)
    if not evaluated_tasks(config):
        raise ConfigError("no task of this mixture has a metric to compare mixtures by: add a supervised task")
    space = workspace(config.run.root)
    run = space.run(_run_name(recipe, overrides, config))
    with run.held():
        done = finished_report(run, config)
        if done is not None:
            reporter.line(f"search {run.name!r} is done")
            show_report(done, reporter)
            return done
        refuse_bad_request(space, run, config)
        refuse_unusable_store(space, config)
        attempt = run.begin(recipe, config, "search")
        describe(run, recipe, config, attempt, reporter)
        try:
            with disk_full_is_an_answer(run.path, "searching"), executor_for(_one_process(config)) as executor:
                return Search(space, run, recipe, overrides, config, mixtures, executor, reporter, attempt).go()
        except BaseException as error:
            reporter.settle()
            run.set_status("failed" if isinstance(error, Exception) else "resumable")
            raise


def _run_name(recipe: str, overrides: Sequence[str], config: Config) -> str:
    """`run.name` of the command line; otherwise the name of a training run with `-search` behind it."""
    given = override_values(overrides).get("run")
    if isinstance(given, dict) and given.get("name"):
        return str(given["name"])
    return f"{config.run.name or recipe_name(recipe)}-search"


def _one_process(config: Config) -> Config:
    """The cluster as a search needs it: a trial is one process, however many workers the recipe trains with."""
    asked = config.executor
    executor = ExecutorSection(kind=asked.kind, address=asked.address, gpus_per_worker=asked.gpus_per_worker)
    return config.model_copy(update={"executor": executor})


def request_of(config: Config) -> dict[str, Any]:
    """What was asked of a search; a finished one answers this very request only."""
    asked = config.search.model_dump(mode="json", exclude={"concurrent"})
    return {"identity": config.identity(), **asked, **config.evaluation.asked()}


def finished_report(run: Run, config: Config) -> Report | None:
    """The report of a search that is done with this request."""
    path = run.path / "verdict.json"
    if run.facts().get("status") != "done" or not path.is_file():
        return None
    report: Report = json.loads(path.read_text())
    return report if report["request"] == request_of(config) and Path(report["winner"]["recipe"]).is_file() else None


@dataclass
class Search:
    """One attempt of a search."""

    space: Workspace
    run: Run
    recipe: str
    overrides: Sequence[str]
    config: Config
    mixtures: Space
    executor: Executor
    reporter: Reporter
    attempt: int
    failures: dict[str, str] = field(default_factory=dict)
    book: TrialBook = field(init=False)
    trials: Trials = field(init=False)
    watch: SearchWatch = field(init=False)
    events: EventWriter = field(init=False)
    report: Report | None = None
    _left: int = 0
    _timed: bool = False

    def go(self) -> Report | None:
        """Find a mixture, compare it, conclude."""
        self._stop_file.unlink(missing_ok=True)
        prepared = prepare(self.config, self.space, self.executor.map_shards, self.reporter)
        fork = self.config.run.fork
        fork_path = None if fork is None else str(checkpoint_path(self.space, fork))
        self.book = TrialBook(self.run.path / "trials", self.config, self.mixtures, prepared, fork_path)
        self.trials = self._trials()
        with SearchTracking(self.space, self.run, self.config, self.reporter.line), self._told(), self._stoppable():
            with self._watched():
                candidate = self._find()
                compared = candidate is not None and self._compare(candidate)
            if candidate is not None and compared:
                self._conclude(candidate)
        self._say_the_end()
        return self.report

    @property
    def _stop_file(self) -> Path:
        return self.run.path / "stop"

    def _look(self) -> None:
        """Show what the trials wrote until now; the watch begins after the trials were planned."""
        self.watch.look()

    def _trials(self) -> Trials:
        if isinstance(self.executor, InlineExecutor):
            return InlineTrials(self._look)
        return tune_trials(self.config.executor, self.config.search.concurrent, self.run.path / "tune")

    # ---- the two phases ----------------------------------------------------------------------------------------------

    def _find(self) -> Candidate | None:
        """The best mixture that the search algorithm finds; None if asked to stop before."""
        chosen = self.book.chosen()
        if chosen is not None:
            return chosen
        known, trials = self.book.searched(), self.config.search.trials
        tally = Tally(self._stop_file, succeeded=len(known))
        if len(known) < trials:
            left = trials - len(known)
            told = [(result.trial.candidate, result.score) for result in known]
            again = self.book.unfinished()[:left]
            seed, begun = self.config.run.seed, self.book.begun
            algorithm = MixtureSearch(self.mixtures, trials, told, again, self.book.search_job, seed, begun)
            self.trials.run(algorithm, left, tally, f"search-{self.attempt:04d}")
            self.watch.look()
        if self._stop_file.exists():
            return None
        known = self.book.searched()
        if not known or too_many_failed(tally.failed, tally.succeeded):
            raise self._too_few(len(known), "to find a mixture")
        found = best(known)
        self.reporter.line(f"best of {len(known)} mixtures: {found.trial.label}, {found.trial.candidate.describe()}")
        return self.book.choose(found.trial.candidate)

    def _compare(self, candidate: Candidate) -> bool:
        """Run the candidate and the plain mixtures with fresh seeds; False if asked to stop before the end."""
        wanted = self.book.comparison(candidate)
        for number in range(_ROUNDS):
            done = finished(self.book.root)
            left = [trial for trial in wanted if trial.key not in done]
            if not left or self._stop_file.exists():
                break
            tally = Tally(self._stop_file, succeeded=len(wanted) - len(left))
            jobs = GivenTrials([self.book.job(trial) for trial in left])
            self.trials.run(jobs, len(left), tally, f"compare-{self.attempt:04d}-{number}")
            self.watch.look()
            if too_many_failed(tally.failed, tally.succeeded):
                raise self._too_few(tally.succeeded, "to compare mixtures")
        return not self._stop_file.exists()

    def _too_few(self, succeeded: int, doing: str) -> TrainingError:
        reasons = "\n".join(f"  {line}" for line in grouped_reasons(self.failures)) or "  no trial ran"
        return TrainingError(
            f"{len(self.failures)} trials failed and {succeeded} succeeded, too few {doing}:\n{reasons}\n"
            f"More is in error.txt beside each trial in {self.book.root}; the same command tries again"
        )

    def _conclude(self, candidate: Candidate) -> None:
        """Rank, judge, write the winner's recipe and the verdict, in this order: the verdict says that all is done."""
        results = self.book.compared(candidate)
        found = findings(results)
        wanted = len(self.book.comparison(candidate))
        shares = {
            name: task_shares(self.config, self.book.prepared, mixture) for name, mixture in found.mixtures.items()
        }
        path = winner_file(self.run.path, self.recipe)
        said = f"{found.winner.name}: {found.winner.describe()}\nFound by run {self.run.name}. {found.sentence()}"
        write_winner(path, self.recipe, self.overrides, self.config, found.winner, said)
        missing = len(results) < wanted
        facts = {
            "search": self.run.name,
            "recipe": self.recipe,
            "request": request_of(self.config),
            "complete": not missing,
            "failed": grouped_reasons(self.failures),
        }
        self.report = report_of(found, shares, path, facts)
        write_json_atomically(self.run.path / "verdict.json", self.report)
        for row in self.report["ranking"]:
            name = row["mixture"].replace(" = ", "").replace("'", "")
            self.events.write(TrainPoint(self.config.search.steps, {f"average/{name}": row["average"]}))
        self.events.write(Note(found.sentence()))

    # ---- what is said ------------------------------------------------------------------------------------------------

    def _watched(self) -> SearchWatch:
        """Say what the search costs, and follow its trials."""
        search, chosen = self.config.search, self.book.chosen()
        mixtures = 1 + len(self.book.comparison(None)) // search.seeds
        planned = search.trials + mixtures * search.seeds
        found = search.trials if chosen is not None else min(search.trials, len(self.book.searched()))
        done = found + len(self.book.compared(chosen))
        names = ", ".join(dict.fromkeys(trial.candidate.name for trial in self.book.comparison(None)))
        self.reporter.line(self.trials.describe())
        self.reporter.line(f"to find a mixture: {search.trials} trials, each of {search.steps} steps and an evaluation")
        self.reporter.line(f"to compare it with {names}: {mixtures} mixtures with {search.seeds} fresh seeds each")
        self.reporter.line(
            f"cost: {planned} trials, {planned * search.steps} steps; {done} are done"
            + ("" if done == planned else "; how long it takes is said after the first")
        )
        self._left = planned - done
        self.watch = SearchWatch(
            self.run, planned, done, search.steps, self.reporter, self._on_result, self._on_failure
        )
        return self.watch

    def _on_result(self, result: TrialResult) -> None:
        trial = result.trial
        self.failures.pop(trial.label, None)
        if trial.purpose == "search":
            known = self.book.searched()
            top = best(known)
            self.events.write(TrainPoint(len(known), {"search/average": result.score, "search/best": top.score}))
            mark = ", the best so far" if result == top else ""
            text = f"{trial.label}: average {result.score:.2f}{mark}; {trial.candidate.describe()}"
        else:
            text = f"{trial.label}: average {result.score:.2f}"
        self.reporter.line(f"{text}; {result.seconds:.0f} s")
        self._left -= 1
        if not self._timed and self._left > 0:
            self._timed = True
            at_once = min(self.trials.concurrent, self._left)
            minutes = result.seconds * math.ceil(self._left / at_once) / 60
            self.reporter.line(f"about {minutes:.0f} min for the {self._left} trials left, {at_once} at a time")

    def _on_failure(self, label: str, reason: str) -> None:
        self.failures[label] = reason
        self.reporter.line(f"{label} failed: {reason}")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The search's own record that an attempt began, and how it ended."""
        with EventWriter(self.run.events / f"driver-{self.attempt:04d}-{time.time_ns()}.jsonl") as self.events:
            self.events.write(RunStarted(self.attempt))
            try:
                yield
            except Exception as error:
                self.events.write(RunFinished("failed", str(error)))
                raise
            except BaseException:
                self.events.write(RunFinished("resumable"))
                raise
            said = self.report["verdict"]["text"] if self.report else ""
            self.events.write(RunFinished("done" if self._complete else "resumable", said))

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Signals and `run.stop_after` ask the search to end; the trials that run are saved and go on next time."""
        after = self.config.run.stop_after
        timer = None if after is None else threading.Timer(parse_duration_s(after), self._stop_file.touch)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            with stop_on_signals(self.run, self.reporter):
                yield
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def _complete(self) -> bool:
        return self.report is not None and bool(self.report["complete"])

    def _say_the_end(self) -> None:
        self.run.set_status("done" if self._complete else "resumable")
        if self.report is None:
            self.reporter.line(f"search {self.run.name!r} was stopped and is resumable; the same command goes on")
            return
        show_report(self.report, self.reporter)
        if self._complete:
            self._tidy()
        else:
            self.reporter.line("some trials of the comparison failed twice; the same command tries them again")

    def _tidy(self) -> None:
        """Delete what trials that failed had saved, and Tune's own files: nobody goes on from them."""
        for folder in trial_folders(self.book.root):
            delete_checkpoints(folder.path)
        shutil.rmtree(self.run.path / "tune", ignore_errors=True)
