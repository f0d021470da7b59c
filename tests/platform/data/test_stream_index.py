"""Law L1: any step is found by a walk over lengths alone, and what was walked is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mixtura.platform.data.lanes import RankStream, merge_states
from mixtura.platform.data.objectives import OBJECTIVES
from mixtura.platform.data.stream import MixtureStream, StreamSpec
from mixtura.platform.data.stream_index import StreamIndex

MakeSpec = Callable[..., StreamSpec]

LONG = {"inputs_length": 32, "targets_length": 40}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": "greedy"},
        {"packing": "none"},
        {"block_size": 1},
        {"draws": "sampled"},
        {"chunks": "original"},
        {"decoder_row": 24},
        {"features": "prefix_lm"},
    ],
)
def test_L1_a_step_far_from_a_checkpoint_is_found_by_walking(make_spec: MakeSpec, changes: dict) -> None:
    stream = MixtureStream(make_spec(**changes))
    index, ranks = StreamIndex(stream), [RankStream(stream, rank, 3) for rank in range(3)]
    for step in range(20):
        assert index.state(step) == merge_states([rank.state() for rank in ranks]), step
        for rank in ranks:
            rank.next_batch()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("features", ["encoder_decoder", "lm"])
def test_the_walk_knows_the_rows_of_every_objective(
    make_spec: MakeSpec, with_objective: Callable[[StreamSpec, str], StreamSpec], objective: str, features: str
) -> None:
    stream = MixtureStream(with_objective(make_spec(features=features, **LONG), objective))
    assert stream.count_rows(3, 12).tolist() == [len(stream.build_block(block)) for block in range(3, 12)]


def test_the_walk_reads_no_tokens(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = MixtureStream(make_spec())
    expected = StreamIndex(stream).state(30)
    stream.open()

    def read(*_: object) -> None:
        raise AssertionError("tokens were asked for")

    for reader in filter(None, stream._readers):
        monkeypatch.setattr(reader, "draw", read)
    assert StreamIndex(stream).state(30) == expected


def test_an_index_is_kept_and_gone_on_with(make_spec: MakeSpec, tmp_path: Path) -> None:
    stream = MixtureStream(make_spec())
    near, far = StreamIndex(stream).state(10), StreamIndex(stream).state(900)
    told: list[tuple[int, int]] = []
    assert StreamIndex(stream, tmp_path).state(10) == near
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert list(first) == ["rounds-000000000.npy"]
    assert StreamIndex(stream, tmp_path).state(900, lambda *at: told.append(at)) == far
    assert len(list(tmp_path.iterdir())) == len(told) > 1
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert all((tmp_path / name).read_bytes() == data for name, data in first.items())

    class Unread(MixtureStream):
        def count_rows(self, first: int, stop: int) -> None:  # type: ignore[override]
            raise AssertionError("this was walked before")

    assert StreamIndex(Unread(stream.spec), tmp_path).state(900) == far


def test_lanes_past_empty_blocks_stand_where_taking_rows_leaves_them(make_spec: MakeSpec) -> None:
    stream = MixtureStream(make_spec(lanes=2, global_batch_size=2, block_size=1))
    index, rank = StreamIndex(stream), RankStream(stream)
    for step in range(60):
        assert index.state(step) == rank.state()
        rank.next_batch()
