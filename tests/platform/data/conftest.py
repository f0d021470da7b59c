"""Tiny token caches, and the spec of a stream over three of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from mixtura.platform.data.cache import commit, write_shard
from mixtura.platform.data.mixture import integer_rates
from mixtura.platform.data.ragged import Ragged, offsets_of
from mixtura.platform.data.stream import StreamSpec, StreamTask
from mixtura.platform.random_bits import integers, key

settings.register_profile("mixtura", deadline=None)  # the first example pays for imports
settings.load_profile("mixtura")


def _integers(low: int, high: int, count: int, seed: int) -> np.ndarray:
    """From the specified generator, so that caches are the same with every version of numpy."""
    return low + integers(key("test caches", seed), np.arange(count), high - low).astype(np.int64)


def _tokens(lengths: np.ndarray, seed: int) -> pa.Array:
    values = _integers(3, 900, int(lengths.sum()), seed).astype(np.int32)
    return Ragged(values, offsets_of(lengths)).to_arrow()


def make_supervised(directory: Path, shard_rows: list[int], longest: int = 30) -> Path:
    """A committed cache whose rows have up to `longest` input tokens and up to a third of it target tokens."""
    for index, rows in enumerate(shard_rows):
        inputs, targets = _integers(0, longest, rows, 200 + index), _integers(1, longest // 3, rows, 300 + index)
        table = pa.table({"inputs": _tokens(inputs, index), "targets": _tokens(targets, 100 + index)})
        write_shard(directory, index, len(shard_rows), "train", table)
    commit(directory, directory.name, {"made": "for a test"}, {"train": len(shard_rows)})
    return directory


def make_unsupervised(directory: Path, documents: list[list[int]]) -> Path:
    """A committed cache of documents with these lengths, shard by shard."""
    for index, lengths in enumerate(documents):
        table = pa.table({"tokens": _tokens(np.array(lengths, dtype=np.int64), index)})
        write_shard(directory, index, len(documents), "train", table)
    commit(directory, directory.name, {"made": "for a test"}, {"train": len(documents)})
    return directory


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """text: unsupervised, a few hundred pieces; pairs: 60 examples; one: a single one; idle: never drawn."""
    root = tmp_path_factory.mktemp("caches")
    documents = _integers(0, 400, 80, 400).reshape(4, 20).tolist()
    return {
        "text": make_unsupervised(root / "text-0123456789abcdef", documents),
        "pairs": make_supervised(root / "pairs-0123456789abcdef", [25, 0, 20, 15]),
        "one": make_supervised(root / "one-0123456789abcdef", [0, 1]),
        "idle": make_supervised(root / "idle-0123456789abcdef", [0]),
    }


@pytest.fixture(scope="session", name="make_unsupervised")
def make_unsupervised_fixture() -> Callable[[Path, list[list[int]]], Path]:
    """Makes a cache of documents with these lengths, shard by shard."""
    return make_unsupervised


@pytest.fixture(scope="session", name="make_supervised")
def make_supervised_fixture() -> Callable[[Path, list[int]], Path]:
    """Makes a cache of examples, so many in each shard."""
    return make_supervised


@pytest.fixture(scope="session")
def with_objective() -> Callable[[StreamSpec, str], StreamSpec]:
    """A stream whose unsupervised task has another objective."""

    def change(spec: StreamSpec, objective: str) -> StreamSpec:
        tasks = (dataclasses.replace(task, objective=objective) if task.objective else task for task in spec.tasks)
        return dataclasses.replace(spec, tasks=tuple(tasks))

    return change


@pytest.fixture(scope="session")
def make_spec(caches: dict[str, Path]) -> Callable[..., StreamSpec]:
    """A stream of four tasks with rates 5, 3, 1 and 0; keywords replace its fields."""

    def make(**changes: Any) -> StreamSpec:
        rates = integer_rates({"text": 5, "pairs": 3, "one": 1, "idle": 0})
        tasks = tuple(
            StreamTask(name, str(cache), rates[name], "span_corruption" if name == "text" else None)
            for name, cache in caches.items()
        )
        fields: dict[str, Any] = {
            "seed": 17,
            "tasks": tasks,
            "block_size": 24,
            "lanes": 6,
            "global_batch_size": 12,
            "inputs_length": 32,
            "targets_length": 16,
            "packing": "best_fit",
            "eos_id": 1,
            "first_sentinel": 999,
            "vocabulary_size": 1000,
            "window_shards": 2,
            "segment_rows": 4,
        }
        return StreamSpec(**{**fields, **changes})

    return make
