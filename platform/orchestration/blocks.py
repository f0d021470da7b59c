"""Blocks for one rank through a Ray Data pipeline of its own, a window of block numbers at a time."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mixtura.platform.data.stream import MixtureStream, StreamSpec, plan_window
from mixtura.platform.errors import MixturaError, from_plain, to_plain

if TYPE_CHECKING:
    import pyarrow as pa


_ERROR = "error"


@lru_cache(maxsize=2)
def _opened(spec_json: str) -> MixtureStream:
    """A stream with its caches mapped, once for each builder process."""
    return MixtureStream(StreamSpec.from_dict(json.loads(spec_json)))


def build_block(request: pa.Table, spec_json: str) -> pa.Table:
    """The block that a request of one row (`lane`, `round`, `block`) asks for, with lane and round beside each row."""
    import pyarrow as pa

    lane, turn, block = (request.column(name)[0].as_py() for name in ("lane", "round", "block"))
    rows = _opened(spec_json).build_block(block)
    count = len(rows)
    rows = rows.append_column("lane", pa.array([lane] * count, pa.int32()))
    return rows.append_column("round", pa.array([turn] * count, pa.int64())).replace_schema_metadata(None)


def build_or_tell(request: pa.Table, spec_json: str, build: Callable[[pa.Table, str], pa.Table]) -> pa.Table:
    """A block, or a table of one row that says what is wrong: Ray Data would keep only the text of an error."""
    import pyarrow as pa

    try:
        return build(request, spec_json)
    except MixturaError as error:
        return pa.table({_ERROR: [json.dumps(to_plain(error))]})


class RayBlocks:
    """A `BlockSource` whose blocks are built anywhere in the cluster, in the order that this rank will need them.

    A thread runs one pipeline after the other; while the rank still consumes one window the next is being built.
    The order of building is decided by what the rank has consumed, the content of a block by its number alone, so
    neither timing nor a builder that dies (Ray runs its task again) changes a row.
    """

    def __init__(
        self,
        stream: MixtureStream,
        state: Mapping[int, tuple[int, int]],
        *,
        builder_cpus: float,
        builders: int,
        blocks_per_lane: int,
    ) -> None:
        self._stream = stream
        self._spec_json = json.dumps(stream.spec.to_dict())
        self._lanes = sorted(state)
        self._next_round = {lane: turn for lane, (turn, _) in state.items()}
        self._builder_cpus, self._builders = builder_cpus, builders
        self._window = blocks_per_lane * len(self._lanes)
        self._ready: dict[int, deque[tuple[int, Any]]] = defaultdict(deque)
        self._arrived: queue.Queue[tuple[int, int, Any] | BaseException] = queue.Queue(maxsize=self._window)
        self._rows_ahead = dict.fromkeys(self._lanes, 0)
        self._mean_rows = float(stream.spec.block_size)
        self._closed = threading.Event()
        self.statistics = ""
        """Ray Data's own account of the last window."""
        self.blocks_built = 0
        self._thread = threading.Thread(target=self._produce, name="ray-blocks", daemon=True)
        self._thread.start()

    def get(self, lane: int, turn: int) -> pa.Table:
        """The block of a lane's turn; waits until it is there."""
        while not self._ready[lane]:
            item = self._arrived.get()
            if isinstance(item, BaseException):
                raise item
            found_lane, found_turn, table = item
            self._ready[found_lane].append((found_turn, table))
        found_turn, table = self._ready[lane].popleft()
        assert found_turn == turn, "a rank asks for the blocks of a lane one after the other"
        self._rows_ahead[lane] -= len(table)
        return table

    def close(self) -> None:
        """Stop building; what is under way is let go."""
        self._closed.set()

    def _produce(self) -> None:
        try:
            quiet_data()
            while not self._closed.is_set():
                for item in self._run_window():
                    self._deliver(item)
                    if self._closed.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 - handed to the rank's own thread, which raises it
            self._deliver(error)

    def _deliver(self, item: tuple[int, int, Any] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._arrived.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def _run_window(self) -> Iterator[tuple[int, int, Any]]:
        import ray.data

        planned = plan_window(self._lanes, self._next_round, self._rows_ahead, self._mean_rows, self._window)
        requests = [{"lane": lane, "round": turn, "block": self._stream.block_of(turn, lane)} for lane, turn in planned]
        dataset = ray.data.from_items(requests, override_num_blocks=len(requests)).map_batches(
            build_or_tell,
            fn_kwargs={"spec_json": self._spec_json, "build": build_block},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self._builder_cpus,
            concurrency=self._builders,
        )
        expected = deque(planned)
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield from self._tables(expected, table)
        yield from (self._account(lane, turn, None) for lane, turn in expected)
        self.statistics = dataset.stats()

    def _tables(self, expected: deque[tuple[int, int]], table: pa.Table) -> Iterator[tuple[int, int, Any]]:
        """What arrived, by block; a block without rows leaves no trace in a pipeline and is filled in."""
        if _ERROR in table.column_names:
            raise from_plain(json.loads(table.column(_ERROR)[0].as_py()))
        start = 0
        while start < len(table):
            lane, turn = table.column("lane")[start].as_py(), table.column("round")[start].as_py()
            while expected and expected[0] != (lane, turn):
                yield self._account(*expected.popleft(), None)
            expected.popleft()
            end = start
            while end < len(table) and (table.column("lane")[end].as_py(), table.column("round")[end].as_py()) == (
                lane,
                turn,
            ):
                end += 1
            yield self._account(lane, turn, table.slice(start, end - start).drop_columns(["lane", "round"]))
            start = end

    def _account(self, lane: int, turn: int, table: Any) -> tuple[int, int, Any]:
        if table is None:
            table = self._stream.build_block(self._stream.block_of(turn, lane)).slice(0, 0)
        self._next_round[lane] = turn + 1
        self._rows_ahead[lane] += len(table)
        self.blocks_built += 1
        self._mean_rows += (len(table) - self._mean_rows) / min(self.blocks_built, 100)
        return lane, turn, table


def quiet_data() -> None:
    """Order kept, no progress bars and no notices on the terminal."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)
