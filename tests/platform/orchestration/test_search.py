"""A search from end to end: it goes on where it was killed, compares fairly, and leaves nothing behind."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mixtura.platform import recipe_files
from mixtura.platform.config import Config
from mixtura.platform.errors import ConfigError, ResourceError, RunError, TrainingError
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.search import GivenTrials, MixtureSearch, Tally, trial_share, tune_trials
from mixtura.platform.orchestration.search_book import TrialBook
from mixtura.platform.orchestration.search_run import search_recipe
from mixtura.platform.orchestration.trial import TrialJob, TrialStoppedError, run_trial, trial_config
from mixtura.platform.search.space import Candidate, Space, own_mixture, plain_baselines
from mixtura.platform.search.trials import TrialFolder, TrialResult, finished, make_trial
from mixtura.platform.tracking.records import TrainPoint, read_events
from mixtura.platform.workspace import Run, Workspace

TASKS = ("python_docs_span_corruption", "python_docs_module", "python_docs_returns", "python_docs_arguments")
# The recipe's own mixture is made a plain one, so that there are four mixtures to compare and not five.
SMALL = [
    *(f"mixture.tasks.{task}.weight=1" for task in TASKS),
    "mixture.temperature=2",
    "search.trials=2",
    "search.steps=2",
    "search.seeds=2",
]


class CollectingReporter(SilentReporter):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str = "") -> None:
        self.lines.append(text)


@pytest.fixture
def overrides(tiny: list[str], new_workspace: Path) -> list[str]:
    return [*tiny, *SMALL, f"run.root={new_workspace}"]


def results_of(folder: Path) -> dict[str, tuple[int, float]]:
    """When each trial was done, and its score."""
    return {
        key: ((folder / "trials" / result.trial.folder / "result.json").stat().st_mtime_ns, result.score)
        for key, result in finished(folder / "trials").items()
    }


def search_inline(given: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    reporter = CollectingReporter()
    given = [*given, "executor.kind=inline"]
    return search_recipe("quickstart", given, recipe_files.load("quickstart", given), reporter), reporter.lines


# ---- the algorithm ---------------------------------------------------------------------------------------------------


def quickstart() -> tuple[Config, Space]:
    tree = recipe_files.load("quickstart", SMALL)
    return tree, Space.of(tree)


def suggested(
    known: list[tuple[Candidate, float]], again: list[Candidate], count: int, seed: int = 0, begun: int = 0
) -> list[Candidate]:
    _, space = quickstart()
    algorithm = MixtureSearch(space, 8, known, again, lambda candidate: candidate.to_dict(), seed, begun)
    found = []
    for number in range(count):
        mixture = algorithm.suggest(str(number))["job"]
        algorithm.on_trial_complete(str(number), result={"score": mixture["temperature"], "training_iteration": 1})
        found.append(Candidate.from_dict(mixture))
    return found


def test_suggestions_are_decided_by_the_seed() -> None:
    assert suggested([], [], 6) == suggested([], [], 6)
    assert suggested([], [], 1) != suggested([], [], 1, seed=1)


def test_suggestions_lie_in_the_space_and_differ() -> None:
    _, space = quickstart()
    found = suggested([], [], 8)
    assert all(space.point(one) is not None for one in found)
    assert len({tuple(one.weights.values()) for one in found}) == len(found)


def test_a_search_that_goes_on_tries_what_was_cut_short_and_nothing_twice() -> None:
    first = suggested([], [], 3)
    for done in range(3):
        known, again = [(one, one.temperature) for one in first[:done]], first[done:]
        after = suggested(known, again, 5, begun=len(first))
        assert after[: len(again)] == again
        assert not any(one.same_mixture(other) for one in after[len(again) :] for other in first)


def test_the_algorithm_moves_towards_what_is_better() -> None:
    found = suggested([], [], 30)
    early = sum(one.temperature for one in found[:4]) / 4
    late = sum(one.temperature for one in found[-10:]) / 10
    assert late > early
    assert late > 4


# ---- plans -----------------------------------------------------------------------------------------------------------


def test_a_trial_is_one_short_inline_process_with_its_own_mixture_and_seed() -> None:
    tree, space = quickstart()
    mixture = space.candidate({name: low for name, (low, _) in space.parameters().items()}, "x")
    trial = trial_config(tree, make_trial("compare", mixture, 5, 7, {}))
    assert own_mixture(trial).same_mixture(mixture)
    assert (trial.run.seed, trial.training.steps, trial.checkpoints.every) == (5, 7, 7)
    assert (trial.executor.kind, trial.executor.workers) == ("inline", 1)
    assert trial.model == tree.model


@pytest.mark.parametrize(
    ("cpus", "gpus", "concurrent", "gpus_each", "said"),
    [
        (2, 0, 100, 0, "100 trials side by side leave 0.02 of 2 CPUs for each"),
        (8, 1, 2, 1, "2 trials side by side with 1 GPUs each need 2 GPUs; the cluster has 1"),
    ],
)
def test_plans_that_cannot_run_are_refused_with_their_numbers(
    cpus: float, gpus: float, concurrent: int, gpus_each: float, said: str
) -> None:
    with pytest.raises(ResourceError, match=said):
        trial_share(cpus, gpus, concurrent, gpus_each)


@pytest.mark.parametrize("cpus", [1, 2, 4, 96])
@pytest.mark.parametrize("concurrent", [1, 2, 3, 7])
def test_trials_side_by_side_fit_on_the_cluster(cpus: int, concurrent: int) -> None:
    assert trial_share(cpus, 0, concurrent, 0) * concurrent <= cpus


def test_a_search_without_anything_to_search_is_refused_before_work(tmp_path: Path) -> None:
    undrawn = [f"mixture.tasks.{task}.weight=0" for task in TASKS[1:]]
    with pytest.raises(ConfigError, match="a mixture of 1 task has no proportions to search"):
        search_inline([*undrawn, f"run.root={tmp_path}"])
    assert not list(tmp_path.iterdir())


# ---- one trial -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_that_was_stopped_goes_on_as_if_it_had_not_been(
    overrides: list[str], new_workspace: Path, wait_for: Callable[..., None]
) -> None:
    tree = recipe_files.load("quickstart", overrides)
    prepared = prepare(tree, Workspace(new_workspace), map_inline, SilentReporter())
    mixture = plain_baselines(tree)[0]

    def run_in(name: str, stop: bool) -> TrialResult:
        book = TrialBook(new_workspace / name, tree, Space.of(tree), prepared, None)
        trial = make_trial("compare", mixture, 1, 40, book.basis)
        job = book.job(trial)
        if stop:
            folder = Path(job["folder"])

            def stop_after_a_step() -> None:
                wait_for(lambda: steps_in(folder), "a step was done")
                (folder / "stop").touch()

            told = Thread(target=stop_after_a_step)
            told.start()
            with pytest.raises(TrialStoppedError):
                run_trial(job)
            told.join()
            assert list(folder.glob("checkpoints/step-*"))
            assert 0 < max(steps_in(folder)) < 40
        result = run_trial(job)
        assert run_trial(job) == result
        assert not list(Path(job["folder"]).glob("checkpoints*"))
        return result

    undisturbed, stopped = run_in("undisturbed", False), run_in("stopped", True)
    assert (stopped.score, stopped.by_task) == (undisturbed.score, undisturbed.by_task)
    folders = [next((new_workspace / name).iterdir()) for name in ("undisturbed", "stopped")]
    assert steps_in(folders[0]) == steps_in(folders[1])


def steps_in(folder: Path) -> dict[int, float]:
    """The loss of each step."""
    points = [record for record in read_events(folder / "events") if isinstance(record, TrainPoint)]
    return {point.step: point.metrics["loss"] for point in points if "loss" in point.metrics}


# ---- trials under Ray Tune -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
def test_tune_counts_trials_names_failures_and_leaves_nothing_on_the_cluster(
    ray_cluster: None, tmp_path: Path, wait_for: Callable[..., None]
) -> None:
    import ray
    from ray.util import placement_group_table

    tree, space = quickstart()
    jobs = []
    for number in range(4):
        mixture = space.candidate({name: low * (1 + number / 9) for name, (low, _) in space.parameters().items()}, "x")
        trial = make_trial("compare", mixture, number, 2, {})
        folder = TrialFolder(tmp_path / "trials" / trial.folder)
        if number:  # done already, so that nothing is trained here; the others have no caches and fail
            folder.begin(trial)
            folder.commit(TrialResult(trial, 1.0, {}, 0.0))
        jobs.append(TrialJob(trial.to_dict(), tree.to_dict(), str(folder.path), str(tmp_path / "no"), {}).__dict__)

    tally = Tally(tmp_path / "stop")
    trials = tune_trials(tree.executor, 2, tmp_path / "tune")
    assert (trials.cpus, trials.gpus) == (1.0, 0)
    trials.run(GivenTrials(jobs), len(jobs), tally, "compare")
    assert (tally.succeeded, tally.failed) == (3, 1)
    reason = TrialFolder(Path(jobs[0]["folder"])).failure()
    assert reason is not None
    assert str(tmp_path / "no") in reason
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    wait_for(lambda: ray.available_resources().get("CPU") == 2, "all CPUs are free again")


# ---- whole searches --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_inline_says_what_it_costs_and_concludes(overrides: list[str], new_workspace: Path) -> None:
    report, lines = search_inline(overrides)
    folder = new_workspace / "quickstart-search"
    assert report is not None
    assert report == json.loads((folder / "verdict.json").read_text())
    assert "cost: 10 trials, 20 steps; 0 are done; how long it takes is said after the first" in lines
    assert any(line.startswith("about ") and "trials left" in line for line in lines)
    assert {row["mixture"] for row in report["ranking"]} == {"searched", "T = 1", "T = 2", "equal"}
    assert all(set(row["by seed"]) == {"1", "2"} for row in report["ranking"])
    assert any("the searched mixture: " in line for line in lines)

    done = finished(folder / "trials").values()
    searched = [result for result in done if result.trial.purpose == "search"]
    assert {result.trial.seed for result in searched} == {0}
    chosen = next(row for row in report["ranking"] if row["mixture"] == "searched")
    top = max(searched, key=lambda result: result.score).trial.candidate
    assert any(
        row.trial.candidate.same_mixture(top) and row.score == max(r.score for r in searched) for row in searched
    )
    assert chosen["weights"] in [result.trial.candidate.weights for result in searched]

    left = {path.name for path in (folder / "trials").glob("*/*")}
    assert left <= {"trial.json", "result.json", "events", "mlflow.json", ".lock", ".writer.lock"}
    assert not list(folder.rglob("*.safetensors"))

    winner = lines[-1].removeprefix("  mixtura train ")
    assert winner == report["winner"]["recipe"]
    tree = recipe_files.load(winner)
    assert own_mixture(tree).mixture() == report["winner"]["mixture"]

    before = results_of(folder)
    again, lines = search_inline(overrides)
    assert again == report
    assert lines[0] == "search 'quickstart-search' is done"
    more, _ = search_inline([*overrides, "search.seeds=3"])
    assert more is not None
    assert all(row["runs"] == 3 for row in more["ranking"])
    after = results_of(folder)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 4

    with pytest.raises(RunError, match="was begun by `mixtura search`"):
        Run(folder).begin("quickstart", recipe_files.load("quickstart", overrides))


@pytest.mark.slow
def test_trials_that_fail_are_named_and_end_the_search_when_there_are_too_many(
    overrides: list[str], new_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixtura.platform.orchestration import trial

    real, failing = trial.evaluation_events, {"search 001"}

    def broken(run: Path, *rest: Any) -> Any:
        begun = TrialFolder(run).trial()
        if begun is not None and (begun.label in failing or "all" in failing):
            raise OSError("no answer")
        return real(run, *rest)

    monkeypatch.setattr(trial, "evaluation_events", broken)
    failing |= {"T = 1, seed 2"}
    report, lines = search_inline(overrides)
    assert report is not None
    assert "search 001 failed: OSError: no answer" in lines
    assert report["failed"] == ["search 001, T = 1, seed 2: OSError: no answer"]
    assert {row["mixture"]: row["runs"] for row in report["ranking"]}["T = 1"] == 1
    assert not report["complete"]
    assert Run(new_workspace / "quickstart-search").facts()["status"] == "resumable"

    failing.clear()
    report, _ = search_inline(overrides)
    assert report is not None
    assert report["complete"]

    failing.add("all")
    with pytest.raises(TrainingError, match=r"2 trials failed and 0 succeeded(.|\n)*search 001, search 002: OSError"):
        search_inline([*overrides, "run.name=failing"])


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_search_goes_on_and_a_finished_one_says_so(
    overrides: list[str],
    new_workspace: Path,
    mixtura: Callable[..., Any],
    wait_for: Callable[..., None],
    kill_with_children: Callable[[int], None],
) -> None:
    folder = new_workspace / "quickstart-search"
    command = mixtura("search", "quickstart", *overrides)
    wait_for(lambda: finished(folder / "trials"), "a trial was done", command)
    kill_with_children(command.pid)
    command.process.wait()
    before = results_of(folder)

    command = mixtura("search", "quickstart", *overrides)
    assert command.process.wait() == 0, command.said
    assert "the searched mixture: " in command.said
    assert "Traceback" not in command.said
    after = results_of(folder)
    assert before.items() <= after.items()
    assert len(after) == 10

    again = mixtura("search", "quickstart", *overrides)
    assert again.process.wait() == 0, again.said
    assert "is done" in again.said
    assert results_of(folder) == after

    nested = rows_of(new_workspace, "select value, count(*) from tags where key = 'mlflow.parentRunId' group by value")
    assert [count for _, count in nested] == [10]
    assert rows_of(new_workspace, "select count(*) from runs where status != 'FINISHED'") == [(0,)]
    for path in (folder / "trials").iterdir():
        steps = [record.step for record in read_events(path / "events") if isinstance(record, TrainPoint)]
        assert steps[-1] == 2


def rows_of(root: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(root / "mlflow.db") as store:
        return store.execute(query).fetchall()
