"""Learning rates as pure functions of the step.

Steps count from 0. A schedule has no state and no horizon, so a run goes on from any step, and for longer than was
planned, without a change to the rates of the steps before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mixtura.platform.errors import UnknownNameError

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


def create_schedule(name: str, *, warmup_steps: int = 10_000, factor: float = 1.0) -> Schedule:
    """The schedule that a recipe names; `factor` is the rate itself where it is constant.

    >>> create_schedule("constant", factor=0.001)(7)
    0.001
    """
    match name:
        case "inverse_square_root":
            return inverse_square_root(warmup_steps, factor)
        case "constant":
            return constant(factor)
        case _:
            raise UnknownNameError("schedule", name, ["inverse_square_root", "constant"])
