"""Blocks through Ray Data: ranks get the rows that one process builds, however many ranks, whatever kills a builder."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from mixtura.platform.data.cache import commit, write_shard
from mixtura.platform.data.lanes import RankStream, batch_fingerprint, lane_positions, merge_states
from mixtura.platform.data.mixture import integer_rates
from mixtura.platform.data.ragged import Ragged, offsets_of
from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.data.stream_spec import StreamSpec, StreamTask
from mixtura.platform.errors import ConfigError, CorruptCacheError
from mixtura.platform.orchestration import block_pipeline
from mixtura.platform.orchestration.blocks import RayBlocks, most_bytes
from mixtura.platform.random_bits import integers, key

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

STEPS, LANES = 24, 8
BLOCKS_PER_LANE = 2
"""Ahead; a step takes 4 rows of a lane, and its blocks have about 10, so the steps need several windows."""


def _numbers(low: int, high: int, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return low + integers(key("delivery", seed), np.arange(count), high - low).astype(np.int64)


def _tokens(lengths: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> pa.Array:
    return Ragged(_numbers(3, 900, int(lengths.sum()), seed).astype(np.int32), offsets_of(lengths)).to_arrow()


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> MixtureStream:
    """Two tasks, text and pairs, whose caches have two shards each."""
    root = tmp_path_factory.mktemp("caches")
    for shard in range(2):
        text = pa.table({"tokens": _tokens(_numbers(0, 300, 30, shard), shard)})
        write_shard(root / "text-0", shard, 2, "train", text)
        sides = {side: _tokens(_numbers(1, most, 40, shard + most), shard) for side, most in SIDES.items()}
        write_shard(root / "pairs-0", shard, 2, "train", pa.table(sides))
    for name in ("text-0", "pairs-0"):
        commit(root / name, name, {"made": "for a test"}, {"train": 2})
    rates = integer_rates({"text": 2, "pairs": 1})
    tasks = (
        StreamTask("text", str(root / "text-0"), rates["text"], "span_corruption"),
        StreamTask("pairs", str(root / "pairs-0"), rates["pairs"]),
    )
    lengths: dict[str, Any] = {
        "inputs_length": 32,
        "targets_length": 16,
        "block_size": 16,
        "lanes": LANES,
        "global_batch_size": 32,
    }
    vocabulary = {"eos_id": 1, "first_sentinel": 999, "vocabulary_size": 1000}
    return MixtureStream(StreamSpec(seed=3, tasks=tasks, packing="best_fit", **lengths, **vocabulary))


SIDES = {"inputs": 25, "targets": 9}


@pytest.fixture(scope="module")
def expected(stream: MixtureStream) -> list[str]:
    """The global batches, built in this process."""
    reader = RankStream(stream)
    return [batch_fingerprint([reader.next_batch()]) for _ in range(STEPS)]


@contextlib.contextmanager
def ranks(
    stream: MixtureStream, world_size: int = 1, state: Mapping[str, Any] | None = None, **changes: Any
) -> Iterator[list[tuple[RankStream, RayBlocks]]]:
    """All ranks of a run, each with a source of its own."""
    settings = {"builder_cpus": 1.0, "builders": 1, "blocks_per_lane": BLOCKS_PER_LANE, "memory": 10**8, **changes}
    with contextlib.ExitStack() as closing:
        made = []
        for rank in range(world_size):
            source = RayBlocks(stream, lane_positions(stream.spec, rank, world_size, state), **settings)
            closing.callback(source.close)
            made.append((RankStream(stream, rank, world_size, state, source), source))
        yield made


def batches(of_ranks: list[tuple[RankStream, RayBlocks]], steps: int) -> list[str]:
    """Fingerprints of the next global batches."""
    return [batch_fingerprint([rank.next_batch() for rank, _ in of_ranks]) for _ in range(steps)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
def test_any_number_of_ranks_makes_the_same_global_batches(
    stream: MixtureStream, expected: list[str], world_size: int
) -> None:
    with ranks(stream, world_size) as made:
        assert batches(made, STEPS) == expected
    assert sum(source.windows_begun for _, source in made) >= 3
    assert "MapBatches(build_or_tell)" in made[0][1].statistics


def test_the_number_of_ranks_may_change_between_attempts(stream: MixtureStream, expected: list[str]) -> None:
    """3, then 5, then 1, then 8 ranks, six steps each, going on in the middle of blocks."""
    found, state = [], None
    for world_size in (3, 5, 1, 8):
        with ranks(stream, world_size, state) as made:
            found += batches(made, STEPS // 4)
            state = merge_states([rank.state() for rank, _ in made])
        assert any(row for _, _, row in state["lanes"])
    assert found == expected


def test_more_ranks_than_lanes_are_refused(stream: MixtureStream) -> None:
    with pytest.raises(ConfigError, match="9 workers share 8 lanes"), ranks(stream, LANES + 1):
        pass


def test_builders_that_are_killed_at_random_change_no_batch(stream: MixtureStream, expected: list[str]) -> None:
    """SIGKILL for whichever process is building, three times while the steps go on."""
    chance, killed = random.Random(1), []
    with ranks(stream, builders=2) as made:
        found = batches(made, 3)
        for _ in range(3):
            killed.append(_kill_one_builder(chance))
            found += batches(made, 7)
    assert found == expected
    assert len(set(killed)) == 3


def _kill_one_builder(chance: random.Random) -> int:
    """The id of a process of this cluster that builds blocks, or is about to, and is killed."""
    builders = [process for process in psutil.Process().children(recursive=True) if _builds(process)]
    victim = chance.choice(builders)
    victim.kill()
    return victim.pid


def _builds(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        names = ("ray::MapBatches", "ray::IDLE")
        return process.name().startswith(names) and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_builder_that_is_killed_in_the_middle_of_its_work_changes_no_batch(
    stream: MixtureStream, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builders of two blocks, the second one of a later window, die once, with what they had built before it."""
    build = block_pipeline.build_block
    doomed = [stream.block_of(1, 3), stream.block_of(2 * BLOCKS_PER_LANE, 1)]

    def dies_once(block: int, stream_json: str) -> pa.Table:
        built = build(block, stream_json)
        if block in doomed:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(tmp_path / f"killed-{block}", os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return built

    monkeypatch.setattr(block_pipeline, "build_block", dies_once)
    with ranks(stream) as made:
        assert batches(made, STEPS) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"killed-{block}" for block in doomed)


def test_what_is_wrong_in_a_builder_is_raised_where_the_rank_reads(
    stream: MixtureStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(block: int, stream_json: str) -> pa.Table:
        raise CorruptCacheError("the cache is damaged")

    monkeypatch.setattr(block_pipeline, "build_block", refuses)
    with ranks(stream) as made, pytest.raises(CorruptCacheError, match="the cache is damaged"):
        batches(made, 1)


def test_a_block_without_rows_arrives_like_any_other(stream: MixtureStream, monkeypatch: pytest.MonkeyPatch) -> None:
    build = block_pipeline.build_block
    monkeypatch.setattr(block_pipeline, "build_block", lambda block, stream_json: build(block, stream_json).slice(0, 0))
    with ranks(stream) as made:
        tables = [made[0][1].get(lane, turn) for turn in range(3) for lane in range(LANES)]
    assert [len(table) for table in tables] == [0] * 3 * LANES
    assert tables[0].schema == stream.build_block(0).schema


def test_memory_stays_within_its_bound_over_many_windows(stream: MixtureStream) -> None:
    """Room for three of the largest blocks of each lane, where eight times as many were wished for."""
    memory = 3 * LANES * most_bytes(stream.spec)
    with ranks(stream, builders=2, blocks_per_lane=16, memory=memory) as made:
        (rank, source) = made[0]
        for _ in range(200):
            rank.next_batch()
    assert source.windows_begun > 10
    assert source.peak_bytes <= memory
    assert source.peak_blocks < 16 * LANES


def test_a_builder_that_waits_is_waited_for_and_lets_go_when_the_source_is_closed(
    stream: MixtureStream, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a shard is still being prepared. What prepares has CPUs of its own: here it is a task beside them."""
    import ray

    build, prepared, ended = block_pipeline.build_block, tmp_path / "prepared", tmp_path / "ended"
    late = LANES  # the first block of the second round

    def waits(block: int, stream_json: str) -> pa.Table:
        try:
            while block >= late and not prepared.exists():
                time.sleep(0.02)
        except BaseException:
            ended.touch()
            raise
        return build(block, stream_json)

    monkeypatch.setattr(block_pipeline, "build_block", waits)
    with ranks(stream, builders=2, builder_cpus=0.75) as made:
        batches(made, 1)
    _until(ended.exists)

    @ray.remote(num_cpus=0.5)
    def prepare() -> None:
        prepared.touch()

    with ranks(stream, builders=2, builder_cpus=0.75) as made:
        found = batches(made, 1)
        ray.get(prepare.remote(), timeout=30)
        found += batches(made, STEPS - 1)
    assert found == expected


def test_nothing_runs_any_more_of_a_source_that_is_closed(stream: MixtureStream) -> None:
    """Ray leaves a parked thread, its prefetcher, of a pipeline that is left early; it goes with its last reference."""
    before = set(threading.enumerate())
    with ranks(stream, 2, builders=2) as made:
        batches(made, 2)
    _until(lambda: {thread.name for thread in threading.enumerate() if thread not in before} <= {"Prefetcher"})


def _until(holds: Callable[[], bool], patience_s: float = 20.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)
