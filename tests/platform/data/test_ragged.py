from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.ragged import Ragged

LISTS = st.lists(st.lists(st.integers(1, 99), max_size=6), max_size=8)


@given(LISTS, st.randoms())
def test_take_is_what_indexing_lists_is(lists: list[list[int]], random) -> None:
    rows = [random.randrange(len(lists)) for _ in range(5)] if lists else []
    taken = Ragged.from_lists(lists).take(np.array(rows, dtype=np.int64))
    assert taken.to_lists() == [lists[row] for row in rows]


@given(LISTS)
def test_arrow_and_back_is_the_same(lists: list[list[int]]) -> None:
    ragged = Ragged.from_lists(lists)
    assert ragged.to_arrow().to_pylist() == lists
    assert Ragged.from_arrow(ragged.to_arrow()).to_lists() == lists


def test_a_slice_of_an_arrow_array_holds_its_own_rows_only() -> None:
    part = Ragged.from_arrow(pa.array([[1, 2], [3], [], [4, 5]], pa.list_(pa.int32())).slice(1, 2))
    assert part.to_lists() == [[3], []]
    assert part.values.tolist() == [3]


def test_concatenate_and_grouped() -> None:
    joined = Ragged.concatenate([Ragged.from_lists([[1], [2, 3]]), Ragged.from_lists([[], [4]])])
    assert joined.to_lists() == [[1], [2, 3], [], [4]]
    assert joined.grouped(np.array([1, 0, 3])).to_lists() == [[1], [], [2, 3, 4]]
    assert len(Ragged.from_lists([])) == 0
