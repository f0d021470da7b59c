"""The mixtures that a search may try, and the plain ones that every search has to beat.

A candidate's rates are size^(1/T) * weight, so that a plain mixture is the point where all weights are equal (paper,
section 3.5.2). Both knobs are continuous and searched on a logarithmic scale: half a weight is as far as twice of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mixtura.platform.config import Config, validated
from mixtura.platform.errors import ConfigError
from mixtura.platform.recipe_files import merged

SEARCHED = "searched"
"""Name of the best mixture that a search found, when it is run beside the plain ones."""

_TEMPERATURE = "temperature"
_DIGITS = 4


@dataclass(frozen=True)
class Candidate:
    """A mixture to be tried: how the tasks of a recipe are weighted."""

    name: str
    rates: str
    temperature: float
    weights: dict[str, float]

    def mixture(self) -> dict[str, Any]:
        """The part of a recipe that makes this mixture."""
        tasks = {name: {"weight": weight} for name, weight in self.weights.items()}
        return {"rates": self.rates, "temperature": self.temperature, "tasks": tasks}

    def applied(self, config: Config) -> Config:
        """A configuration with this mixture in place of its own."""
        return validated(merged(config.to_dict(), {"mixture": self.mixture()}), where=f"mixture {self.name!r}")

    def same_mixture(self, other: Candidate) -> bool:
        """Whether both draw the tasks equally often, whatever their names.

        >>> once = Candidate("a", "equal", 1.0, {"x": 1.0, "y": 1.0})
        >>> once.same_mixture(Candidate("b", "equal", 3.0, {"x": 0.5, "y": 0.5}))
        True
        """
        return self._normal() == other._normal()

    def _normal(self) -> tuple[Any, ...]:
        largest = max(self.weights.values())
        weights = tuple(sorted((name, weight / largest) for name, weight in self.weights.items()))
        return self.rates, self.temperature if self.rates == "proportional" else None, weights

    def describe(self) -> str:
        """For people: `T 1.73, weights 0.5 2 1`, the weights in the order of the tasks."""
        weights = " ".join(f"{weight:g}" for weight in self.weights.values())
        temperature = f"T {self.temperature:g}, " if self.rates == "proportional" else f"{self.rates} rates, "
        return f"{temperature}weights {weights}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Candidate:
        """The inverse of `to_dict`."""
        return Candidate(**values)


def plain_baselines(config: Config) -> list[Candidate]:
    """What every search is compared with: T = 1, T = 2, equal rates, and the recipe's own mixture where it is another.

    A task of weight 0 is not drawn in the recipe, and stays so.
    """
    plain = {name: 0.0 if task.weight == 0 else 1.0 for name, task in config.mixture.tasks.items()}
    found = [
        Candidate("T = 1", "proportional", 1.0, plain),
        Candidate("T = 2", "proportional", 2.0, plain),
        Candidate("equal", "equal", 1.0, plain),
    ]
    own = own_mixture(config)
    return found if any(own.same_mixture(one) for one in found) else [*found, own]


def own_mixture(config: Config) -> Candidate:
    """The mixture that a recipe describes."""
    mixture = config.mixture
    weights = {name: task.weight for name, task in mixture.tasks.items()}
    return Candidate("the recipe's", mixture.rates, mixture.temperature, weights)


@dataclass(frozen=True)
class Space:
    """A box of mixtures: a temperature, and a weight for each task that is drawn from."""

    tasks: tuple[str, ...]
    """All tasks of the recipe, in its order."""
    drawn: tuple[str, ...]
    """Those with a weight over 0."""
    temperature: tuple[float, float]
    weight: tuple[float, float]

    @staticmethod
    def of(config: Config) -> Space:
        """The space of a recipe; ConfigError where there is nothing to search."""
        drawn = tuple(name for name, task in config.mixture.tasks.items() if task.weight > 0)
        space = Space(tuple(config.mixture.tasks), drawn, config.search.temperature, config.search.weight)
        if len(drawn) < 2:
            raise ConfigError(
                f"a mixture of {len(drawn)} task has no proportions to search: "
                "give at least two tasks in mixture.tasks a weight over 0"
            )
        if all(low == high for low, high in space.parameters().values()):
            raise ConfigError(
                "search.temperature and search.weight are single points, which leaves nothing to search: "
                "give at least one of them a range, for example search.temperature=[0.5,8]"
            )
        return space

    def parameters(self) -> dict[str, tuple[float, float]]:
        """Ranges by the names that the search algorithm sees. Tasks go by their place, whatever their names hold."""
        return {_TEMPERATURE: self.temperature} | {self._weight(name): self.weight for name in self.drawn}

    def candidate(self, point: Mapping[str, float], name: str) -> Candidate:
        """The mixture at a point, in numbers that a person can read and a recipe can hold: four digits."""
        bounds = self.parameters()
        values = {key: _rounded(point[key], *bounds[key]) for key in bounds}
        weights = {task: values.get(self._weight(task), 0.0) for task in self.tasks}
        return Candidate(name, "proportional", values[_TEMPERATURE], weights)

    def point(self, candidate: Candidate) -> dict[str, float] | None:
        """Where a mixture lies in this space; None for one that lies outside."""
        if candidate.rates != "proportional" or set(candidate.weights) != set(self.tasks):
            return None
        if any(candidate.weights[task] for task in self.tasks if task not in self.drawn):
            return None
        point = {_TEMPERATURE: candidate.temperature}
        point |= {self._weight(task): candidate.weights[task] for task in self.drawn}
        inside = all(low <= point[name] <= high for name, (low, high) in self.parameters().items())
        return point if inside else None

    def _weight(self, task: str) -> str:
        return f"weight_{self.tasks.index(task)}"


def _rounded(value: float, low: float, high: float) -> float:
    """Four significant digits, never out of the bounds.

    >>> _rounded(0.123456, 0.1, 1.0), _rounded(0.99999, 0.1, 0.999994)
    (0.1235, 0.999994)
    """
    return min(max(float(f"{value:.{_DIGITS}g}"), low), high)
