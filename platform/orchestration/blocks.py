"""The blocks of one rank: which are planned, under way, ready and taken, and the bytes they may have."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mixtura.platform.data.stream import MixtureStream, plan_window
from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.errors import ResourceError
from mixtura.platform.orchestration.block_pipeline import BlockPipeline, Planned, quiet_data

if TYPE_CHECKING:
    import pyarrow as pa


_LARGER_THAN_SEEN = 1.25
"""A block is taken to be no larger than this times the largest one until now."""
_CLOSING_S = 10.0


def most_bytes(spec: StreamSpec) -> int:
    """No block of this stream is larger: all its examples have full lengths, and 64 bytes of numbers beside them.

    With 256 examples of 512 + 114 tokens it is 661 KB.
    """
    return spec.block_size * ((spec.inputs_length + spec.targets_length) * 4 + 64) + 4096


def blocks_that_fit(memory: int, lanes: int, bytes_each: float) -> int:
    """Blocks ahead for each lane, beside the one of each that is in hand.

    >>> blocks_that_fit(16_000_000, lanes=4, bytes_each=661_504)
    5
    """
    return int(memory / (lanes * bytes_each)) - 1


def refuse_too_few_blocks(spec: StreamSpec, workers: int, memory: int) -> None:
    """Raise ResourceError where not even one block ahead of each lane, and one in hand, fit into `memory` bytes."""
    lanes, largest = -(-spec.lanes // workers), most_bytes(spec)
    if blocks_that_fit(memory, lanes, largest) < 1:
        raise ResourceError(
            f"a worker has {lanes} of {spec.lanes} lanes; one block in hand and one ahead for each, of up to "
            f"{readable_bytes(largest)}, are {readable_bytes(2 * lanes * largest)}, but it may hold "
            f"{readable_bytes(memory)}: raise data.stream_memory (and the cluster's object store, where half of that, "
            "shared by the workers of a node, is less), lower data.block_size, or take more workers"
        )


def readable_bytes(size: float) -> str:
    """As a person writes it.

    >>> readable_bytes(661_504), readable_bytes(2e9)
    ('0.66 MB', '2.00 GB')
    """
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


class RayBlocks:
    """A `BlockSource` whose blocks are built anywhere in the cluster, in the order that this rank will need them.

        planned  ->  under way in a pipeline  ->  ready here  ->  taken by the rank
        half of what there may be at a time

    Planned and not yet taken are never more than `blocks_per_lane` blocks for each lane, nor more than fit into
    `memory`. A window is half of that and begins as soon as there is room. Two may be under way, each with half of the
    builders, so that one begins before the other ends and never more builders work than there are CPUs for: a third
    could take those on which the shard is to be prepared that it waits for. With one builder it is one window.
    Only a block that the rank waits for and that is not planned (its lane's blocks had fewer rows than the others')
    is planned whether there is room or not.

    What the rank has taken decides the order of building, the number of a block alone its content, so neither timing
    nor a builder that dies (Ray runs its task again) changes a row. A builder may wait for a shard that is still being
    prepared as long as it has to: only this rank waits with it, as its CPUs are set apart.
    """

    def __init__(
        self,
        stream: MixtureStream,
        state: Mapping[int, tuple[int, int]],
        *,
        builder_cpus: float,
        builders: int,
        blocks_per_lane: int,
        memory: int,
    ) -> None:
        self._stream, self._lanes = stream, sorted(state)
        self._next_round = {lane: turn for lane, (turn, _) in state.items()}
        self._builder_cpus = builder_cpus
        self._free_builders = [builders // 2, builders - builders // 2] if builders > 1 else [1]
        self._blocks_per_lane, self._memory = blocks_per_lane, memory
        self._changed = threading.Condition()
        self._ready: dict[Planned, tuple[pa.Table, int]] = {}
        self._coming: Counter[int] = Counter()
        self._rows_ready: Counter[int] = Counter()
        self._bytes_in_hand: dict[int, int] = {}
        self._rows_in_hand: Counter[int] = Counter()
        self._awaited: Planned | None = None
        self._failure: BaseException | None = None
        self._windows: list[BlockPipeline] = []
        self._closed = False
        self._mean_rows = float(stream.spec.block_size)
        self._largest = 0
        self._of_last_window = ""
        self.blocks_built = 0
        self.windows_begun = 0
        self.peak_bytes = 0
        """Most bytes of blocks that were ready or in hand at once."""
        self.peak_blocks = 0
        """Most blocks that were planned and not yet taken."""
        self.waited_s = 0.0
        """Time that the rank spent in `get`."""
        self.statistics = ""
        """After `close`: what this source did, in one line, and Ray Data's own account of the last window."""
        self._conductor = threading.Thread(target=self._conduct, name="ray-blocks", daemon=True)
        self._conductor.start()

    @property
    def held_bytes(self) -> int:
        """Bytes of the blocks that are ready, and of the one in hand of each lane."""
        return sum(size for _, size in self._ready.values()) + sum(self._bytes_in_hand.values())

    @property
    def most_blocks(self) -> int:
        """Blocks that may be planned and not yet taken; their size is measured as they come."""
        largest: float = most_bytes(self._stream.spec)
        if self._largest:
            largest = min(largest, self._largest * _LARGER_THAN_SEEN)
        fit = blocks_that_fit(self._memory, len(self._lanes), largest)
        return max(1, min(self._blocks_per_lane, fit)) * len(self._lanes)

    def get(self, lane: int, turn: int) -> pa.Table:
        """The block of a lane's turn; waits until it is there. A rank asks for a lane's blocks in their order."""
        started = time.perf_counter()
        with self._changed:
            self._bytes_in_hand.pop(lane, None)
            self._awaited = (lane, turn)
            self._changed.notify_all()
            while self._awaited not in self._ready:
                if self._failure is not None:
                    raise self._failure
                assert not self._closed, "the rank reads from a source that was closed"
                self._changed.wait()
            table, size = self._ready.pop(self._awaited)
            self._awaited = None
            self._rows_ready[lane] -= len(table)
            self._bytes_in_hand[lane], self._rows_in_hand[lane] = size, len(table)
            self._changed.notify_all()
        self.waited_s += time.perf_counter() - started
        return table

    def close(self) -> None:
        """Stop building: what is under way is cancelled, and no thread of this source is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._conductor.join()
        head = (
            f"{self.blocks_built} blocks in {self.windows_begun} windows; the rank waited {self.waited_s:.2f} s; "
            f"blocks held: {readable_bytes(self.held_bytes)}, at the peak {readable_bytes(self.peak_bytes)} "
            f"of {readable_bytes(self._memory)}; ready or under way: at most {self.peak_blocks}"
        )
        self.statistics = f"{head}\n\n{self._of_last_window}"

    def arrived(self, lane: int, turn: int, table: pa.Table, size: int) -> None:
        """A pipeline has built a block."""
        with self._changed:
            self._coming[lane] -= 1
            self._ready[lane, turn] = (table, size)
            self._rows_ready[lane] += len(table)
            self._largest = max(self._largest, size)
            self.blocks_built += 1
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
            self._mean_rows += (len(table) - self._mean_rows) / min(self.blocks_built, 100)
            self._changed.notify_all()

    def failed(self, error: BaseException) -> None:
        """A pipeline, or what begins them, cannot go on."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def ended(self, window: BlockPipeline) -> None:
        """A pipeline is through."""
        with self._changed:
            self._windows.remove(window)
            self._free_builders.append(window.builders)
            self._of_last_window = window.statistics or self._of_last_window
            self._changed.notify_all()

    def _conduct(self) -> None:
        """Begin one window after the other, until the source is closed or has failed; then end what is under way."""
        try:
            quiet_data()
            while (planned := self._next_window()) is not None:
                self._begin(planned)
            for window in list(self._windows):
                window.stop(_CLOSING_S)
        except BaseException as error:  # noqa: BLE001 - handed to the rank's own thread, which raises it
            self.failed(error)

    def _begin(self, planned: list[Planned]) -> None:
        window = BlockPipeline(
            self._stream,
            planned,
            self,
            name=f"ray-blocks-{self.windows_begun}",
            builder_cpus=self._builder_cpus,
            builders=self._free_builders.pop(),
            memory=self._memory,
            first=self.windows_begun == 1,
        )
        with self._changed:
            self._windows.append(window)
        window.start()

    def _next_window(self) -> list[Planned] | None:
        """Waits until there is room; None where nothing is to be built any more."""
        with self._changed:
            while not self._closed and self._failure is None:
                if count := self._room():
                    return self._plan(count)
                self._changed.wait()
        return None

    def _room(self) -> int:
        """How many blocks to plan now."""
        if not self._free_builders:
            return 0
        most, planned = self.most_blocks, self._coming.total() + len(self._ready)
        half = -(-most // 2)
        if self._awaited_is_unplanned():
            return max(1, min(half, most - planned))
        return half if planned + half <= most else 0

    def _awaited_is_unplanned(self) -> bool:
        return self._awaited is not None and self._awaited[1] >= self._next_round[self._awaited[0]]

    def _plan(self, count: int) -> list[Planned]:
        mean = max(1.0, self._mean_rows)  # blocks that all were empty until now would go to one lane for ever
        # The block in hand counts whole: a lane that has none yet comes before the next block of one that has.
        expected = {
            lane: self._rows_in_hand[lane] + self._rows_ready[lane] + self._coming[lane] * mean for lane in self._lanes
        }
        if self._awaited is not None and self._awaited_is_unplanned():
            expected[self._awaited[0]] = -1.0  # before another lane that has no rows either
        planned = plan_window(self._lanes, self._next_round, expected, mean, count)
        for lane, turn in planned:
            self._next_round[lane] = turn + 1
            self._coming[lane] += 1
        self.windows_begun += 1
        self.peak_blocks = max(self.peak_blocks, self._coming.total() + len(self._ready))
        return planned
