"""Which examples are drawn when: every task ticks on its own clock, and a block is a window of time.

Time is counted in draws. A task with integer rate a (over 2^64) and phase p in [0, 2^64) is drawn for the k-th time
(k = 0, 1, ...) at time (k * 2^64 + p) / a. Block g holds the ticks in [g * B, (g + 1) * B), B being the block size.

    rates 3/4 and 1/4, phases 0, B = 4:   first  |0 . 1.3 2.7 .|4 . 5.3 6.7 .|
                                          second |0 . . . . . .|4 . . . . . .|

So how often a task was drawn before a block is one multiplication: seeking is free, and the count differs from
g * B * rate by less than one. A block holds B draws on average, not always exactly B.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.mixture import ONE
from mixtura.platform.errors import ConfigError
from mixtura.platform.random_bits import derive, order

Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]


class Schedule:
    """The draws of every block, from integer rates, phases, a block size and the key that shuffles blocks."""

    def __init__(self, rates: Sequence[int], phases: Sequence[int], block_size: int, key: int) -> None:
        if sum(rates) != ONE or min(rates, default=-1) < 0:
            raise ConfigError(f"integer rates must be at least 0 and sum to 2^64, found a sum of {sum(rates)}")
        if len(phases) != len(rates) or not all(0 <= phase < ONE for phase in phases):
            raise ConfigError(f"{len(rates)} tasks need as many phases in [0, 2^64)")
        if block_size < 1:
            raise ConfigError(f"block_size is {block_size}: it must be at least 1")
        self.rates, self.phases = tuple(rates), tuple(phases)
        self.block_size, self.key = block_size, key

    def drawn_before(self, task: int, block: int) -> int:
        """How often a task was drawn in blocks 0 ... block - 1: max(0, ceil((block * B * a - p) / 2^64)).

        >>> schedule = Schedule([3 << 62, 1 << 62], [0, 0], block_size=4, key=0)
        >>> schedule.drawn_before(0, 2), schedule.drawn_before(1, 2)
        (6, 2)
        """
        elapsed = block * self.block_size * self.rates[task] - self.phases[task]
        return max(0, -(-elapsed // ONE))

    def counts(self, block: int) -> list[int]:
        """How often each task is drawn in a block."""
        return [self.drawn_before(task, block + 1) - self.drawn_before(task, block) for task in range(len(self.rates))]

    def draws(self, block: int) -> tuple[Int32, UInt64]:
        """Tasks [draws] and their draw numbers [draws], in the shuffled order of the block.

        >>> schedule = Schedule([3 << 62, 1 << 62], [0, 0], block_size=4, key=0)
        >>> tasks, numbers = schedule.draws(1)
        >>> sorted(zip(tasks.tolist(), numbers.tolist()))
        [(0, 3), (0, 4), (0, 5), (1, 1)]
        """
        counts = self.counts(block)
        tasks = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        numbers = [
            np.uint64(self.drawn_before(task, block)) + np.arange(count, dtype=np.uint64)
            for task, count in enumerate(counts)
        ]
        shuffled = order(int(derive(self.key, block)), len(tasks))
        return tasks[shuffled], np.concatenate(numbers)[shuffled]
