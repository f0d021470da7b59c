"""Learning rates, against the original's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.training import schedule


def as_ours(row: dict) -> Callable[[int], float] | None:
    """Our schedule for a worked answer; None for the original's schedules that are not here."""
    arguments = dict(row["kwargs"])
    if row["fn"] == "constant_learning_rate":
        return schedule.constant(**arguments)
    if row["fn"] == "learning_rate_schedule_noam" and arguments.pop("linear_decay_fraction") == 0:
        return schedule.inverse_square_root(arguments.get("warmup_steps", 10_000), arguments.get("multiplier", 1.0))
    if row["fn"] == "slanted_triangular":
        return schedule.slanted_triangular(
            row["total"], arguments["max_learning_rate"], arguments["cut_fraction"], arguments["ratio"]
        )
    return None


def test_rates_equal_the_original_at_every_step_asked(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "golden/mesh.jsonl").read_text().splitlines()]
    compared = 0
    for row in rows:
        ours = as_ours(row) if row["kind"] == "lr" else None
        if ours is not None:
            assert [ours(step) for step in row["steps"]] == pytest.approx(row["result"], rel=1e-6)
            compared += 1
    assert compared == 5


def test_a_later_end_does_not_change_the_rate_of_any_step() -> None:
    rate = schedule.inverse_square_root(warmup_steps=100, factor=2.0)
    assert [rate(0), rate(99), rate(100), rate(400)] == [0.2, 0.2, 0.2, 0.1]


# Over 10 steps to or from 0.1. The triangle, with 3 rising steps: 0.1 x (1 + 9 p) / 10, p from 0 to 1 and back. The
# cosine: (1 + cos(pi p)) / 2 = 1, 0.75, 0.5, 0.25 and 0 at p = 0, 1/3, 1/2, 2/3 and 1.
BY_HAND = [
    ("slanted_triangular", {"cut": 0.3, "ratio": 10.0}, {0: 0.01, 1: 0.04, 3: 0.1, 10: 0.01, 11: 0.01, 1000: 0.01}),
    ("linear", {"warmup_steps": 4}, {0: 0.025, 1: 0.05, 3: 0.1, 4: 0.1, 7: 0.05, 10: 0.0, 11: 0.0}),
    ("linear", {"warmup_steps": 0, "final_factor": 0.05}, {0: 0.1, 4: 0.08, 10: 0.05, 1000: 0.05}),
    ("cosine", {"warmup_steps": 4}, {0: 0.025, 3: 0.1, 4: 0.1, 6: 0.075, 7: 0.05, 8: 0.025, 10: 0.0, 11: 0.0}),
    ("cosine", {"warmup_steps": 0, "final_factor": 0.02}, {0: 0.1, 5: 0.06, 10: 0.02, 1000: 0.02}),
]


@pytest.mark.parametrize(("name", "arguments", "rates"), BY_HAND)
def test_rates_that_come_down_equal_those_worked_out_by_hand(name: str, arguments: dict, rates: dict) -> None:
    rate = schedule.create_schedule(name, factor=0.1, steps=10, **arguments)
    assert {step: rate(step) for step in rates} == pytest.approx(rates, abs=1e-12)


def test_a_triangle_of_few_steps_never_goes_below_zero() -> None:
    rate = schedule.slanted_triangular(15, factor=0.1)  # 1.5 rising steps, so 1
    assert [rate(step) for step in (0, 1)] == pytest.approx([0.1 / 32, 0.1])
    assert min(rate(step) for step in range(20)) == 0.0


def test_a_schedule_that_comes_down_is_told_over_how_many_steps() -> None:
    for name in ("slanted_triangular", "linear", "cosine"):
        with pytest.raises(ConfigError, match="schedule.steps"):
            schedule.create_schedule(name)


def test_an_unknown_schedule_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'constant'"):
        schedule.create_schedule("konstant")
