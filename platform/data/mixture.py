"""How often each task of a mixture is drawn.

A rate is relative: only its share of the sum counts. SeqIO's order of operations is kept: scale, then cap, then
temperature (Raffel et al. 2020, section 3.5.2). The stream works on `integer_rates`, which sum to 2^64 exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from mixtura.platform.errors import ConfigError, UnknownNameError

ONE = 1 << 64
"""The integer rates of a mixture sum to this."""

# Powers are taken in decimal software arithmetic: a C library's pow may differ in the last bit from machine to machine.
_ARITHMETIC = Context(prec=40)


def examples_rate(examples: int, maximum: float | None = None, temperature: float = 1.0, scale: float = 1.0) -> float:
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
    sizes: Mapping[str, int], maximum: float | None = None, temperature: float = 1.0, scale: float = 1.0
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


def weighted_rates(rates: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Rates times a weight per task; a task without one keeps its rate.

    >>> weighted_rates({"squad": 80.0, "rte": 20.0}, {"rte": 3.0})
    {'squad': 80.0, 'rte': 60.0}
    """
    for name in weights:
        if name not in rates:
            raise UnknownNameError("task", name, rates, where=" in this mixture, but it is given a weight")
    return {name: rate * weights.get(name, 1.0) for name, rate in rates.items()}


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
