"""One window of a rank's blocks as a Ray Data pipeline: requests out, tables back, in the order of the plan."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.errors import MixturaError, from_plain, to_plain

if TYPE_CHECKING:
    import pyarrow as pa


_MOST_TOGETHER = 16
"""Blocks that one task builds, at most. An answer costs the rank's process about 8 ms, each block in it less than 1."""

Planned = tuple[int, int]
"""(lane, round)"""


@lru_cache(maxsize=2)
def _opened(stream_json: str) -> MixtureStream:
    """A stream with its caches mapped, once for each builder process."""
    return MixtureStream.from_dict(json.loads(stream_json))


def build_block(block: int, stream_json: str) -> pa.Table:
    """A block by its number."""
    return _opened(stream_json).build_block(block)


def build_or_tell(requests: pa.Table, stream_json: str, build: Callable[[int, str], pa.Table]) -> pa.Table:
    """One row for each request (`lane`, `round`, `block`), with the bytes of the block's table as `rows`.

    So a block without rows arrives like any other, and Ray Data never looks into one. What is wrong is told as an
    `error` in the last row, since Ray Data would keep only the text of an exception.
    """
    import pyarrow as pa

    lanes, turns, blocks = (requests.column(name).to_pylist() for name in ("lane", "round", "block"))
    sink, ends = pa.BufferOutputStream(), [0]
    errors: list[str | None] = []
    for block in blocks:
        try:
            table = build(block, stream_json)
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            errors.append(None)
        except MixturaError as error:
            errors.append(json.dumps(to_plain(error)))
        ends.append(sink.tell())
        if errors[-1] is not None:
            break
    # An array made of memory views would never let go of them (pyarrow 25): the array is put together from its parts.
    offsets = pa.py_buffer(np.array(ends, dtype=np.int64))
    answer = {
        "lane": pa.array(lanes[: len(errors)], pa.int32()),
        "round": pa.array(turns[: len(errors)], pa.int64()),
        "rows": pa.Array.from_buffers(pa.large_binary(), len(errors), [None, offsets, sink.getvalue()]),
        "error": pa.array(errors, pa.string()),
    }
    return pa.table(answer)


def _tables(answer: pa.Table) -> Iterator[tuple[int, int, pa.Table, int]]:
    """(lane, round, table, bytes), copied out of the object store: what stays there would keep all its neighbours."""
    import pyarrow as pa

    for lane, turn, rows, error in zip(*(answer.column(name) for name in answer.column_names), strict=True):
        if error.is_valid:
            raise from_plain(json.loads(error.as_py()))
        theirs = rows.as_buffer()
        mine = pa.allocate_buffer(theirs.size)  # of arrow's pool, which gives memory back to the system
        np.frombuffer(mine, np.uint8)[:] = np.frombuffer(theirs, np.uint8)
        yield lane.as_py(), turn.as_py(), pa.ipc.open_stream(mine).read_all(), mine.size


def task_sizes(blocks: int, builders: int, *, first: bool = False) -> list[int]:
    """How many blocks each task builds: many, as an answer costs more than what is in it, but work for all builders.

    The `first` window begins with small ones: one block that has to wait for its shard keeps no more others back than
    came before it.

    >>> task_sizes(64, builders=1), task_sizes(10, builders=2), task_sizes(3, builders=4)
    ([16, 16, 16, 16], [2, 2, 2, 2, 2], [1, 1, 1])
    >>> task_sizes(64, builders=1, first=True)
    [1, 1, 2, 4, 8, 16, 16, 16]
    """
    most = max(1, min(_MOST_TOGETHER, blocks // (2 * builders)))
    sizes: list[int] = []
    while left := blocks - sum(sizes):
        sizes.append(min(left, most, max(1, sum(sizes)) if first else most))
    return sizes


class Receiver(Protocol):
    """Who is told what a pipeline does, on the pipeline's thread."""

    def arrived(self, lane: int, turn: int, table: pa.Table, size: int) -> None:
        """A block is there."""

    def failed(self, error: BaseException) -> None:
        """A block could not be built."""

    def ended(self, window: BlockPipeline) -> None:
        """All blocks came, or none comes any more."""


class BlockPipeline(threading.Thread):
    """Builds the planned blocks with so many builders at a time; `statistics` is Ray Data's account of it."""

    def __init__(
        self,
        stream: MixtureStream,
        planned: Sequence[Planned],
        receiver: Receiver,
        *,
        name: str,
        builder_cpus: float,
        builders: int,
        memory: int,
        first: bool,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.statistics = ""
        self._stream, self._planned, self._receiver = stream, planned, receiver
        self._builder_cpus, self._builders, self._memory = builder_cpus, builders, memory
        self._first = first
        self._dataset: Any = None
        self._stopped = threading.Event()

    def run(self) -> None:
        """From the requests to the last block."""
        try:
            self._dataset = self._make_dataset()
            if self._stopped.is_set():
                return
            for answer in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                for lane, turn, table, size in _tables(answer):
                    self._receiver.arrived(lane, turn, table, size)
                if self._stopped.is_set():
                    return
            self.statistics = self._dataset.stats()
        except BaseException as error:  # noqa: BLE001 - handed to the rank's own thread, which raises it
            self._receiver.failed(error)
        finally:
            self._receiver.ended(self)

    @property
    def builders(self) -> int:
        """Tasks at a time."""
        return self._builders

    def stop(self, patience_s: float) -> None:
        """Cancel what is under way, and wait for the end."""
        self._stopped.set()
        deadline = time.monotonic() + patience_s
        while self.is_alive() and time.monotonic() < deadline:
            self._cancel_tasks()
            self.join(0.1)

    def _cancel_tasks(self) -> None:
        """Ray Data has no call for it while its first block is not there, but its executor is a thread with a name."""
        if self._dataset is None:
            return
        name = f"StreamingExecutor-{self._dataset.get_dataset_id()}"
        for thread in threading.enumerate():
            if thread.name == name:
                thread.shutdown(force=False)  # type: ignore[attr-defined]

    def _make_dataset(self) -> Any:
        import ray.data
        from ray.data import ExecutionResources

        requests = self._requests()
        # `from_arrow` would have a task with a whole CPU look at these tables, and wait for ever where none is free.
        dataset = ray.data.from_blocks(requests).map_batches(
            build_or_tell,
            fn_kwargs={"stream_json": json.dumps(self._stream.to_dict()), "build": build_block},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self._builder_cpus,
            concurrency=min(self._builders, len(requests)),
        )
        dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=self._builder_cpus * self._builders, object_store_memory=self._memory
        )
        return dataset

    def _requests(self) -> list[pa.Table]:
        """What each task is to build."""
        import pyarrow as pa

        rows = deque(
            {"lane": lane, "round": turn, "block": self._stream.block_of(turn, lane)} for lane, turn in self._planned
        )
        sizes = task_sizes(len(rows), self._builders, first=self._first)
        return [pa.Table.from_pylist([rows.popleft() for _ in range(size)]) for size in sizes]


def quiet_data() -> None:
    """Order kept, no progress bars and no notices on the terminal."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)
