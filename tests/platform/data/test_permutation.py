from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtura.platform.data import permutation
from mixtura.platform.data.permutation import EpochOrder, permute, shard_order
from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import bits, derive, key


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


def unpermute(seed: int, image: int, count: int) -> int:
    """The inverse of `permute` above 64 points: its network backwards, walked until it lands below the count."""
    keys = [int(derive(seed, number)) for number in range(8)]
    width = (count - 1).bit_length()
    low_width = width // 2
    low_mask, high_mask = (1 << low_width) - 1, (1 << (width - low_width)) - 1
    while True:
        low, high = image & low_mask, image >> low_width
        for even, odd in zip(keys[6::-2], keys[7::-2], strict=True):
            low ^= int(bits(odd, high)) & low_mask
            high ^= int(bits(even, low)) & high_mask
        image = high << low_width | low
        if image < count:
            return image


@given(st.integers(0, 2**64 - 1), st.integers(65, 2**40), st.integers(0, 2**40))
def test_permute_has_an_inverse_for_any_size_up_to_2_to_the_40(seed: int, count: int, point: int) -> None:
    point %= count
    assert unpermute(seed, int(permute(seed, point, count)), count) == point


SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any)


def make_order(order_key: int, shard_rows: list[int], window_shards: int, segment_rows: int) -> EpochOrder:
    return EpochOrder(order_key, len(shard_rows), shard_rows.__getitem__, window_shards, segment_rows)


def located(order: EpochOrder, first: int, count: int) -> list[tuple[int, int]]:
    places = order.locate(first, count)
    return list(zip(places.shards.tolist(), places.rows.tolist(), strict=True))


@given(SHARDS, st.integers(1, 4), st.integers(1, 90), st.integers(0, 5))
@settings(max_examples=60)
def test_every_row_comes_once_in_an_epoch(shard_rows: list[int], window: int, segment: int, epoch: int) -> None:
    order = make_order(9, shard_rows, window, segment)
    found = sorted(located(order, epoch * order.size, order.size))
    assert found == [(shard, row) for shard, rows in enumerate(shard_rows) for row in range(rows)]


@given(SHARDS, st.integers(0, 2**45), st.integers(1, 90))
@settings(max_examples=30)
def test_a_draw_alone_is_where_it_is_among_others(shard_rows: list[int], first: int, count: int) -> None:
    places = make_order(9, shard_rows, 2, 8).locate(first, count)
    for place in range(count):
        order = make_order(9, shard_rows, 2, 8)
        alone = order.locate(first + place, 1)
        for column, whole in zip(
            (alone.shards, alone.rows, alone.epochs, alone.positions),
            (places.shards, places.rows, places.epochs, places.positions),
            strict=True,
        ):
            assert column.tolist() == whole[place : place + 1].tolist()
        assert (int(alone.epochs[0]), int(alone.positions[0])) == divmod(first + place, order.size)


@given(SHARDS, st.integers(1, 3), st.integers(1, 20))
@settings(max_examples=30)
def test_a_window_too_large_to_keep_is_visited_in_the_same_order(
    shard_rows: list[int], window: int, segment: int
) -> None:
    kept = make_order(9, shard_rows, window, segment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "_KEPT_ROWS", 0)
        computed = make_order(9, shard_rows, window, segment)
        assert located(computed, 0, 2 * computed.size) == located(kept, 0, 2 * kept.size)


def test_epochs_differ_and_tasks_differ() -> None:
    order, other = make_order(9, [300], 1, 10), make_order(10, [300], 1, 10)
    assert located(order, 0, 300) != located(order, 300, 300)
    assert located(order, 0, 300) != located(other, 0, 300)


def test_reads_stay_in_a_window_of_shards_and_in_a_segment_of_rows() -> None:
    places = make_order(3, [40] * 6, window_shards=2, segment_rows=8).locate(0, 240)
    for start in range(0, 240, 80):
        assert len(set(places.shards[start : start + 80].tolist())) == 2
    for start in range(0, 240, 8):
        assert len(set(places.shards[start : start + 8].tolist())) == 1
        assert len(set((places.rows[start : start + 8] // 8).tolist())) == 1


def test_the_first_epoch_asks_for_row_counts_window_by_window_and_for_all_where_it_ends() -> None:
    shard_rows = [40, 30, 20, 10, 50, 60]
    asked: list[int] = []

    def rows_of(shard: int) -> int:
        asked.append(shard)
        return shard_rows[shard]

    order = EpochOrder(3, 6, rows_of, window_shards=2, segment_rows=8)
    visited = shard_order(3, 0, 6).tolist()
    order.locate(0, 1)
    assert (asked, order.known_size) == (visited[:2], None)
    first = sum(shard_rows[shard] for shard in visited[:2])
    order.locate(first - 1, 1)
    assert asked == visited[:2]
    order.locate(first - 1, 2)
    assert asked == visited[:4]
    order.locate(209, 1)
    assert (asked, order.known_size) == (visited, None)
    order.locate(210, 1)
    assert (asked, order.known_size) == (visited, 210)  # each once


def test_the_shards_of_the_next_window_are_announced_when_one_is_begun() -> None:
    announced: list[list[int]] = []
    order = EpochOrder(3, 5, lambda _: 10, 2, 4, read_ahead=announced.append)
    visited = shard_order(3, 0, 5).tolist()
    order.locate(0, 15)
    assert announced == [visited[2:4]]
    order.locate(20, 1)
    assert announced[1:] == [visited[4:]]
    assert order.size == 50
    order.locate(40, 1)
    assert announced[2:] == [shard_order(3, 1, 5).tolist()[:2]]


def test_one_row_is_drawn_for_ever() -> None:
    order = make_order(3, [0, 1, 0], 2, 16)
    assert located(order, 0, 2) == [(1, 0), (1, 0)]
    far = order.locate(2**40, 3)
    assert (far.shards.tolist(), far.rows.tolist()) == ([1, 1, 1], [0, 0, 0])
    assert far.epochs.tolist() == [2**40, 2**40 + 1, 2**40 + 2]


def test_draws_behind_2_to_the_31_are_found() -> None:
    order = make_order(3, [4, 3], 1, 2)
    assert sorted(located(order, 7 * 2**33, 7)) == sorted(located(order, 0, 7))
    assert set(order.locate(7 * 2**33, 7).epochs.tolist()) == {2**33}


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to draw"):
        make_order(3, [0, 0], 2, 16).locate(0, 1)
    with pytest.raises(ConfigError, match="at least 1"):
        make_order(3, [1], 0, 16)
