"""Learning rates as pure functions of the step.

Steps count from 0. A schedule has no state, so a run goes on from any step. Where a rate comes down over a number of
steps, that number is the schedule's own: training for longer does not change the rate of any step, and after it the
rate stays where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mixtura.platform.errors import ConfigError, UnknownNameError

Schedule = Callable[[int], float]


def inverse_square_root(warmup_steps: int = 10_000, factor: float = 1.0) -> Schedule:
    """T5's pre-training rate, `factor / sqrt(max(step, warmup_steps))` (Raffel et al. 2020, section 3.1.2).

    Constant for the first `warmup_steps` steps, then falling. The released code would by default let the rate run
    down to 0 over the last tenth of the steps; the paper's experiments switch that off, and so it is not here.

    >>> rate = inverse_square_root()
    >>> rate(0), rate(10_000), round(rate(40_000), 6)
    (0.01, 0.01, 0.005)
    """

    def rate(step: int) -> float:
        return factor / math.sqrt(max(step, warmup_steps))

    return rate


def constant(learning_rate: float) -> Schedule:
    """The same rate at every step; T5 fine-tunes with 0.001 (section 3.1.2).

    >>> constant(0.001)(250_000)
    0.001
    """

    def rate(_: int) -> float:
        return learning_rate

    return rate


def slanted_triangular(steps: int, factor: float, cut: float = 0.1, ratio: float = 32.0) -> Schedule:
    """A line up to `factor` in the first `cut` of the steps, then one down (Howard and Ruder 2018, section 3.2).

    It begins with `factor / ratio`, comes down to it at `steps`, and stays there. The released T5 code has it, as an
    alternative to the constant rate. As published, the number of rising steps is rounded down, and the fall is as much
    steeper: where `steps * cut` is small and no integer, the rate reaches 0 a little before the end, and is not let
    below.

    >>> rate = slanted_triangular(100, factor=0.32)
    >>> [round(rate(step), 4) for step in (0, 5, 10, 55, 100, 200)]
    [0.01, 0.165, 0.32, 0.165, 0.01, 0.01]
    """
    top = max(1, math.floor(steps * cut))

    def rate(step: int) -> float:
        step = min(step, steps)
        share = step / top if step < top else 1 - (step - top) / (top * (1 / cut - 1))
        return max(0.0, factor * (1 + share * (ratio - 1)) / ratio)

    return rate


def linear(steps: int, factor: float, warmup_steps: int = 0, final_factor: float = 0.0) -> Schedule:
    """A line from `factor` after the warm-up to `final_factor` at `steps`, which it keeps.

    In a warm-up the rate rises in equal parts, the first update's being the first of them, so that no update is lost.

    >>> rate = linear(10, factor=1.0, warmup_steps=2)
    >>> [rate(step) for step in (0, 1, 2, 6, 10, 99)]
    [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    return _falling(steps, factor, warmup_steps, final_factor, lambda done: 1 - done)


def cosine(steps: int, factor: float, warmup_steps: int = 0, final_factor: float = 0.0) -> Schedule:
    """Half a cosine from `factor` after the warm-up to `final_factor` at `steps` (Loshchilov and Hutter 2017).

    The warm-up is that of `linear`, and there are no restarts.

    >>> rate = cosine(10, factor=1.0, warmup_steps=2, final_factor=0.1)
    >>> [round(rate(step), 4) for step in (0, 1, 2, 6, 10, 99)]
    [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """
    return _falling(steps, factor, warmup_steps, final_factor, lambda done: (1 + math.cos(math.pi * done)) / 2)


def _falling(
    steps: int, factor: float, warmup_steps: int, final_factor: float, share: Callable[[float], float]
) -> Schedule:
    """`share` says how much of the way down is left, from 1 to 0, after that share of the steps."""

    def rate(step: int) -> float:
        if step < warmup_steps:
            return factor * (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return final_factor + (factor - final_factor) * share(done)

    return rate


def create_schedule(
    name: str,
    *,
    warmup_steps: int = 10_000,
    factor: float = 1.0,
    steps: int | None = None,
    final_factor: float = 0.0,
    cut: float = 0.1,
    ratio: float = 32.0,
) -> Schedule:
    """The schedule that a recipe names; `factor` is the largest rate, but for the inverse square root.

    Raises ConfigError if a schedule that comes down is not told over how many steps.

    >>> create_schedule("constant", factor=0.001)(7)
    0.001
    """
    if name == "inverse_square_root":
        return inverse_square_root(warmup_steps, factor)
    if name == "constant":
        return constant(factor)
    if name not in {"slanted_triangular", "linear", "cosine"}:
        raise UnknownNameError(
            "schedule", name, ["inverse_square_root", "constant", "slanted_triangular", "linear", "cosine"]
        )
    if steps is None:
        raise ConfigError(f"schedule {name} comes down over a number of steps, and none is given: set schedule.steps")
    if name == "slanted_triangular":
        return slanted_triangular(steps, factor, cut, ratio)
    return (linear if name == "linear" else cosine)(steps, factor, warmup_steps, final_factor)
