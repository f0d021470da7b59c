"""A trial's bookkeeping: what it is, the folder that holds it, and the files that say how it stands.

    runs/NAME/trials/search-003-seed-0-5f2a9c01/
      trial.json      what is tried; written when it starts
      events/*.jsonl  what it reports while it runs
      result.json     what it reached; written last, in one piece
      failure.json    why it ended without a result; gone when it is tried again

A result is found by its key, a hash of everything that it depends on: so it is taken over by the same command and by a
larger search, and never by one that would have measured something else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from mixtura.platform.errors import DataError
from mixtura.platform.files import write_json_atomically
from mixtura.platform.search.space import Candidate

Purpose = Literal["search", "compare"]

_FEW = 3


@dataclass(frozen=True)
class Trial:
    """One short training run: to find a good mixture, or to compare the best one found with the plain ones."""

    purpose: Purpose
    candidate: Candidate
    seed: int
    steps: int
    key: str

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.candidate.name if self.purpose == "search" else f"{self.candidate.name}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its folder's name."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.candidate.name.replace("'", "")).strip("-")
        return f"{name}-seed-{self.seed}-{self.key[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Trial:
        """The inverse of `to_dict`."""
        return Trial(**{**values, "candidate": Candidate.from_dict(values["candidate"])})


def make_trial(purpose: Purpose, candidate: Candidate, seed: int, steps: int, basis: Mapping[str, Any]) -> Trial:
    """A trial with its key. `basis` is what all trials of the search share: settings, data, what is measured."""
    mixture = candidate.mixture()
    parts = {"purpose": purpose, "mixture": mixture, "seed": seed, "steps": steps, "basis": dict(basis)}
    return Trial(purpose, candidate, seed, steps, xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode()))


@dataclass(frozen=True)
class TrialResult:
    """What a trial reached on the validation split."""

    trial: Trial
    score: float
    """Average of the tasks' headline metrics, by which checkpoints are chosen too."""
    by_task: dict[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrialResult:
        """The inverse of `to_dict`."""
        return TrialResult(**{**values, "trial": Trial.from_dict(values["trial"])})


@dataclass(frozen=True)
class TrialFolder:
    """A trial on disk."""

    path: Path

    def trial(self) -> Trial | None:
        """What is tried here; None in a folder that nobody began."""
        values = self._read("trial.json")
        return None if values is None else Trial.from_dict(values)

    def begin(self, trial: Trial) -> None:
        """Write down what is tried, and forget why it failed before."""
        write_json_atomically(self.path / "trial.json", trial.to_dict())
        (self.path / "failure.json").unlink(missing_ok=True)

    def result(self) -> TrialResult | None:
        """What it reached; None where it is not done."""
        values = self._read("result.json")
        return None if values is None else TrialResult.from_dict(values)

    def commit(self, result: TrialResult) -> None:
        """Write the result: from now on the trial is done."""
        write_json_atomically(self.path / "result.json", result.to_dict())
        (self.path / "failure.json").unlink(missing_ok=True)

    def failure(self) -> str | None:
        """Why it failed; None where it did not."""
        values = self._read("failure.json")
        return None if values is None else str(values["reason"])

    def fail(self, reason: str) -> None:
        """Write down why it failed."""
        write_json_atomically(self.path / "failure.json", {"reason": reason})

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            values = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"{self.path / name} is not what a trial wrote ({error}): delete {self.path}") from None
        return dict(values)


def trial_folders(root: Path) -> Iterator[TrialFolder]:
    """All trials that were ever begun below a folder, by name."""
    for path in sorted(root.glob("*/trial.json")):
        yield TrialFolder(path.parent)


def finished(root: Path) -> dict[str, TrialResult]:
    """The results of all trials that are done, by key."""
    found = (folder.result() for folder in trial_folders(root))
    return {result.trial.key: result for result in found if result is not None}


def best(results: Sequence[TrialResult]) -> TrialResult:
    """The result with the highest score; of equals the one whose trial has the first name."""
    return min(results, key=lambda result: (-result.score, result.trial.candidate.name))


def too_many_failed(failed: int, succeeded: int) -> bool:
    """Whether to give up: several trials failed, and more than succeeded.

    >>> too_many_failed(2, 0), too_many_failed(3, 1), too_many_failed(3, 3)
    (False, True, False)
    """
    return failed >= _FEW and failed > succeeded


def usable(score: float | None) -> bool:
    """Whether an average is a number that can be compared."""
    return score is not None and math.isfinite(score)


def grouped_reasons(failures: Mapping[str, str]) -> list[str]:
    """One line for each reason, with the trials that it ended.

    >>> grouped_reasons({"search 1": "disk full", "search 2": "disk full", "T = 1, seed 1": "killed"})
    ['search 1, search 2: disk full', 'T = 1, seed 1: killed']
    """
    by_reason: dict[str, list[str]] = {}
    for label, reason in failures.items():
        by_reason.setdefault(reason, []).append(label)
    return [f"{', '.join(labels)}: {reason}" for reason, labels in by_reason.items()]
