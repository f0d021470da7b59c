"""Which blocks a rank has planned, under way and at hand, and that they stay within a bound; no Ray is needed for it.

A source here builds nothing by itself: a test lets the blocks of its windows arrive, in the order it wants.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mixtura.platform.data.mixture import integer_rates
from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.data.stream_spec import StreamSpec, StreamTask
from mixtura.platform.errors import CorruptCacheError, ResourceError
from mixtura.platform.orchestration.block_pipeline import build_or_tell, task_sizes
from mixtura.platform.orchestration.blocks import RayBlocks, blocks_that_fit, most_bytes, refuse_too_few_blocks

PATIENCE_S = 10.0


@pytest.fixture
def stream() -> MixtureStream:
    """Four lanes, and no cache, as nothing is built."""
    task = StreamTask("one", "nowhere/one-0", integer_rates({"one": 1})["one"])
    fields: dict[str, Any] = {"eos_id": 1, "first_sentinel": 999, "vocabulary_size": 1000, "packing": "best_fit"}
    lengths: dict[str, Any] = {
        "inputs_length": 64,
        "targets_length": 32,
        "block_size": 10,
        "lanes": 4,
        "global_batch_size": 8,
    }
    return MixtureStream(StreamSpec(seed=0, tasks=(task,), **lengths, **fields))


class FakePipeline:
    """A window whose blocks arrive when a test says so."""

    def __init__(self, planned: list[tuple[int, int]], source: HandDriven, builders: int) -> None:
        self.left, self.builders, self.statistics = list(planned), builders, "Ray Data says nothing"
        self.source, self.stopped = source, False

    def arrive(self, rows: int = 10, size: int = 1000) -> None:
        """The next block, with so many rows and bytes; the last one ends the window."""
        lane, turn = self.left.pop(0)
        self.source.arrived(lane, turn, pa.table({"row": list(range(rows))}), size)
        if not self.left:
            self.source.ended(self)  # type: ignore[arg-type]

    def stop(self, patience_s: float) -> None:
        """Remembered."""
        self.stopped = True


class HandDriven(RayBlocks):
    """A source whose windows are fake."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.begun: list[FakePipeline] = []
        super().__init__(*arguments, **settings)

    def _begin(self, planned: list[tuple[int, int]]) -> None:
        window = FakePipeline(planned, self, self._free_builders.pop())
        with self._changed:
            self._windows.append(window)  # type: ignore[arg-type]
            self.begun.append(window)
            self._changed.notify_all()

    def window(self, number: int) -> FakePipeline:
        """The window of that number, once it was begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) > number, PATIENCE_S), f"no window {number}"
        return self.begun[number]


@pytest.fixture
def source(stream: MixtureStream) -> Iterator[Callable[..., HandDriven]]:
    """Makes sources of two builders and four blocks for each of four lanes; keywords change that."""
    made: list[HandDriven] = []

    def make(**changes: Any) -> HandDriven:
        settings = {"builder_cpus": 0.5, "builders": 2, "blocks_per_lane": 4, "memory": 10**9}
        made.append(HandDriven(stream, dict.fromkeys(range(4), (0, 0)), **{**settings, **changes}))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert not one._conductor.is_alive()


def test_a_window_begins_before_the_one_before_it_ends(source: Callable[..., HandDriven]) -> None:
    blocks = source()
    assert blocks.window(0).left == [(lane, turn) for turn in (0, 1) for lane in range(4)]
    assert blocks.window(1).left == [(lane, turn) for turn in (2, 3) for lane in range(4)]
    assert [window.builders for window in blocks.begun] == [1, 1]
    for _ in range(8):
        blocks.begun[0].arrive()
    assert len(blocks.begun) == 2, "there is no room before the rank takes blocks"
    for turn in (0, 1):
        for lane in range(4):
            assert len(blocks.get(lane, turn)) == 10
    assert blocks.window(2).left == [(lane, turn) for turn in (4, 5) for lane in range(4)]
    assert blocks.begun[1].left, "and the second one is still under way"
    assert blocks.peak_blocks == 16


def test_one_builder_has_one_window_at_a_time(source: Callable[..., HandDriven]) -> None:
    blocks = source(builders=1)
    first = blocks.window(0)
    for _ in range(7):
        first.arrive()
    blocks.get(0, 0)
    assert len(blocks.begun) == 1
    first.arrive()
    assert blocks.window(1).builders == 1


def test_more_blocks_are_ahead_once_they_turn_out_to_be_small(
    source: Callable[..., HandDriven], stream: MixtureStream
) -> None:
    """Memory for 2 x 4 blocks of the largest size there can be: one ahead for each lane, until they are seen."""
    largest = most_bytes(stream.spec)
    blocks = source(memory=2 * 4 * largest)
    assert blocks.most_blocks == 4
    blocks.window(0).arrive(size=largest // 5)
    assert blocks.most_blocks == 4 * 4
    blocks.begun[0].arrive(size=largest)
    assert blocks.most_blocks == 4


def test_a_lane_whose_blocks_have_few_rows_does_not_starve(source: Callable[..., HandDriven]) -> None:
    """Lane 0 has empty blocks: its rank needs one more, with no room for any, as it cannot take those of others."""
    blocks = source()
    for number in (0, 1):
        window = blocks.window(number)
        while window.left:
            window.arrive(rows=0 if window.left[0][0] == 0 else 10)
    taken: list[int] = []
    rank = threading.Thread(target=lambda: taken.extend(len(blocks.get(0, turn)) for turn in range(5)))
    rank.start()
    assert blocks.window(2).left[0] == (0, 4)
    blocks.begun[2].arrive(rows=3)
    rank.join(PATIENCE_S)
    assert taken == [0, 0, 0, 0, 3]
    assert blocks.peak_blocks <= 16 + 1


def test_every_lane_gets_its_blocks_where_all_blocks_are_empty(source: Callable[..., HandDriven]) -> None:
    blocks, order = source(builders=1), [(lane, turn) for turn in range(3) for lane in range(4)]
    taken: list[int] = []
    rank = threading.Thread(target=lambda: taken.extend(len(blocks.get(*one)) for one in order))
    rank.start()
    for number in range(2):
        assert {lane for lane, _ in blocks.window(number).left} == {0, 1, 2, 3}
        while blocks.begun[number].left:
            blocks.begun[number].arrive(rows=0)
    rank.join(PATIENCE_S)
    assert taken == [0] * 12


def test_what_is_held_is_counted_in_bytes(source: Callable[..., HandDriven]) -> None:
    blocks = source()
    window = blocks.window(0)
    for size in (100, 200, 300, 400, 500):
        window.arrive(size=size)
    assert blocks.held_bytes == 1500
    blocks.get(0, 0)
    assert blocks.held_bytes == 1500, "the block of lane 0 is in hand"
    blocks.get(0, 1)
    assert blocks.held_bytes == 1400
    assert blocks.peak_bytes == 1500


def test_an_error_is_raised_where_the_rank_reads_after_what_came_before_it(source: Callable[..., HandDriven]) -> None:
    blocks = source()
    blocks.window(0).arrive()
    blocks.failed(CorruptCacheError("the cache is damaged"))
    assert len(blocks.get(0, 0)) == 10
    with pytest.raises(CorruptCacheError, match="the cache is damaged"):
        blocks.get(1, 0)


def test_closing_stops_what_is_under_way_and_tells_what_was_done(source: Callable[..., HandDriven]) -> None:
    blocks = source()
    for _ in range(8):
        blocks.window(0).arrive(size=500_000)
    second = blocks.window(1)
    blocks.close()
    assert second.stopped
    head, _, account = blocks.statistics.partition("\n\n")
    assert head.startswith("8 blocks in 2 windows; the rank waited 0.00 s; blocks held: 4.00 MB, at the peak 4.00 MB")
    assert account == "Ray Data says nothing"


def test_the_bound_holds_two_blocks_of_each_lane_or_is_refused_with_its_numbers(stream: MixtureStream) -> None:
    assert most_bytes(stream.spec) == 10 * ((64 + 32) * 4 + 64) + 4096 == 8576
    refuse_too_few_blocks(stream.spec, workers=1, memory=2 * 4 * 8576)
    with pytest.raises(ResourceError, match=r"4 of 4 lanes.* up to 0\.01 MB, are 0\.07 MB, but it may hold 0\.07 MB"):
        refuse_too_few_blocks(stream.spec, workers=1, memory=2 * 4 * 8576 - 1)
    refuse_too_few_blocks(stream.spec, workers=3, memory=2 * 2 * 8576)
    assert blocks_that_fit(2 * 4 * 8576, lanes=4, bytes_each=8576) == 1


@pytest.mark.parametrize(("blocks", "builders"), [(1, 1), (7, 2), (64, 1), (64, 3), (5, 16), (1000, 4)])
def test_tasks_have_all_blocks_and_leave_no_builder_without_work(blocks: int, builders: int) -> None:
    sizes = task_sizes(blocks, builders)
    assert sum(sizes) == blocks
    assert 1 <= min(sizes) <= max(sizes) <= 16
    assert len(sizes) >= min(blocks, builders)


def test_the_first_blocks_come_before_many_are_built_together() -> None:
    assert task_sizes(20, builders=1, first=True) == [1, 1, 2, 4, 8, 4]
    assert sum(task_sizes(1000, builders=4, first=True)) == 1000


def test_what_is_wrong_with_a_block_leaves_the_blocks_before_it() -> None:
    def build(block: int, stream_json: str) -> pa.Table:
        if block == 8:
            raise CorruptCacheError("the cache is damaged")
        return pa.table({"row": [block]})

    requests = pa.table({"lane": [0, 1, 2], "round": [5, 5, 5], "block": [7, 8, 9]})
    answer = build_or_tell(requests, "{}", build)
    assert answer.column("lane").to_pylist() == [0, 1]
    assert [error is None for error in answer.column("error").to_pylist()] == [True, False]


def test_a_builder_keeps_nothing_of_what_it_has_answered() -> None:
    table = pa.table({"row": np.zeros(100_000)})
    before = pa.total_allocated_bytes()
    for block in range(20):
        requests = pa.table({"lane": [0, 1], "round": [block, block], "block": [block, block]})
        assert len(build_or_tell(requests, "{}", lambda block, stream_json: table)) == 2
    assert pa.total_allocated_bytes() - before < 2 * table.nbytes
