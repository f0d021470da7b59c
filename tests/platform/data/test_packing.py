from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.packing import PACKINGS, pack
from mixtura.platform.errors import UnknownNameError

LENGTHS = st.lists(st.tuples(st.integers(1, 16), st.integers(1, 8)), min_size=1, max_size=60)


def rows_of(name: str, lengths: list[tuple[int, int]]) -> list[int]:
    inputs, targets = (np.array(side, dtype=np.int64) for side in zip(*lengths, strict=True))
    return pack(name, inputs, targets, 16, 8).tolist()


@pytest.mark.parametrize("name", PACKINGS)
@given(lengths=LENGTHS)
def test_every_example_is_in_one_row_and_every_row_fits(name: str, lengths: list[tuple[int, int]]) -> None:
    rows = rows_of(name, lengths)
    assert len(rows) == len(lengths)
    assert set(rows) == set(range(max(rows) + 1))
    for side, room in ((0, 16), (1, 8)):
        assert np.bincount(rows, weights=[pair[side] for pair in lengths]).max() <= room


def best_fit_by_its_definition(lengths: list[tuple[int, int]]) -> list[int]:
    """The largest first, each into the row with the least room for inputs in which both sides fit."""
    least = [min(pair[side] for pair in lengths) for side in range(2)]
    lonely = [at for at, (inputs, targets) in enumerate(lengths) if inputs + least[0] > 16 or targets + least[1] > 8]
    rows = {at: row for row, at in enumerate(lonely)}
    left: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: (-max(lengths[at][0] * 8, lengths[at][1] * 16), at)):
        if at in rows:
            continue
        inputs, targets = lengths[at]
        fitting = [row for row, room in enumerate(left) if room[0] >= inputs and room[1] >= targets]
        if not fitting:
            left.append([16, 8])
            fitting = [len(left) - 1]
        best = min(fitting, key=lambda row: left[row][0])
        left[best] = [left[best][0] - inputs, left[best][1] - targets]
        rows[at] = len(lonely) + best
    return [rows[at] for at in range(len(lengths))]


def rooms_of(lengths: list[tuple[int, int]], rows: list[int]) -> list[tuple[int, int]]:
    """What is left in every row, sorted: rows that are equally full may take each other's examples."""
    used = [np.bincount(rows, weights=[pair[side] for pair in lengths]) for side in range(2)]
    return sorted(zip((16 - used[0]).tolist(), (8 - used[1]).tolist(), strict=True))


@given(st.lists(st.tuples(st.integers(1, 16), st.just(1)), min_size=1, max_size=8))
def test_best_fit_leaves_the_rooms_that_its_definition_leaves(lengths: list[tuple[int, int]]) -> None:
    expected = best_fit_by_its_definition(lengths)
    assert rooms_of(lengths, rows_of("best_fit", lengths)) == rooms_of(lengths, expected)


@given(LENGTHS)
def test_best_fit_takes_no_more_rows_than_greedy(lengths: list[tuple[int, int]]) -> None:
    inputs = [(one, 1) for one, _ in lengths]
    assert max(rows_of("best_fit", inputs)) <= max(rows_of("greedy", inputs))


def test_greedy_closes_its_row_when_either_side_does_not_fit_and_at_the_end_of_a_group() -> None:
    assert rows_of("greedy", [(10, 1), (6, 1), (1, 1), (1, 7), (1, 1)]) == [0, 0, 1, 1, 2]
    assert rows_of("greedy", [(1, 1)] * 18) == [0] * 8 + [1] * 8 + [2] * 2  # groups of 16 examples, 8 targets a row


def test_none_gives_every_example_a_row() -> None:
    assert rows_of("none", [(1, 1)] * 3) == [0, 1, 2]


@pytest.mark.parametrize("name", PACKINGS)
def test_nothing_to_pack_is_no_rows(name: str) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert pack(name, nothing, nothing, 16, 8).tolist() == []


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="nearest: 'best_fit'"):
        rows_of("bestfit", [(1, 1)])
