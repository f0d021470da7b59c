from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.platform.data.permutation import EpochOrder, permute
from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import bits, key


@given(st.integers(0, 2**64 - 1), st.integers(1, 3000))
def test_permute_is_a_bijection(seed: int, count: int) -> None:
    assert sorted(permute(seed, np.arange(count), count).tolist()) == list(range(count))


@given(st.integers(0, 2**64 - 1), st.integers(2**20, 2**40), st.integers(0, 2**40))
def test_large_permutations_stay_in_range_and_never_collide(seed: int, count: int, start: int) -> None:
    points = (start + np.arange(500)) % count
    images = permute(seed, points, count)
    assert images.max() < count
    assert len(np.unique(images)) == 500


def test_one_point_alone_is_what_it_is_among_others() -> None:
    keys = bits(key("many"), np.arange(40))
    counts = np.array([1, 2, 5, 63, 64, 65, 1000, 2**40] * 5)
    points = counts - 1
    together = permute(keys, points, counts)
    alone = [int(permute(int(k), int(p), int(n))) for k, p, n in zip(keys, points, counts, strict=True)]
    assert together.tolist() == alone


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_order_of_a_few_things_comes_equally_often(count: int) -> None:
    orders = list(itertools.permutations(range(count)))
    keys = bits(key("orders", count), np.arange(100 * len(orders)))
    seen, times = np.unique(permute(keys[:, None], np.arange(count), count), axis=0, return_counts=True)
    assert len(seen) == len(orders)
    chi_square, freedom = ((times - 100) ** 2 / 100).sum(), len(orders) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("count", [65, 100, 1000])
def test_every_image_of_a_point_comes_equally_often(count: int) -> None:
    keys = bits(key("images", count), np.arange(100 * count))
    for point in (0, count - 1):
        times = np.bincount(permute(keys, point, count).astype(np.int64), minlength=count)
        assert ((times - 100) ** 2 / 100).sum() < count + 4 * np.sqrt(2 * count)


SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any)


@given(SHARDS, st.integers(1, 4), st.integers(1, 50), st.integers(0, 5))
@settings(max_examples=60)
def test_every_row_comes_once_in_an_epoch(shard_rows: list[int], window: int, segment: int, epoch: int) -> None:
    order = EpochOrder(9, shard_rows, window, segment)
    draws = epoch * order.size + np.arange(order.size)
    found = sorted(zip(*(column.tolist() for column in order.locate(draws)), strict=True))
    assert found == [(shard, row) for shard, rows in enumerate(shard_rows) for row in range(rows)]


@given(SHARDS, st.lists(st.integers(0, 2**45), min_size=1, max_size=20))
@settings(max_examples=30)
def test_a_draw_alone_is_where_it_is_among_others(shard_rows: list[int], draws: list[int]) -> None:
    order = EpochOrder(9, shard_rows, 2, 8)
    shards, rows = order.locate(np.array(draws))
    for draw, shard, row in zip(draws, shards, rows, strict=True):
        alone = EpochOrder(9, shard_rows, 2, 8).locate(np.array([draw]))
        assert (int(alone[0][0]), int(alone[1][0])) == (shard, row)


def test_epochs_differ_and_tasks_differ() -> None:
    order, other = EpochOrder(9, [300], 1, 10), EpochOrder(10, [300], 1, 10)
    first, second = order.locate(np.arange(300))[1], order.locate(np.arange(300, 600))[1]
    assert first.tolist() != second.tolist()
    assert first.tolist() != other.locate(np.arange(300))[1].tolist()


def test_reads_stay_in_a_window_of_shards_and_in_a_segment_of_rows() -> None:
    shards, rows = EpochOrder(3, [40] * 6, window_shards=2, segment_rows=8).locate(np.arange(240))
    for start in range(0, 240, 80):
        assert len(set(shards[start : start + 80].tolist())) == 2
    for start in range(0, 240, 8):
        assert len(set(shards[start : start + 8].tolist())) == 1
        assert len(set((rows[start : start + 8] // 8).tolist())) == 1


def test_early_draws_do_not_need_the_row_counts_of_later_windows() -> None:
    shard_rows = [40, 30, 20, 10, 50, 60]
    shards, rows = EpochOrder(3, shard_rows, window_shards=2, segment_rows=8).locate(np.arange(210))
    first_window = list(dict.fromkeys(shards.tolist()))[:2]
    inside = sum(shard_rows[shard] for shard in first_window)
    changed = [count if shard in first_window else count + 7 for shard, count in enumerate(shard_rows)]
    again = EpochOrder(3, changed, window_shards=2, segment_rows=8).locate(np.arange(inside))
    assert (again[0].tolist(), again[1].tolist()) == (shards[:inside].tolist(), rows[:inside].tolist())


def test_one_row_is_drawn_for_ever() -> None:
    shards, rows = EpochOrder(3, [0, 1, 0], 2, 16).locate(np.array([0, 1, 2**40]))
    assert (shards.tolist(), rows.tolist()) == ([1, 1, 1], [0, 0, 0])


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to draw"):
        EpochOrder(3, [0, 0], 2, 16)
    with pytest.raises(ConfigError, match="at least 1"):
        EpochOrder(3, [1], 0, 16)
