"""What a search came to: the ranking, the verdict, the winner as a recipe, and how all of it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.data.mixture import ONE
from mixtura.platform.errors import TrainingError
from mixtura.platform.orchestration.mixture import stream_spec
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.trial import SPLIT
from mixtura.platform.search.space import SEARCHED, Candidate
from mixtura.platform.search.trials import TrialResult
from mixtura.platform.search.verdict import Estimate, Ranked, Verdict, ranking, signed, verdict

Report = dict[str, Any]
"""What `verdict.json` holds."""


@dataclass(frozen=True)
class Findings:
    """The results of a comparison, put together."""

    results: Sequence[TrialResult]
    mixtures: Mapping[str, Candidate]
    ranked: Sequence[Ranked]
    verdict: Verdict

    @property
    def winner(self) -> Candidate:
        """The top of the ranking."""
        return self.mixtures[self.ranked[0].name]

    def sentence(self) -> str:
        """What may be said of the mixture that was searched for, and of the winner."""
        said = f"the searched mixture: {self.verdict.sentence()}"
        if self.winner.name != SEARCHED:
            return f"{said}; {self.winner.name} is first in the ranking"
        if self.verdict.outcome != "better":
            return f"{said}; it is first in the ranking, but these runs do not tell it from {self.verdict.baseline}"
        return said


def findings(results: Sequence[TrialResult]) -> Findings:
    """Rank and judge. Raises TrainingError where too few runs succeeded for any comparison."""
    scores: dict[str, dict[int, float]] = {}
    for result in results:
        scores.setdefault(result.trial.candidate.name, {})[result.trial.seed] = result.score
    plain = [name for name in scores if name != SEARCHED]
    judged = verdict(scores, SEARCHED, plain)
    if judged is None:
        there = ", ".join(f"{name} with {len(by_seed)} seeds" for name, by_seed in scores.items()) or "none"
        raise TrainingError(
            "the searched mixture needs two seeds in common with a plain one to be compared; "
            f"finished: {there}. The same command tries the others again"
        )
    mixtures = {result.trial.candidate.name: result.trial.candidate for result in results}
    return Findings(results, mixtures, ranking(scores, plain, judged.baseline), judged)


def task_shares(config: Config, prepared: Prepared, candidate: Candidate) -> dict[str, float]:
    """The share of each task in a candidate's draws."""
    spec = stream_spec(candidate.applied(config), prepared)
    return {task.name: task.rate_bits / ONE for task in spec.tasks}


def report_of(
    found: Findings, shares: Mapping[str, Mapping[str, float]], winner_file: Path, facts: Mapping[str, Any]
) -> Report:
    """Everything as plain values."""
    return {
        **facts,
        "verdict": {**asdict(found.verdict), "text": found.sentence(), "split": SPLIT},
        "winner": {"name": found.winner.name, "recipe": str(winner_file), "mixture": found.winner.mixture()},
        "ranking": [
            {
                "rank": rank,
                "mixture": one.name,
                "average": one.estimate.mean,
                "low": one.estimate.low,
                "high": one.estimate.high,
                "runs": one.estimate.runs,
                f"difference from {found.verdict.baseline}": None if one.difference is None else asdict(one.difference),
                "by task": _means(found.results, one.name),
                "by seed": {
                    str(result.trial.seed): result.score
                    for result in found.results
                    if result.trial.candidate.name == one.name
                },
                "shares": dict(shares[one.name]),
                **{key: value for key, value in found.mixtures[one.name].to_dict().items() if key != "name"},
            }
            for rank, one in enumerate(found.ranked, start=1)
        ],
    }


def _means(results: Sequence[TrialResult], name: str) -> dict[str, float]:
    mine = [result.by_task for result in results if result.trial.candidate.name == name]
    return {task: sum(one[task] for one in mine) / len(mine) for task in mine[0]}


def show_report(report: Report, reporter: Reporter) -> None:
    """The ranking, the mixtures, the verdict, and the command that comes next."""
    baseline = report["verdict"]["baseline"]
    seeds = max(row["runs"] for row in report["ranking"])
    notes = (
        f"average of the tasks' headline metrics on the {report['verdict']['split']} split, on the same examples for "
        f"all; intervals: 95 %, Student's t over {seeds} seeds of training; differences are taken seed by seed"
    )
    reporter.table("Ranking of mixtures", [_row(row, baseline) for row in report["ranking"]], notes)
    tasks = list(report["ranking"][0]["shares"])
    reporter.table(
        "Each task's share of the examples, and its result",
        [{"task": task, **{row["mixture"]: _task_cell(row, task) for row in report["ranking"]}} for task in tasks],
    )
    reporter.line(report["verdict"]["text"])
    for line in report.get("failed", []):
        reporter.line(f"failed: {line}")
    path = Path(report["winner"]["recipe"])
    reporter.line(f"winner: {report['winner']['name']}, as a recipe in {path}")
    reporter.line("next:")
    here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    reporter.line(f"  mixtura train {here}")


def _row(row: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    difference = row[f"difference from {baseline}"]
    return {
        "rank": row["rank"],
        "mixture": row["mixture"],
        "average": f"{row['average']:.2f}",
        "95 % interval": _bounds(row["low"], row["high"]),
        f"against {baseline}": "-" if difference is None else _difference(Estimate(**difference)),
        "runs": row["runs"],
    }


def _task_cell(row: Mapping[str, Any], task: str) -> str:
    """`25.0 %, 31.2`; the share alone for a task that has no result."""
    share = f"{row['shares'][task]:.1%}"
    return f"{share}, {row['by task'][task]:.1f}" if task in row["by task"] else share


def _bounds(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _difference(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return signed(estimate.mean)
    return f"{signed(estimate.mean)} ({signed(estimate.low)} to {signed(estimate.high)})"
