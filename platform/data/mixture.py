"""How often each task of a mixture is drawn.

A rate is relative: only its share of the sum counts. SeqIO's order of operations is kept: scale, then cap, then
temperature (Raffel et al. 2020, section 3.5.2). `task_rates` makes the rates of a recipe, by the kind that it names;
`nested_weights` and `nested_rates` bring mixtures of mixtures down to tasks before. The stream works on
`integer_rates`, which sum to 2^64 exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from decimal import Context, Decimal
from fractions import Fraction
from types import MappingProxyType

from mixtura.platform.errors import ConfigError, UnknownNameError

ONE = 1 << 64
"""The integer rates of a mixture sum to this."""

# Powers are taken in decimal software arithmetic: a C library's pow may differ in the last bit from machine to machine.
_ARITHMETIC = Context(prec=40)

RATE_KINDS = ("proportional", "paper", "released", "equal", "fixed", "unimax")
"""The kinds of rates that a recipe may name, see `task_rates`."""

_NONE: Mapping[str, float] = MappingProxyType({})


def examples_rate(examples: float, maximum: float | None = None, temperature: float = 1.0, scale: float = 1.0) -> float:
    """The rate of one task: min(examples * scale, maximum)^(1 / temperature).

    >>> examples_rate(250, temperature=4.0), examples_rate(392_702, maximum=65_536)
    (3.976353643835253, 65536.0)
    """
    if temperature <= 0 or scale < 0 or examples < 0:
        raise ConfigError(
            f"a rate needs temperature > 0, scale >= 0 and examples >= 0, "
            f"found temperature {temperature}, scale {scale}, examples {examples}"
        )
    if maximum is not None and maximum <= 0:
        raise ConfigError(f"maximum is {maximum}, so that no task would be drawn: give None for no cap")
    size = examples * scale
    capped = size if maximum is None else min(size, maximum)
    if temperature == 1 or capped == 0:
        return float(capped)
    exponent = _ARITHMETIC.divide(Decimal(1), Decimal(temperature))
    return float(_ARITHMETIC.power(Decimal(capped), exponent))


def examples_proportional_rates(
    sizes: Mapping[str, float], maximum: float | None = None, temperature: float = 1.0, scale: float = 1.0
) -> dict[str, float]:
    """Rates by number of training examples, no task counting for more than `maximum` of them.

    r_m = min(e_m * scale, K)^(1/T), with e the sizes, K = `maximum` (None: no cap) and T = `temperature`
    (1: proportional; towards infinity: equal). Not normalised, as in SeqIO.

    >>> examples_proportional_rates({"squad": 80, "rte": 20, "c4": 10_000}, maximum=100)
    {'squad': 80.0, 'rte': 20.0, 'c4': 100.0}
    >>> examples_proportional_rates({"squad": 64, "rte": 16}, temperature=2)
    {'squad': 8.0, 'rte': 4.0}
    """
    return {name: examples_rate(size, maximum, temperature, scale) for name, size in sizes.items()}


def paper_rates(
    sizes: Mapping[str, float],
    maximum: float | None = None,
    temperature: float = 1.0,
    scales: Mapping[str, float] = _NONE,
    shared: Sequence[AbstractSet[str]] = (),
) -> dict[str, float]:
    """The paper's examples-proportional rates: the cap holds for every task, and one data set counts once.

    r_m = min(e_m / c_m * scale_m, K)^(1/T), with c_m the number of tasks present that are copies of m's data set: of
    `glue_rte` and `super_glue_rte` each has half the size where both are there. The size is halved *before* the
    temperature. The published shares at T = 2, 4 and 8 come out to 0.05 percent points this way, and are missed by up
    to 0.56 if the rate is halved after it; at T = 1 both are the same.

    >>> paper_rates({"rte": 32, "sg_rte": 32, "squad": 900}, maximum=256, temperature=2, shared=[{"rte", "sg_rte"}])
    {'rte': 4.0, 'sg_rte': 4.0, 'squad': 16.0}
    """
    copies = _copies(sizes, shared)
    return {
        name: examples_rate(size / copies.get(name, 1), maximum, temperature, scales.get(name, 1.0))
        for name, size in sizes.items()
    }


def released_rates(
    sizes: Mapping[str, float],
    fixed: Mapping[str, float],
    maximum: float | None = None,
    temperature: float = 1.0,
    scales: Mapping[str, float] = _NONE,
    shared: Sequence[AbstractSet[str]] = (),
) -> dict[str, float]:
    """The rates of the mixtures that were released: some are numbers written down, which `fixed` gives.

    Those are GLUE, SuperGLUE and DPR, and in one mixture C4. Neither the cap nor the temperature touches them; a scale
    and the division among copies do. The other tasks go through the capped function, as in `paper_rates`.

    >>> released_rates({"glue_mnli": 400, "squad": 90}, fixed={"glue_mnli": 400.0}, maximum=81, temperature=2)
    {'glue_mnli': 400.0, 'squad': 9.0}
    """
    copies = _copies(sizes, shared)
    rates = paper_rates(sizes, maximum, temperature, scales, shared)
    written = {name: fixed[name] * scales.get(name, 1.0) / copies.get(name, 1) for name in sizes if name in fixed}
    return {**rates, **written}


def _copies(names: Iterable[str], shared: Sequence[AbstractSet[str]]) -> dict[str, int]:
    """Of each task in a set of `shared`, how many of that set there are."""
    present = [set(names) & tasks for tasks in shared]
    return {name: len(tasks) for tasks in present for name in tasks}


def equal_rates(names: Iterable[str]) -> dict[str, float]:
    """Every task as often as any other.

    >>> equal_rates(["squad", "rte"])
    {'squad': 1.0, 'rte': 1.0}
    """
    return dict.fromkeys(names, 1.0)


def fixed_rates(names: Iterable[str], weights: Mapping[str, float]) -> dict[str, float]:
    """Rates written down by hand; a task without one is not drawn.

    >>> fixed_rates(["squad", "rte"], {"rte": 2.5})
    {'squad': 0.0, 'rte': 2.5}
    """
    rates = weighted_rates(equal_rates(names), weights)
    return {name: rate if name in weights else 0.0 for name, rate in rates.items()}


def unimax_rates(sizes: Mapping[str, float], budget: float, repeats: Mapping[str, float]) -> dict[str, float]:
    """UniMax (Chung et al. 2023): `budget` draws are shared out evenly, but no task is passed over more than its
    `repeats` times; what small tasks cannot take goes to the others. The rates are numbers of draws.

    >>> unimax_rates({"c4": 10_000, "rte": 20, "squad": 80}, budget=900, repeats={"c4": 4, "rte": 4, "squad": 4})
    {'c4': 500.0, 'rte': 80.0, 'squad': 320.0}
    """
    left, draws = float(budget), {}
    by_most = sorted(sizes, key=lambda name: (sizes[name] * repeats[name], name))
    for place, name in enumerate(by_most):
        draws[name] = min(left / (len(by_most) - place), sizes[name] * repeats[name])
        left -= draws[name]
    return {name: float(draws[name]) for name in sizes}


def weighted_rates(rates: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Rates times a weight per task; a task without one keeps its rate.

    >>> weighted_rates({"squad": 80.0, "rte": 20.0}, {"rte": 3.0})
    {'squad': 80.0, 'rte': 60.0}
    """
    for name in weights:
        if name not in rates:
            raise UnknownNameError("task", name, rates, where=" in this mixture, but it is given a weight")
    return {name: rate * weights.get(name, 1.0) for name, rate in rates.items()}


def task_rates(
    kind: str,
    sizes: Mapping[str, int],
    *,
    maximum: float | None = None,
    temperature: float = 1.0,
    weights: Mapping[str, float] = _NONE,
    scales: Mapping[str, float] = _NONE,
    shared: Sequence[AbstractSet[str]] = (),
    fixed: Mapping[str, float] = _NONE,
    budget: float | None = None,
    repeats: Mapping[str, float] = _NONE,
) -> dict[str, float]:
    """The rates of a mixture, not normalised: scale, cap, temperature, then each task's weight.

        proportional   min(size * scale, maximum)^(1/temperature)
        paper          the same, with the size divided among the copies of one data set that are drawn (`shared`)
        released       `fixed` where it has the task, otherwise as `paper`
        equal          1, whatever the sizes and scales
        fixed          1, so that the weights are the rates; a task without a weight is not drawn
        unimax         as even as `repeats` allows over `budget` draws

    A task of weight 0, such as one for evaluation only, has rate 0 and needs no examples.

    >>> task_rates("proportional", {"squad": 80, "glue_ax": 0}, weights={"squad": 0.5, "glue_ax": 0})
    {'squad': 40.0, 'glue_ax': 0.0}
    """
    for name in scales:
        if name not in sizes:
            raise UnknownNameError("task", name, sizes, where=" in this mixture, but it is given a scale")
    weight = fixed_rates(sizes, weights) if kind == "fixed" else weighted_rates(equal_rates(sizes), weights)
    drawn = {name: size for name, size in sizes.items() if weight[name] != 0}
    for name, size in drawn.items():
        if size == 0:
            raise ConfigError(
                f"task {name!r} has no training examples, but weight {weight[name]:g} in the mixture: "
                "give it weight=0, or leave it out"
            )
    match kind:
        case "proportional":
            rates = paper_rates(drawn, maximum, temperature, scales)
        case "paper":
            rates = paper_rates(drawn, maximum, temperature, scales, shared)
        case "released":
            rates = released_rates(drawn, fixed, maximum, temperature, scales, shared)
        case "equal" | "fixed":
            rates = equal_rates(drawn)
        case "unimax":
            missing = [name for name in drawn if name not in repeats]
            if budget is None or missing:
                raise ConfigError(f"unimax needs a budget, found {budget}, and repeats, missing for {missing}")
            rates = unimax_rates(drawn, budget, repeats)
        case _:
            raise UnknownNameError("kind of rates", kind, RATE_KINDS)
    return weighted_rates({name: rates.get(name, 0.0) for name in sizes}, weight)


@dataclass(frozen=True)
class Mixture:
    """Tasks, or mixtures, to be trained together."""

    name: str
    parts: Mapping[str, float]
    """Names of tasks or mixtures with their weights; weight 0 is for evaluation only."""
    description: str
    """One sentence."""
    released: Mapping[str, float] = field(default_factory=dict)
    """Rates of its own that the released mixture has as written numbers, for `rates: released`."""


def nested_weights(weights: Mapping[str, float], mixtures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Weights of tasks and mixtures brought down to tasks: they multiply on the way down, and add up for a task that is
    reached on several ways. `mixtures` has the parts of each mixture; other names are tasks.

    >>> nested_weights({"glue": 2.0, "rte": 1.0}, {"glue": {"cola": 1.0, "rte": 0.5}})
    {'cola': 2.0, 'rte': 2.0}
    """
    return _flat(weights, mixtures, (), divide=False)


def nested_rates(rates: Mapping[str, float], mixtures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Fixed rates of tasks and mixtures brought down to tasks, as SeqIO does it: a mixture's rate is divided among its
    tasks in proportion to their rates inside, and a task that is reached on several ways has the sum.

    >>> nested_rates({"sub": 2.0, "x": 1.0}, {"sub": {"x": 1.0, "y": 3.0}})
    {'x': 1.5, 'y': 1.5}
    """
    return _flat(rates, mixtures, (), divide=True)


def _flat(
    parts: Mapping[str, float], mixtures: Mapping[str, Mapping[str, float]], path: tuple[str, ...], *, divide: bool
) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, rate in parts.items():
        inside = {name: 1.0}
        if name in mixtures:
            if name in path:
                raise ConfigError(f"mixtures contain each other in a circle: {' -> '.join((*path, name))}")
            inside = _flat(mixtures[name], mixtures, (*path, name), divide=divide)
        total = sum(inside.values()) if divide else 1.0
        if total == 0 and rate > 0:
            raise ConfigError(
                f"mixture {name!r} has rate {rate:g}, but all its tasks have rate 0 ({', '.join(inside) or 'none'}): "
                "give one of them a rate, or the mixture rate 0"
            )
        for task, own in inside.items():
            flat[task] = flat.get(task, 0.0) + (rate * own / total if total else 0.0)
    return flat


def proportions(rates: Mapping[str, float]) -> dict[str, float]:
    """Every task's share of the draws.

    >>> proportions({"squad": 80.0, "rte": 20.0})
    {'squad': 0.8, 'rte': 0.2}
    """
    return {name: float(share) for name, share in _shares(rates).items()}


def _shares(rates: Mapping[str, float]) -> dict[str, Fraction]:
    for name, rate in rates.items():
        if not math.isfinite(rate) or rate < 0:
            raise ConfigError(f"the rate of task {name!r} is {rate}: it must be a finite number of at least 0")
    exact = {name: Fraction(rate) for name, rate in rates.items()}
    total = sum(exact.values(), Fraction(0))
    if total == 0:
        raise ConfigError(f"every task has rate 0 ({', '.join(rates) or 'there is none'}): give at least one a rate")
    return {name: rate / total for name, rate in exact.items()}


def integer_rates(rates: Mapping[str, float]) -> dict[str, int]:
    """Shares as integers over 2^64 that sum to 2^64 exactly: rounded down, the rest to the largest remainders.

    Computed in exact fractions. Equal remainders are served in the order of names, so the order of `rates` is
    without effect.

    >>> rates = integer_rates({"squad": 1, "rte": 1, "c4": 1})
    >>> rates["c4"] - rates["rte"], sum(rates.values()) == 2**64
    (1, True)
    """
    exact = {name: share * ONE for name, share in _shares(rates).items()}
    whole = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (whole[name] - exact[name], name))
    for name in by_remainder[: ONE - sum(whole.values())]:
        whole[name] += 1
    return whole


@dataclass(frozen=True)
class TaskShare:
    """What a mixture means for one task over a number of draws."""

    name: str
    rate: float
    share: float
    """of all draws, between 0 and 1"""
    draws: float
    """expected examples drawn"""
    epochs: float | None
    """expected passes over the task's examples; None where their number is not known"""


def summary(rates: Mapping[str, float], sizes: Mapping[str, int | None], draws: int) -> list[TaskShare]:
    """Per task: share, expected draws and epochs over `draws` examples.

    >>> [(row.name, row.draws, row.epochs) for row in summary({"squad": 3.0, "rte": 1.0}, {"squad": 60, "rte": 5}, 40)]
    [('squad', 30.0, 0.5), ('rte', 10.0, 2.0)]
    """
    rows = []
    for name, share in proportions(rates).items():
        size = sizes.get(name)
        epochs = share * draws / size if size else None
        rows.append(TaskShare(name, rates[name], share, share * draws, epochs))
    return rows
