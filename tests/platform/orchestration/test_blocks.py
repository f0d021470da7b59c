"""Blocks through Ray Data: the rows of a rank are those that one process builds, whatever happens to the builders."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mixtura.platform.config import Config
from mixtura.platform.data.lanes import Batch, RankStream, batch_fingerprint, lane_positions
from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.errors import CorruptCacheError
from mixtura.platform.orchestration import blocks
from mixtura.platform.orchestration.blocks import RayBlocks
from mixtura.platform.orchestration.mixture import stream_spec
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.workspace import workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

STEPS = 30
BLOCKS_PER_LANE = 2
"""Of a window; the steps need several windows of a lane's blocks."""


@pytest.fixture(scope="module")
def stream(module_workspace: Path, tiny_config: Callable[..., Config]) -> MixtureStream:
    tree = tiny_config(module_workspace, "blocks", "data.block_size=8")
    return MixtureStream(stream_spec(tree, prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())))


@pytest.fixture(scope="module")
def expected(stream: MixtureStream) -> list[str]:
    reader = RankStream(stream)
    return [batch_fingerprint([reader.next_batch()]) for _ in range(STEPS)]


@contextlib.contextmanager
def reader(
    stream: MixtureStream, rank: int = 0, world_size: int = 1, state: Mapping[str, Any] | None = None
) -> Iterator[tuple[RankStream, RayBlocks]]:
    source = RayBlocks(
        stream,
        lane_positions(stream.spec, rank, world_size, state),
        builder_cpus=0.5,
        builders=2,
        blocks_per_lane=BLOCKS_PER_LANE,
    )
    try:
        yield RankStream(stream, rank, world_size, state, source), source
    finally:
        source.close()


def test_the_batches_are_those_of_one_process_over_many_windows(stream: MixtureStream, expected: list[str]) -> None:
    with reader(stream) as (rank, source):
        found = [batch_fingerprint([rank.next_batch()]) for _ in range(STEPS)]
    assert found == expected
    assert source.blocks_built > 2 * BLOCKS_PER_LANE * stream.spec.lanes
    assert "MapBatches(build_or_tell)" in source.statistics


def test_ranks_with_pipelines_of_their_own_make_the_same_batches(stream: MixtureStream, expected: list[str]) -> None:
    with reader(stream, 0, 2) as (first, _), reader(stream, 1, 2) as (second, _):
        batches: list[list[Batch]] = [[first.next_batch(), second.next_batch()] for _ in range(4)]
    assert [batch_fingerprint(parts) for parts in batches] == expected[:4]


def test_a_pipeline_begins_in_the_middle_of_blocks(stream: MixtureStream, expected: list[str]) -> None:
    inline = RankStream(stream)
    for _ in range(5):
        inline.next_batch()
    state = inline.state()
    assert any(row for _, _, row in state["lanes"])
    with reader(stream, state=state) as (rank, _):
        assert [batch_fingerprint([rank.next_batch()]) for _ in range(STEPS - 5)] == expected[5:]


def test_a_builder_that_is_killed_mid_run_changes_no_fingerprint(
    stream: MixtureStream, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builders of two blocks, the second one of a later window, die once by SIGKILL in the middle of their work."""
    build = blocks.build_block
    doomed = [stream.block_of(0, 3), stream.block_of(2 * BLOCKS_PER_LANE, 1)]

    def dies_once(request: pa.Table, spec_json: str) -> pa.Table:
        built = build(request, spec_json)
        block = request.column("block")[0].as_py()
        if block in doomed:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(tmp_path / f"killed-{block}", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return built

    monkeypatch.setattr(blocks, "build_block", dies_once)
    with reader(stream) as (rank, _):
        found = [batch_fingerprint([rank.next_batch()]) for _ in range(STEPS)]
    assert found == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"killed-{block}" for block in doomed)


def test_what_is_wrong_in_a_builder_is_raised_where_the_rank_reads(
    stream: MixtureStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(request: pa.Table, spec_json: str) -> pa.Table:
        raise CorruptCacheError("the cache is damaged")

    monkeypatch.setattr(blocks, "build_block", refuses)
    with reader(stream) as (rank, _), pytest.raises(CorruptCacheError, match="the cache is damaged"):
        rank.next_batch()
