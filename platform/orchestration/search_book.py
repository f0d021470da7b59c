"""What a search has tried and what it has yet to try: its trials on disk, looked up by what they depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config, Effect, leaves
from mixtura.platform.files import write_json_atomically
from mixtura.platform.filesystems import last_name
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.orchestration.trial import TrialJob
from mixtura.platform.search.space import SEARCHED, Candidate, Space, plain_baselines
from mixtura.platform.search.trials import (
    Purpose,
    Trial,
    TrialFolder,
    TrialResult,
    finished,
    make_trial,
    trial_folders,
)


def basis_of(config: Config, prepared: Prepared, fork: str | None) -> dict[str, Any]:
    """What all trials of a search share and their results depend on, beside mixture, seed and steps."""
    own = {"mixture.rates", "mixture.temperature", "run.seed"}
    own |= {f"mixture.tasks.{name}.weight" for name in config.mixture.tasks}
    settings = {path: value for path, effect, value in leaves(config) if effect is not Effect.FREE and path not in own}
    measured = config.evaluation.asked()
    caches = {name: last_name(place) for name, place in prepared.caches.items()}
    vocabulary = str(Path(*prepared.vocabulary.parts[-2:]))
    return {"settings": settings, "measured": measured, "caches": caches, "vocabulary": vocabulary, "fork": fork}


@dataclass
class TrialBook:
    """The trials of a search below one folder.

    The search itself runs every mixture with the run's own seed, so that candidates differ in nothing else; the
    comparison uses the seeds after it, which the search never saw.
    """

    root: Path
    config: Config
    space: Space
    prepared: Prepared
    fork: str | None
    basis: dict[str, Any] = field(init=False)
    begun: int = field(init=False)
    """Trials of the search that were handed out, in all attempts."""

    def __post_init__(self) -> None:
        self.basis = basis_of(self.config, self.prepared, self.fork)
        self.begun = len(list(self._begun()))

    def job(self, trial: Trial) -> dict[str, Any]:
        """All that a process needs to run a trial."""
        return TrialJob(
            trial=trial.to_dict(),
            config=self.config.to_dict(),
            folder=str(self.root / trial.folder),
            vocabulary=str(self.prepared.vocabulary),
            caches=self.prepared.caches,
            overlap=dict(self.prepared.overlap),
            fork=self.fork,
        ).__dict__

    def search_job(self, candidate: Candidate) -> dict[str, Any]:
        """A trial of the search; one that was begun before keeps its name and folder."""
        trial = self._trial("search", candidate, self.config.run.seed)
        begun = {known.key: known for known, _ in self._begun()}
        if trial.key in begun:
            return self.job(begun[trial.key])
        self.begun += 1
        return self.job(replace(trial, candidate=replace(candidate, name=f"search {self.begun:03d}")))

    def searched(self) -> list[TrialResult]:
        """What the search found so far."""
        return [result for _, folder in self._begun() if (result := folder.result()) is not None]

    def unfinished(self) -> list[Candidate]:
        """Mixtures whose trial was cut short, and did not fail."""
        return [
            trial.candidate for trial, folder in self._begun() if folder.result() is None and folder.failure() is None
        ]

    def comparison(self, candidate: Candidate | None) -> list[Trial]:
        """The candidate, where there is one, and the plain mixtures, each with every seed, a seed after the other."""
        first = self.config.run.seed + 1
        mixtures = [*([] if candidate is None else [candidate]), *plain_baselines(self.config)]
        return [
            self._trial("compare", mixture, seed)
            for seed in range(first, first + self.config.search.seeds)
            for mixture in mixtures
        ]

    def compared(self, candidate: Candidate | None) -> list[TrialResult]:
        """What the comparison reached so far."""
        done = finished(self.root)
        return [done[trial.key] for trial in self.comparison(candidate) if trial.key in done]

    def choose(self, candidate: Candidate) -> Candidate:
        """Write down which mixture the search ends with; returns it under its new name."""
        write_json_atomically(self._choice, {"request": self._choosing(), "candidate": candidate.to_dict()})
        return replace(candidate, name=SEARCHED)

    def chosen(self) -> Candidate | None:
        """The mixture that a search with these very settings ended with; more seeds alone do not choose again."""
        if not self._choice.is_file():
            return None
        values = json.loads(self._choice.read_text())
        if values["request"] != self._choosing():
            return None
        return replace(Candidate.from_dict(values["candidate"]), name=SEARCHED)

    @property
    def _choice(self) -> Path:
        return self.root.parent / "chosen.json"

    def _choosing(self) -> dict[str, Any]:
        asked = self.config.search.model_dump(mode="json", include={"trials", "steps", "temperature", "weight"})
        return {"basis": self.basis, "seed": self.config.run.seed, **asked}

    def _trial(self, purpose: Purpose, candidate: Candidate, seed: int) -> Trial:
        return make_trial(purpose, candidate, seed, self.config.search.steps, self.basis)

    def _begun(self) -> Iterator[tuple[Trial, TrialFolder]]:
        """Trials of this search within its space, finished or not."""
        for folder in trial_folders(self.root):
            trial = folder.trial()
            if trial is None or trial.purpose != "search" or self.space.point(trial.candidate) is None:
                continue
            if trial.key == self._trial("search", trial.candidate, self.config.run.seed).key:
                yield trial, folder
