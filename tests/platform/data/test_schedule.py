from __future__ import annotations

import itertools
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.platform.data.mixture import ONE, integer_rates
from mixtura.platform.data.schedule import Draws, RateChange, SampledSchedule, Schedule, capped_changes
from mixtura.platform.errors import ConfigError, DataError
from mixtura.platform.random_bits import key

WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda weights: sum(weights) > 0)


def rates_of(weights: list[float]) -> tuple[int, ...]:
    return tuple(integer_rates({str(task): weight for task, weight in enumerate(weights)}).values())


def make_schedule(
    weights: list[float], block_size: int, seed: int = 0, changes: tuple[RateChange, ...] = ()
) -> Schedule:
    phases = [key("phase", seed, task) for task in range(len(weights))]
    return Schedule(rates_of(weights), phases, block_size, key("block", seed), changes)


def draws_of(schedule: Draws, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Tasks and draw numbers of a block, in its shuffled order."""
    counts = schedule.counts(block)
    tasks = np.repeat(np.arange(len(counts)), counts)
    numbers = [schedule.drawn_before(task, block) + np.arange(count) for task, count in enumerate(counts)]
    order = schedule.order(block)
    return tasks[order], np.concatenate(numbers)[order]


def check_law_2(schedule: Schedule, block: int) -> None:
    for task in range(len(schedule.rates)):
        exact = Fraction(schedule.elapsed(task, block), ONE)
        assert abs(schedule.drawn_before(task, block) - exact) < 1


def test_L2_counts_are_within_one_of_the_rates_over_a_million_draws() -> None:
    random = np.random.default_rng(1)
    for block_size in (1, 250, 4096):
        schedule = make_schedule([*(10 ** random.uniform(-6, 0, 12)), 0.0], block_size, seed=block_size)
        blocks = 1_000_000 // block_size
        for block in {*range(0, blocks, max(blocks // 2000, 1)), blocks}:
            check_law_2(schedule, block)
            for task, rate in enumerate(schedule.rates):
                assert schedule.elapsed(task, block) == block * block_size * rate


def test_L2_holds_for_the_draws_themselves() -> None:
    schedule = make_schedule([5, 3, 1e-3, 0], 256, seed=4)
    counted = np.zeros(4, dtype=np.int64)
    for block in range(4000):
        tasks, _ = draws_of(schedule, block)
        counted += np.bincount(tasks, minlength=4)
        check_law_2(schedule, block + 1)
        assert counted.tolist() == [schedule.drawn_before(task, block + 1) for task in range(4)]
    assert counted.sum() == pytest.approx(1_024_000, abs=4)
    assert counted[3] == 0


@given(WEIGHTS, st.integers(1, 40), st.integers(0, 2**70))
def test_L2_holds_for_any_rates_at_any_block(weights: list[float], block_size: int, block: int) -> None:
    check_law_2(make_schedule(weights, block_size), block)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(any), min_size=2, max_size=5),
    st.lists(st.integers(1, 2**40), min_size=4, max_size=4),
    st.integers(1, 4096),
    st.integers(0, 2**44),
)
def test_L2_holds_where_rates_change(weights: list[list[float]], lasting: list[int], size: int, block: int) -> None:
    blocks = np.cumsum(lasting).tolist()
    changes = tuple(RateChange(at, rates_of(one)) for at, one in zip(blocks, weights[1:], strict=False))
    schedule = make_schedule(weights[0], size, changes=changes)
    for at in (block, *blocks):
        check_law_2(schedule, at)
        for task in range(4):
            stages = [RateChange(0, rates_of(weights[0])), *changes, RateChange(2**50, ())]
            spent = sum(
                max(0, min(after.block, at) - stage.block) * size * stage.rates[task]
                for stage, after in itertools.pairwise(stages)
            )
            assert schedule.elapsed(task, at) == spent
            assert schedule.counts(at)[task] == schedule.drawn_before(task, at + 1) - schedule.drawn_before(task, at)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=30)
def test_block_windows_tile_the_draws_of_every_task(weights: list[float], block_size: int, seed: int) -> None:
    changes = (RateChange(3, rates_of([*weights[1:], 1.0])),)
    for schedule in (
        make_schedule(weights, block_size, seed),
        make_schedule(weights, block_size, seed, changes),
        SampledSchedule(rates_of(weights), block_size, seed),
    ):
        seen = defaultdict(list)
        for block in range(8):
            tasks, numbers = draws_of(schedule, block)
            for task in range(len(weights)):
                seen[task] += sorted(numbers[tasks == task].tolist())
        for task in range(len(weights)):
            assert seen[task] == list(range(schedule.drawn_before(task, 8)))


def test_a_block_is_shuffled_by_its_own_number() -> None:
    schedule = make_schedule([1, 1], 64)
    assert draws_of(schedule, 3)[0].tolist() == draws_of(schedule, 3)[0].tolist()
    assert draws_of(schedule, 3)[0].tolist() != draws_of(schedule, 4)[0].tolist()
    assert (np.diff(draws_of(schedule, 3)[0]) != 0).sum() > 20  # tasks are mixed, not one after the other


def test_draw_numbers_above_32_bits_are_right() -> None:
    schedule = make_schedule([1, 3], 256)
    _, numbers = draws_of(schedule, 2**36)
    assert int(numbers.max()) > 2**43
    tasks, numbers = draws_of(schedule, 2**50)
    assert min(numbers[tasks == 0].tolist()) == schedule.drawn_before(0, 2**50)


def test_a_single_task_is_drawn_every_time() -> None:
    schedule = Schedule([ONE], [123], 10, key=5)
    assert [sum(schedule.counts(block)) for block in range(3)] == [10, 10, 10]


def test_what_is_not_a_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="sum to 2\\^64"):
        Schedule([ONE // 2], [0], 10, key=0)
    with pytest.raises(ConfigError, match="phases"):
        Schedule([ONE], [ONE], 10, key=0)
    with pytest.raises(ConfigError, match="block_size"):
        Schedule([ONE], [0], 0, key=0)
    with pytest.raises(ConfigError, match="ascending blocks"):
        Schedule([ONE], [0], 1, key=0, changes=[RateChange(0, (ONE,))])
    with pytest.raises(ConfigError, match="sum to 2\\^64"):
        Schedule([ONE], [0], 1, key=0, changes=[RateChange(1, (0,)), RateChange(2, (ONE,))])


# ---- caps ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(1e-3, 1), min_size=2, max_size=6),
    st.lists(st.integers(200, 10**6), min_size=6, max_size=6),
    st.integers(1, 100),
    st.integers(0, 2**32),
)
def test_a_capped_task_is_drawn_up_to_its_cap_and_the_others_keep_their_proportions(
    weights: list[float], caps: list[int], block_size: int, seed: int
) -> None:
    rates = {str(task): weight for task, weight in enumerate(weights)}
    most = {str(task): cap for task, cap in enumerate(caps) if 0 < task < len(weights)}  # task 0 has no cap
    phases = {name: key("phase", seed, int(name)) for name in rates}
    changes = capped_changes(rates, most, phases.__getitem__, block_size)
    schedule = make_schedule(weights, block_size, seed, changes)
    far = changes[-1].block + 1000
    for name, cap in most.items():
        drawn = schedule.drawn_before(int(name), far)
        assert cap - block_size <= drawn <= cap
        assert schedule.drawn_before(int(name), far + 10**6) == drawn
    for change in changes:
        live = {name: rate for name, rate in rates.items() if change.rates[int(name)]}
        assert {name: change.rates[int(name)] for name in live} == {
            name: integer_rates({**dict.fromkeys(rates, 0.0), **live})[name] for name in live
        }
    assert changes[-1].rates == (ONE, *(0 for _ in weights[1:]))


def test_a_stream_whose_tasks_are_all_capped_ends_and_says_why() -> None:
    changes = capped_changes({"0": 1.0, "1": 3.0}, {"0": 100, "1": 900}, lambda _: 0, block_size=10)
    assert [change.block for change in changes] == [40, 100]
    schedule = Schedule(rates_of([1, 3]), [0, 0], 10, 7, changes)
    assert [schedule.drawn_before(task, 100) for task in range(2)] == [100, 900]
    assert sum(schedule.counts(99)) == 10
    with pytest.raises(DataError, match="the stream ends at block 100: .* mixture.repeats allows"):
        schedule.counts(100)


def test_no_caps_are_no_changes() -> None:
    assert capped_changes({"a": 1.0, "b": 0.0}, {"b": 0}, lambda _: 0, block_size=10) == ()


def test_a_cap_below_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="b may be drawn too seldom for one block of 100 draws"):
        capped_changes({"a": 1.0, "b": 1.0}, {"b": 20}, lambda _: 0, block_size=100)


# ---- independent draws -----------------------------------------------------------------------------------------------


def test_sampled_draws_have_their_shares_within_sampling_error() -> None:
    weights = [0.62, 0.25, 0.1, 0.03, 0.0]
    schedule = SampledSchedule(rates_of(weights), 256, key=3)
    draws = 400 * 256
    for task, weight in enumerate(weights):
        spread = np.sqrt(draws * weight * (1 - weight))
        assert abs(schedule.drawn_before(task, 400) - draws * weight) <= 4 * spread
    exact = make_schedule(weights, 256)
    distances = [abs(schedule.drawn_before(0, at) - at * 256 * 0.62) for at in range(1, 400)]
    assert max(distances) > 20 > max(abs(exact.drawn_before(0, at) - at * 256 * 0.62) for at in range(1, 400))


def test_sampled_counts_add_up_across_counted_parts_and_a_task_of_rate_0_is_never_drawn() -> None:
    schedule = SampledSchedule(rates_of([1, 2, 0]), 4, key=3)
    counted = np.zeros(3, dtype=np.int64)
    for block in range(1100):
        assert counted.tolist() == [schedule.drawn_before(task, block) for task in range(3)]
        counted += np.bincount(draws_of(schedule, block)[0], minlength=3)
        assert schedule.counts(block)[2] == 0


def test_sampled_draws_stand_in_the_order_in_which_they_were_drawn() -> None:
    schedule = SampledSchedule(rates_of([1, 1]), 64, key=3)
    tasks, numbers = draws_of(schedule, 5)
    for task in range(2):
        assert (np.diff(numbers[tasks == task]) == 1).all()
    assert (np.diff(tasks) != 0).sum() > 20
