"""A trial's folder: done, failed or neither, and found by what its result depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.errors import DataError
from mixtura.platform.search.space import Candidate
from mixtura.platform.search.trials import Trial, TrialFolder, TrialResult, best, finished, make_trial, trial_folders

MIXTURE = Candidate("search 001", "proportional", 1.5, {"a": 1.0, "b/c": 2.0})
BASIS = {"settings": {"run.seed": 0}, "caches": {"a": "a-1"}}


def trial(**changed: object) -> Trial:
    given = {"purpose": "search", "candidate": MIXTURE, "seed": 0, "steps": 10, "basis": BASIS, **changed}
    return make_trial(**given)  # type: ignore[arg-type]


def result(of: Trial, score: float = 12.5) -> TrialResult:
    return TrialResult(of, score, {"a": 10.0, "b/c": 15.0}, 3.0)


def test_a_result_is_found_by_what_it_depends_on_and_not_by_its_name() -> None:
    renamed = Candidate("other", MIXTURE.rates, MIXTURE.temperature, MIXTURE.weights)
    assert trial(candidate=renamed).key == trial().key
    warmer = Candidate(MIXTURE.name, MIXTURE.rates, 1.6, MIXTURE.weights)
    changes = [
        {"candidate": warmer},
        {"seed": 1},
        {"steps": 11},
        {"purpose": "compare"},
        {"basis": {**BASIS, "caches": {"a": "a-2"}}},
    ]
    keys = [trial(**change).key for change in changes]
    assert len({trial().key, *keys}) == len(changes) + 1


def test_a_key_is_the_same_in_every_process() -> None:
    assert trial().key == "acc8eb84902f8d47"


def test_a_trial_is_done_once_its_result_is_there(tmp_path: Path) -> None:
    this = trial()
    folder = TrialFolder(tmp_path / this.folder)
    assert folder.trial() is None
    folder.begin(this)
    assert (folder.trial(), folder.result(), folder.failure()) == (this, None, None)
    assert finished(tmp_path) == {}
    folder.commit(result(this))
    assert finished(tmp_path) == {this.key: result(this)}
    assert [found.path for found in trial_folders(tmp_path)] == [folder.path]


def test_a_failure_is_forgotten_when_the_trial_is_tried_again(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "one")
    folder.begin(trial())
    folder.fail("out of memory")
    assert folder.failure() == "out of memory"
    folder.begin(trial())
    assert folder.failure() is None


def test_a_file_that_no_trial_wrote_is_named(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "one")
    folder.begin(trial())
    (folder.path / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json is not what a trial wrote.*delete"):
        finished(tmp_path)


def test_folders_can_be_read_by_people() -> None:
    compared = Candidate("T = 2", "proportional", 2.0, MIXTURE.weights)
    assert trial().folder == f"search-001-seed-0-{trial().key[:8]}"
    this = trial(purpose="compare", candidate=compared, seed=3)
    assert (this.folder, this.label) == (f"T-2-seed-3-{this.key[:8]}", "T = 2, seed 3")


def test_the_best_of_equals_does_not_depend_on_the_order() -> None:
    named = [trial(candidate=Candidate(name, "equal", 1.0, {"a": 1.0})) for name in ("b", "a", "c")]
    results = [result(named[0], 2.0), result(named[1], 2.0), result(named[2], 1.0)]
    assert best(results).trial.candidate.name == best(results[::-1]).trial.candidate.name == "a"
