"""Learning rates, against the original's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.platform.errors import UnknownNameError
from mixtura.platform.training import schedule


def as_ours(row: dict) -> Callable[[int], float] | None:
    """Our schedule for a worked answer; None for the original's schedules that are not here."""
    arguments = dict(row["kwargs"])
    if row["fn"] == "constant_learning_rate":
        return schedule.constant(**arguments)
    if row["fn"] == "learning_rate_schedule_noam" and arguments.pop("linear_decay_fraction") == 0:
        return schedule.inverse_square_root(arguments.get("warmup_steps", 10_000), arguments.get("multiplier", 1.0))
    return None


def test_rates_equal_the_original_at_every_step_asked(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "golden/mesh.jsonl").read_text().splitlines()]
    compared = 0
    for row in rows:
        ours = as_ours(row) if row["kind"] == "lr" else None
        if ours is not None:
            assert [ours(step) for step in row["steps"]] == pytest.approx(row["result"], rel=1e-6)
            compared += 1
    assert compared == 4


def test_a_later_end_does_not_change_the_rate_of_any_step() -> None:
    rate = schedule.inverse_square_root(warmup_steps=100, factor=2.0)
    assert [rate(0), rate(99), rate(100), rate(400)] == [0.2, 0.2, 0.2, 0.1]


def test_an_unknown_schedule_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'constant'"):
        schedule.create_schedule("konstant")
