from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from mixtura.platform.data.lanes import (
    Batch,
    InlineBlocks,
    LaneCursor,
    RankStream,
    batch_fingerprint,
    drawn,
    lane_positions,
    merge_states,
)
from mixtura.platform.data.stream import MixtureStream, StreamSpec, ragged_column
from mixtura.platform.data.stream_index import StreamIndex
from mixtura.platform.errors import ConfigError, RunError

MakeSpec = Callable[..., StreamSpec]
STEPS = 25


@pytest.fixture(scope="module")
def stream(make_spec: MakeSpec) -> MixtureStream:
    return MixtureStream(make_spec())


def ranks_of(stream: MixtureStream, world_size: int, state: dict | None = None) -> list[RankStream]:
    return [RankStream(stream, rank, world_size, state) for rank in range(world_size)]


def step_all(ranks: list[RankStream]) -> str:
    return batch_fingerprint([rank.next_batch() for rank in ranks])


@pytest.fixture(scope="module")
def undisturbed(stream: MixtureStream) -> list[str]:
    ranks = ranks_of(stream, 1)
    return [step_all(ranks) for _ in range(STEPS)]


def test_batches_are_the_same_on_every_machine_and_version(undisturbed: list[str]) -> None:
    # A change here means that runs cannot go on: raise STREAM_VERSION.
    assert undisturbed[:3] == ["2edda593810718c2", "7142c8021a132447", "e68bf26a04df43e1"]


def test_every_step_has_another_batch(undisturbed: list[str]) -> None:
    assert len(set(undisturbed)) == STEPS


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 6])
def test_L1_batches_do_not_depend_on_the_number_of_workers(
    stream: MixtureStream, undisturbed: list[str], world_size: int
) -> None:
    ranks = ranks_of(stream, world_size)
    assert [step_all(ranks) for _ in range(STEPS)] == undisturbed


@pytest.mark.parametrize("changes", [{"packing": "none"}, {"packing": "greedy"}, {"block_size": 1}])
def test_L1_holds_for_other_packings_and_for_blocks_that_may_be_empty(make_spec: MakeSpec, changes: dict) -> None:
    stream = MixtureStream(make_spec(**changes))
    one, three = ranks_of(stream, 1), ranks_of(stream, 3)
    assert [step_all(one) for _ in range(8)] == [step_all(three) for _ in range(8)]
    assert StreamIndex(stream).state(8) == one[0].state() == merge_states([rank.state() for rank in three])


def test_a_block_without_draws_has_no_rows(make_spec: MakeSpec) -> None:
    stream = MixtureStream(make_spec(block_size=1))
    rows = [len(stream.build_block(block)) for block in range(60)]
    assert [count == 0 for count in rows] == [not any(stream.schedule.counts(block)) for block in range(60)]
    assert 0 in rows


def test_L1_a_run_goes_on_from_any_step_with_any_number_of_workers(
    stream: MixtureStream, undisturbed: list[str]
) -> None:
    ranks = ranks_of(stream, 2)
    for step in range(STEPS - 2):
        state = json.loads(json.dumps(merge_states([rank.state() for rank in ranks])))
        assert state["step"] == step
        resumed = ranks_of(stream, 1 + step % 6, state)
        assert [step_all(resumed), step_all(resumed)] == undisturbed[step : step + 2]
        step_all(ranks)


def test_L2_what_batches_count_as_drawn_is_what_their_lanes_drew(stream: MixtureStream) -> None:
    ranks = ranks_of(stream, 4)
    counted = np.zeros(4, dtype=np.int64)
    for step in range(STEPS):
        state = merge_states([rank.state() for rank in ranks])
        assert drawn(stream, state).tolist() == counted.tolist(), step
        if step % 7 == 3:
            ranks = ranks_of(stream, 3, state)
        counted += sum(rank.next_batch().counters["drawn"] for rank in ranks)


def test_L2_drawn_minus_trained_is_what_the_lanes_hold(stream: MixtureStream) -> None:
    ranks = ranks_of(stream, 4)
    trained = np.zeros(4, dtype=np.int64)
    for step in range(STEPS):
        state = merge_states([rank.state() for rank in ranks])
        held = sum(rank.in_lanes() for rank in ranks)
        assert (drawn(stream, state) - trained).tolist() == held.tolist(), step
        resumed = sum(rank.in_lanes() for rank in ranks_of(stream, 3, state))
        assert resumed.tolist() == held.tolist()
        trained += sum(rank.next_batch().examples for rank in ranks)
    assert trained[2] > 0  # the task of one example
    assert trained[3] == 0  # the task of rate 0


def test_batches_count_what_is_in_their_rows(stream: MixtureStream) -> None:
    batch = RankStream(stream).next_batch()
    for task in range(4):
        assert batch.examples[task] == (batch.segment_tasks == task).sum()
    assert batch.counters["input_tokens"].sum() == (batch.features["encoder_input_tokens"] > 0).sum()
    assert batch.counters["target_tokens"].sum() == batch.features["decoder_loss_weights"].sum()
    segments = (batch.segment_tasks >= 0).sum(axis=1)
    assert segments.tolist() == batch.features["encoder_segment_ids"].max(axis=1).tolist()


def test_rows_of_a_batch_are_in_lane_order(stream: MixtureStream) -> None:
    parts = [rank.next_batch() for rank in ranks_of(stream, 4)]
    assert parts[1].rows.tolist() == [2, 3, 10, 11]  # lanes 1 and 5 of 6, two rows each
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(12))
    assert {part.step for part in parts} == {0}
    whole = RankStream(stream).next_batch()
    assert whole.rows.tolist() == list(range(12))
    for name, array in parts[1].features.items():
        assert array.tolist() == whole.features[name][parts[1].rows].tolist()


class CannedBlocks:
    """Blocks of given numbers of rows; row k of a lane's rows has the single input token k + 1."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows
        self.asked: list[int] = []

    def get(self, lane: int, round_: int, /) -> pa.Table:
        self.asked.append(round_)
        first = sum(self.rows[:round_])
        return pa.table({"inputs": [[first + row + 1] for row in range(self.rows[round_])]})


def tokens(taken: list[pa.Table]) -> list[int]:
    return [token for table in taken for token in ragged_column(table, "inputs").values.tolist()]


def test_a_lane_goes_on_to_its_next_blocks_within_a_batch_and_past_empty_ones() -> None:
    blocks = CannedBlocks([3, 0, 1, 0, 4])
    cursor = LaneCursor(0, (0, 0), blocks)
    assert tokens(cursor.take(2)) == [1, 2]
    assert cursor.position == (0, 2)
    assert cursor.held().num_rows == 1
    assert tokens(cursor.take(3)) == [3, 4, 5]
    assert cursor.position == (4, 1)
    assert blocks.asked == [0, 1, 2, 3, 4]  # each once


def test_a_used_up_block_is_left_and_the_next_is_not_begun() -> None:
    blocks = CannedBlocks([2, 0, 5])
    cursor = LaneCursor(0, (0, 0), blocks)
    cursor.take(2)
    assert (cursor.position, cursor.held(), blocks.asked) == ((1, 0), None, [0])


def test_more_workers_than_lanes_are_refused(stream: MixtureStream) -> None:
    with pytest.raises(ConfigError, match="7 workers share 6 lanes"):
        RankStream(stream, 0, 7)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        RankStream(stream, 2, 2)


def test_a_state_of_another_stream_or_with_lanes_missing_is_refused(stream: MixtureStream, make_spec: MakeSpec) -> None:
    other = RankStream(MixtureStream(make_spec(seed=18))).state()
    with pytest.raises(RunError, match="were changed"):
        RankStream(stream, state=other)
    half = RankStream(stream, 0, 2).state()
    with pytest.raises(RunError, match=r"lacks lanes \[1, 3, 5\]"):
        RankStream(stream, state=half)
    later = RankStream(stream, 1, 2)
    later.next_batch()
    with pytest.raises(RunError, match="not of one step"):
        merge_states([half, later.state()])


def test_a_rank_owns_every_world_size_th_lane(stream: MixtureStream) -> None:
    assert lane_positions(stream.spec, 1, 4, None) == {1: (0, 0), 5: (0, 0)}
    state = StreamIndex(stream).state(10)
    assert list(lane_positions(stream.spec, 2, 3, state)) == [2, 5]


def test_blocks_may_come_from_elsewhere(stream: MixtureStream, undisturbed: list[str]) -> None:
    class Counting(InlineBlocks):
        def __init__(self) -> None:
            super().__init__(stream)
            self.asked: list[tuple[int, int]] = []

        def get(self, lane: int, round_: int, /) -> pa.Table:
            self.asked.append((lane, round_))
            return super().get(lane, round_)

    blocks = Counting()
    rank = RankStream(stream, blocks=blocks)
    batches: list[Batch] = [rank.next_batch() for _ in range(6)]
    assert [batch_fingerprint([batch]) for batch in batches] == undisturbed[:6]
    for lane in range(6):
        rounds = [round_ for asked, round_ in blocks.asked if asked == lane]
        assert rounds == list(range(len(rounds)))
