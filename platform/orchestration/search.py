"""Which mixture is tried next, and trials side by side: Optuna's sampler under Ray Tune, or one after the other inline.

A trial is a plain function in one process (`run_trial`). Both phases of a search, finding a mixture and comparing it
with the plain ones, are a `Searcher` that hands out jobs; what a trial reached is read from its folder, so that
nothing of Tune's own state is ever needed again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
import ray
import ray.tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.callback import Callback
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.stopper import Stopper

from mixtura.platform.config import ExecutorSection
from mixtura.platform.errors import ResourceError
from mixtura.platform.orchestration.trial import TrialStoppedError, run_trial
from mixtura.platform.random_bits import key
from mixtura.platform.search.space import Candidate, Space
from mixtura.platform.search.trials import Trial, TrialFolder, too_many_failed

SCORE = "score"
_SMALLEST_SHARE = 0.05
_MOST_RANDOM = 10

Job = dict[str, Any]
"""A `TrialJob` as plain values."""


@dataclass
class Tally:
    """How the trials of a phase went so far, and whether to go on."""

    stop_file: Path
    succeeded: int = 0
    failed: int = 0

    def over(self) -> bool:
        """Whether no further trial should start: asked to stop, or too many failed."""
        return self.stop_file.exists() or too_many_failed(self.failed, self.succeeded)


class MixtureSearch(OptunaSearch):  # type: ignore[misc]
    """Suggests mixtures: half of the trials (at most 10) at random, then where a tree-structured Parzen estimator,
    fitted to all coordinates together, expects the most (Bergstra et al. 2011).

    Optuna's own 10 random trials would leave nothing for the estimator in a search of 8. What earlier attempts found
    is told to it, and what they cut short is tried again first. How many trials they began makes another seed, so that
    a search that goes on draws no point twice.
    """

    def __init__(
        self,
        space: Space,
        trials: int,
        known: Sequence[tuple[Candidate, float]],
        again: Sequence[Candidate],
        job_of: Callable[[Candidate], Job],
        seed: int,
        begun: int = 0,
    ) -> None:
        self.space, self._job_of = space, job_of
        told = [(point, value) for candidate, value in known if (point := space.point(candidate)) is not None]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            seed=key("search", seed, begun) % 2**32,
            multivariate=True,
            n_startup_trials=min(_MOST_RANDOM, max(2, trials // 2)),
        )
        distributions = {
            name: optuna.distributions.FloatDistribution(low, high, log=True)
            for name, (low, high) in space.parameters().items()
        }
        unfinished = [point for candidate in again if (point := space.point(candidate)) is not None]
        super().__init__(distributions, metric=SCORE, mode="max", points_to_evaluate=unfinished, sampler=sampler)
        for point, value in told:
            self.add_evaluated_point(point, value)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next trial."""
        return {"job": self._job_of(self.space.candidate(super().suggest(trial_id), ""))}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, for what Tune stores of itself and we never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from the results of its trials."""


class GivenTrials(Searcher):  # type: ignore[misc]
    """Hands out trials that are known beforehand, in their order."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._left = list(jobs)

    def suggest(self, *_: str) -> Any:
        """The next trial."""
        return {"job": self._left.pop(0)} if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing depends on it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from the results of its trials."""


class Trials(Protocol):
    """Runs the trials that a searcher hands out."""

    concurrent: int

    def describe(self) -> str:
        """How they run, in one line."""

    def run(self, searcher: Searcher, count: int, tally: Tally, name: str) -> None:
        """Run at most `count` trials; what they reached is in their folders."""


class InlineTrials:
    """One trial after the other in this process, without a cluster."""

    concurrent = 1

    def __init__(self, after_each: Callable[[], None]) -> None:
        self._after_each = after_each

    def describe(self) -> str:
        """How they run."""
        return "one trial after the other in this process"

    def run(self, searcher: Searcher, count: int, tally: Tally, name: str) -> None:
        """Run trials until there are enough, or there is a reason to end."""
        for number in range(count):
            if tally.over():
                return
            trial_id = f"{name}-{number}"
            job = searcher.suggest(trial_id)["job"]
            try:
                result = run_trial(job)
            except TrialStoppedError:
                return
            except Exception:  # noqa: BLE001  the reason is in the trial's folder; one trial does not end the search
                tally.failed += 1
                searcher.on_trial_complete(trial_id, error=True)
            else:
                tally.succeeded += 1
                searcher.on_trial_complete(trial_id, result={SCORE: result.score})
            # Before the next one starts: DeepSpeed's start turns this process's output to a log for a moment.
            self._after_each()


@dataclass
class TuneTrials:
    """Trials side by side on the Ray cluster that this process is connected to."""

    concurrent: int
    cpus: float
    """Share of each trial."""
    gpus: float
    folder: Path
    """Tune's own files."""

    def describe(self) -> str:
        """How they run."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"Ray Tune: {self.concurrent} trials side by side, each one process with {self.cpus:g} CPU{gpus}"

    def run(self, searcher: Searcher, count: int, tally: Tally, name: str) -> None:
        """Run trials until there are enough, or there is a reason to end."""
        _quiet_tune()
        resources = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        Tuner(
            ray.tune.with_resources(_trainable, resources),
            tune_config=TuneConfig(
                search_alg=searcher,
                num_samples=count,
                max_concurrent_trials=self.concurrent,
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(self.folder),
                verbose=0,
                failure_config=FailureConfig(max_failures=0),
                callbacks=[_Told(tally)],
                stop=_Over(tally),
            ),
        ).fit()


def tune_trials(settings: ExecutorSection, concurrent: int, folder: Path) -> TuneTrials:
    """The cluster that this process is connected to, divided among trials side by side."""
    found = ray.cluster_resources()
    cpus, gpus = found.get("CPU", 0), found.get("GPU", 0)
    share = trial_share(cpus, gpus, concurrent, settings.gpus_per_worker)
    return TuneTrials(concurrent, share, settings.gpus_per_worker, folder)


def trial_share(cpus: float, gpus: float, concurrent: int, gpus_each: float) -> float:
    """CPUs of each of so many trials side by side; a trial is one thread, so never more than one.

    >>> trial_share(2, 0, concurrent=2, gpus_each=0), trial_share(2, 0, concurrent=3, gpus_each=0)
    (1.0, 0.666)
    """
    if gpus_each * concurrent > gpus:
        raise ResourceError(
            f"{concurrent} trials side by side with {gpus_each:g} GPUs each need {gpus_each * concurrent:g} GPUs; "
            f"the cluster has {gpus:g}: lower search.concurrent or executor.gpus_per_worker"
        )
    share = int(min(1.0, cpus / concurrent) * 1000) / 1000
    if share < _SMALLEST_SHARE:
        raise ResourceError(
            f"{concurrent} trials side by side leave {share:g} of {cpus:g} CPUs for each, too little to run on: "
            f"lower search.concurrent, for example to {max(1, int(cpus))}"
        )
    return share


def _trainable(config: dict[str, Any]) -> None:
    """What Tune runs in a process of its own."""
    try:
        result = run_trial(config["job"])
    except TrialStoppedError:
        return  # Tune was told to stop before the trial was
    ray.tune.report({SCORE: result.score})


def _folder_name(trial: Any) -> str:
    return Path(trial.config["job"]["folder"]).name


class _Over(Stopper):  # type: ignore[misc]
    """Ends an experiment."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __call__(self, *_: Any) -> bool:
        return False

    def stop_all(self) -> bool:
        """Asked between any two events."""
        return self._tally.over()


class _Told(Callback):  # type: ignore[misc]
    """Counts trials, and writes down the end of those whose process died before it could."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """A trial ended without an error: with its score, or because the experiment ends."""
        self._tally.succeeded += TrialFolder(Path(trial.config["job"]["folder"])).result() is not None

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """A trial raised an error, or its process died."""
        job = trial.config["job"]
        folder = TrialFolder(Path(job["folder"]))
        if self._tally.stop_file.exists() or folder.result() is not None:
            return
        self._tally.failed += 1
        if folder.trial() is None:
            folder.begin(Trial.from_dict(job["trial"]))
        if folder.failure() is None:
            folder.fail("its process died: it was killed, or the machine ran out of memory")


def _quiet_tune() -> None:
    """Keep Tune's own lines and tables off the terminal, and this process's folder and signals as they are."""
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_FORCE_TRIAL_CLEANUP_S": "30",
    }.items():
        os.environ[name] = value
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
