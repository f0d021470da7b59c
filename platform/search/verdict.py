"""What the results of a search allow to say.

Every mixture is trained with the same seeds. A mean over n seeds has the interval mean ± t · s / √n, with t the 97.5 %
quantile of Student's distribution with n - 1 degrees of freedom. Two mixtures are compared by their differences seed by
seed, which takes out what a seed does to both. Nothing is concluded from the trials of the search itself: the best of
many looks better than it is, so that the best candidate is run anew, with seeds that the search never saw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95

Outcome = Literal["better", "no difference", "worse"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; the bounds are None where one run says nothing about others."""

    mean: float
    low: float | None
    high: float | None
    runs: int


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent values with Student's interval.

    >>> mean_interval([1.0, 2.0, 3.0])
    Estimate(mean=2.0, low=-0.48413771..., high=4.48413771..., runs=3)
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, None, None, count)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(confidence, count - 1) * math.sqrt(variance / count)
    return Estimate(mean, mean - half, mean + half, count)


def t_quantile(confidence: float, degrees: int) -> float:
    """The t with P(|T| < t) = `confidence`, for Student's distribution with so many degrees of freedom.

    >>> round(t_quantile(0.95, 2), 4), round(t_quantile(0.95, 30), 4)
    (4.3027, 2.0423)
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """P(|T| < √n · tan(angle)) for n whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    term = cosine if odd else 1.0
    total = term
    for factor in range(2 + odd, degrees - 1, 2):
        term *= (factor - 1) / factor * cosine * cosine
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@dataclass(frozen=True)
class Ranked:
    """A mixture in the ranking."""

    name: str
    estimate: Estimate
    difference: Estimate | None
    """From the mixture compared with, seed by seed; None for that one itself, or without a seed in common."""


Scores = Mapping[str, Mapping[int, float]]
"""By name of the mixture, by seed."""


def best_plain(scores: Scores, candidate: str, plain: Sequence[str]) -> str | None:
    """The plain mixture with the highest mean; of equals the first.

    Only those count that share at least two seeds with the candidate: a single run may be luck. None if there is none.
    """
    seeds = scores.get(candidate, {}).keys()
    there = [name for name in plain if len(scores.get(name, {}).keys() & seeds) >= 2]
    return max(there, key=lambda name: mean_interval(list(scores[name].values())).mean, default=None)


def ranking(scores: Scores, plain: Sequence[str], against: str) -> list[Ranked]:
    """All mixtures by their means, the best first, beside their differences from the mixture `against`.

    Of equals a plain one stands first, as it is simpler; a mixture with a single run stands at the end.

    >>> scores = {"searched": {1: 3.0, 2: 5.0}, "T = 1": {1: 4.0, 2: 4.0}, "equal": {1: 9.0}}
    >>> [one.name for one in ranking(scores, ["T = 1", "equal"], "T = 1")]
    ['T = 1', 'searched', 'equal']
    """
    ranked = [
        Ranked(
            name,
            mean_interval(list(by_seed.values())),
            None if name == against else paired_difference(by_seed, scores[against]),
        )
        for name, by_seed in scores.items()
        if by_seed
    ]
    return sorted(ranked, key=lambda one: (one.estimate.runs < 2, -one.estimate.mean, one.name not in plain))


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """Mean of `first - second` over the seeds that both have, with its interval; None if they share none."""
    seeds = sorted(first.keys() & second.keys())
    return mean_interval([first[seed] - second[seed] for seed in seeds]) if seeds else None


@dataclass(frozen=True)
class Verdict:
    """Whether the searched mixture is worth having."""

    outcome: Outcome
    candidate: str
    baseline: str
    difference: Estimate

    def sentence(self) -> str:
        """The verdict in words, with its numbers.

        >>> Verdict("better", "searched", "T = 2", Estimate(1.3, 0.4, 2.2, 3)).sentence()
        'better than T = 2 by 1.3 (0.4 to 2.2)'
        >>> Verdict("no difference", "searched", "T = 2", Estimate(0.3, -0.6, 1.2, 3)).sentence()
        'no difference from T = 2: +0.3 (-0.6 to +1.2)'
        """
        mean, low, high = self.difference.mean, self.difference.low or 0.0, self.difference.high or 0.0
        match self.outcome:
            case "better":
                return f"better than {self.baseline} by {shown(mean)} ({shown(low)} to {shown(high)})"
            case "worse":
                return f"worse than {self.baseline} by {shown(-mean)} ({shown(-high)} to {shown(-low)})"
            case "no difference":
                return f"no difference from {self.baseline}: {signed(mean)} ({signed(low)} to {signed(high)})"


def verdict(scores: Scores, candidate: str, plain: Sequence[str]) -> Verdict | None:
    """The candidate against the best plain mixture; None where they have fewer than two seeds in common.

    Taking the best of several plain mixtures flatters that one a little, never the candidate.
    """
    baseline = best_plain(scores, candidate, plain)
    if baseline is None:
        return None
    difference = paired_difference(scores[candidate], scores[baseline])
    if difference is None or difference.low is None or difference.high is None:
        return None
    outcome: Outcome = "better" if difference.low > 0 else "worse" if difference.high < 0 else "no difference"
    return Verdict(outcome, candidate, baseline, difference)


def shown(value: float) -> str:
    """A number on the scale from 0 to 100: one digit after the point, more where it would be nothing.

    >>> shown(1.26), shown(0.043), shown(0.0)
    ('1.3', '0.043', '0.0')
    """
    return f"{value:.1f}" if abs(value) >= 0.05 or value == 0 else f"{value:.2g}"


def signed(value: float) -> str:
    """The same with its sign.

    >>> signed(0.31), signed(-0.31)
    ('+0.3', '-0.3')
    """
    return ("+" if value > 0 else "") + shown(value)
