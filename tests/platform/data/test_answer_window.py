from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.answer_window import answer_window
from mixtura.platform.errors import ConfigError


def windows(inputs: list[int], targets: list[int], length: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(answer_window(inputs, targets, length, key) or ()) for key in range(3000))


def test_every_window_with_the_answer_comes_equally_often_and_no_other() -> None:
    found = windows([0, 3, 5, 7, 9, 11, 13, 15, 17, 18], [5, 7, 9], 4)
    assert set(found) == {(3, 5, 7, 9), (5, 7, 9, 11)}
    found = windows(list(range(10, 30)), [20], 3)
    assert set(found) == {(18, 19, 20), (19, 20, 21), (20, 21, 22)}
    assert all(abs(times - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for times in found.values())


def test_windows_do_not_reach_over_the_ends() -> None:
    assert set(windows([7, 8, 9, 10, 11], [7], 3)) == {(7, 8, 9)}
    assert set(windows([7, 8, 9, 10, 11], [11], 3)) == {(9, 10, 11)}
    assert set(windows([7, 8, 9, 10, 11], [8], 3)) == {(7, 8, 9), (8, 9, 10)}


def test_the_first_of_several_answers_counts() -> None:
    assert set(windows([5, 1, 1, 1, 1, 5, 5], [5], 2)) == {(5, 1)}


def test_short_inputs_stay_whether_or_not_the_answer_is_in_them() -> None:
    assert answer_window([1, 2, 3], [9], 3, key=0) == [1, 2, 3]
    assert answer_window([], [9], 3, key=0) is None


def test_long_inputs_without_the_whole_answer_are_left_out() -> None:
    assert answer_window([1, 2, 3, 4], [9], 3, key=0) is None
    assert answer_window([1, 2, 3, 4], [4, 5], 3, key=0) is None
    assert answer_window([1, 2, 3, 4], [1, 2, 3, 4], 3, key=0) is None
    assert answer_window([1, 2, 3, 4], [], 3, key=0) is None
    with pytest.raises(ConfigError, match="length is 0"):
        answer_window([1], [1], 0, key=0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 29), st.integers(1, 4), st.integers(4, 12))
def test_a_window_holds_the_answer(inputs: list[int], place: int, size: int, length: int) -> None:
    targets = inputs[place : place + size] or inputs[:1]
    window = answer_window(inputs, targets, length, key=place)
    assert window is not None
    assert len(window) == min(length, len(inputs))
    assert any(window[start : start + len(targets)] == targets for start in range(len(window)))
