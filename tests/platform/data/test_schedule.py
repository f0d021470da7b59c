from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.platform.data.mixture import ONE, integer_rates
from mixtura.platform.data.schedule import Schedule
from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import key


def make_schedule(weights: list[float], block_size: int, seed: int = 0) -> Schedule:
    rates = integer_rates({str(task): weight for task, weight in enumerate(weights)})
    phases = [key("phase", seed, task) for task in range(len(weights))]
    return Schedule(list(rates.values()), phases, block_size, key("block", seed))


def check_law_2(schedule: Schedule, block: int) -> None:
    for task, rate in enumerate(schedule.rates):
        exact = Fraction(block * schedule.block_size * rate, ONE)
        assert abs(schedule.drawn_before(task, block) - exact) < 1


def test_L2_counts_are_within_one_of_the_rates_over_a_million_draws() -> None:
    random = np.random.default_rng(1)
    for block_size in (1, 250, 4096):
        schedule = make_schedule([*(10 ** random.uniform(-6, 0, 12)), 0.0], block_size, seed=block_size)
        blocks = 1_000_000 // block_size
        for block in {*range(0, blocks, max(blocks // 2000, 1)), blocks}:
            check_law_2(schedule, block)


def test_L2_holds_for_the_draws_themselves() -> None:
    schedule = make_schedule([5, 3, 1e-3, 0], 256, seed=4)
    counted = np.zeros(4, dtype=np.int64)
    for block in range(4000):
        tasks, _ = schedule.draws(block)
        counted += np.bincount(tasks, minlength=4)
        check_law_2(schedule, block + 1)
        assert counted.tolist() == [schedule.drawn_before(task, block + 1) for task in range(4)]
    assert counted.sum() == pytest.approx(1_024_000, abs=4)
    assert counted[3] == 0


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda weights: sum(weights) > 0),
    st.integers(1, 40),
    st.integers(0, 2**70),
)
def test_L2_holds_for_any_rates_at_any_block(weights: list[float], block_size: int, block: int) -> None:
    check_law_2(make_schedule(weights, block_size), block)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=30)
def test_block_windows_tile_the_draws_of_every_task(weights: list[float], block_size: int, seed: int) -> None:
    schedule = make_schedule(weights, block_size, seed)
    seen = defaultdict(list)
    for block in range(8):
        tasks, numbers = schedule.draws(block)
        for task in range(len(weights)):
            seen[task] += sorted(numbers[tasks == task].tolist())
    for task in range(len(weights)):
        assert seen[task] == list(range(schedule.drawn_before(task, 8)))


def test_a_block_is_shuffled_by_its_own_number() -> None:
    schedule = make_schedule([1, 1], 64)
    assert schedule.draws(3)[0].tolist() == schedule.draws(3)[0].tolist()
    assert schedule.draws(3)[0].tolist() != schedule.draws(4)[0].tolist()
    assert (np.diff(schedule.draws(3)[0]) != 0).sum() > 20  # tasks are mixed, not one after the other


def test_draw_numbers_above_32_bits_are_right() -> None:
    schedule = make_schedule([1, 3], 256)
    _, numbers = schedule.draws(2**36)
    assert int(numbers.max()) > 2**43
    tasks, numbers = schedule.draws(2**50)
    assert min(numbers[tasks == 0].tolist()) == schedule.drawn_before(0, 2**50)


def test_a_single_task_is_drawn_every_time() -> None:
    schedule = Schedule([ONE], [123], 10, key=5)
    assert [len(schedule.draws(block)[0]) for block in range(3)] == [10, 10, 10]


def test_what_is_not_a_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="sum to 2\\^64"):
        Schedule([ONE // 2], [0], 10, key=0)
    with pytest.raises(ConfigError, match="phases"):
        Schedule([ONE], [ONE], 10, key=0)
    with pytest.raises(ConfigError, match="block_size"):
        Schedule([ONE], [0], 0, key=0)
