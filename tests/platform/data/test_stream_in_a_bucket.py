"""A stream over caches in a bucket: the same blocks, and few requests, which are bounded by the shards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from object_store import Store, place, serve_s3

from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.stream import MixtureStream, StreamSpec

MakeSpec = Callable[..., StreamSpec]

BLOCKS = 120
REQUESTS_A_SHARD = 2
"""Its size is asked for, and then its bytes, here in one piece."""
REQUESTS_A_CACHE = 2


@pytest.fixture
def store(caches: dict[str, Path]) -> Iterator[Store]:
    files = {
        f"bucket/caches/{folder.name}/{path.name}": path.read_bytes()
        for folder in caches.values()
        for path in folder.iterdir()
        if path.is_file()
    }
    with serve_s3(files) as served:
        yield served


def in_bucket(spec: StreamSpec, store: Store) -> StreamSpec:
    tasks = (
        dataclasses.replace(task, cache=place(store, f"bucket/caches/{Path(task.cache).name}")) for task in spec.tasks
    )
    return dataclasses.replace(spec, tasks=tuple(tasks))


def test_L1_blocks_from_a_bucket_are_those_from_a_folder_with_bounded_requests(
    make_spec: MakeSpec, store: Store, tmp_path: Path
) -> None:
    spec = make_spec()
    local, remote = MixtureStream(spec), MixtureStream(in_bucket(spec, store), Copies(str(tmp_path / "copies")))
    assert remote.spec.fingerprint == spec.fingerprint
    counts = []
    for block in range(BLOCKS):
        assert remote.build_block(block).equals(local.build_block(block))
        counts.append(len(store.requests))
    shards = [name for name in store.files if name.endswith(".arrow")]
    drawn = [name for name in shards if "idle" not in name]
    assert len(store.requests) <= REQUESTS_A_SHARD * len(drawn) + REQUESTS_A_CACHE * 3
    # every task is in its second epoch by then: nothing is asked for a second time
    assert counts[-1] == counts[BLOCKS // 2]
    a_block = [after - before for before, after in itertools.pairwise(counts)]
    tasks, window = 3, spec.window_shards
    assert max(a_block) <= tasks * 2 * window * REQUESTS_A_SHARD  # a window, and the next one read ahead


def test_requests_stay_bounded_where_not_all_shards_fit_on_the_node(
    make_spec: MakeSpec, store: Store, tmp_path: Path
) -> None:
    spec = make_spec()
    largest = max(len(data) for name, data in store.files.items() if name.endswith(".arrow"))
    copies = Copies(str(tmp_path / "copies"), size_bytes=3 * largest)
    remote, local = MixtureStream(in_bucket(spec, store), copies), MixtureStream(spec)
    for block in range(BLOCKS):
        assert remote.build_block(block).equals(local.build_block(block))
    held = sum(path.stat().st_size for path in (tmp_path / "copies").rglob("*") if path.is_file())
    assert held <= 4 * largest
    assert len(store.requests) <= BLOCKS * 3 * 2 * spec.window_shards * REQUESTS_A_SHARD
