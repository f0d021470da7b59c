"""Which examples are drawn when: every task ticks on its own clock, and a block is a window of time.

Time is counted in draws. A task with integer rate a (over 2^64) and phase p in [0, 2^64) is drawn for the k-th time
(k = 0, 1, ...) at time (k * 2^64 + p) / a. Block g holds the ticks in [g * B, (g + 1) * B), B being the block size.

    rates 3/4 and 1/4, phases 0, B = 4:   first  |0 . 1.3 2.7 .|4 . 5.3 6.7 .|
                                          second |0 . . . . . .|4 . . . . . .|

So how often a task was drawn before a block is one multiplication: seeking is free, and the count differs from
g * B * rate by less than one. A block holds B draws on average, not always exactly B.

Rates may change at blocks that are known before the start (`RateChange`): a clock then runs faster or slower from there
on, and its count differs by less than one from the sum of its rates over time. `capped_changes` computes the blocks at
which tasks reach a number of draws that they may not exceed.

`SampledSchedule` is T5's own way: an independent draw for each example. Its counts must be added up from the start.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.mixture import ONE, integer_rates
from mixtura.platform.errors import ConfigError, DataError
from mixtura.platform.random_bits import bits, derive, order

Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]

_COUNTED_BLOCKS = 1024
"""Blocks whose sampled draws are counted together."""


@dataclass(frozen=True)
class RateChange:
    """From this block on the tasks have these integer rates, which sum to 2^64; all are 0 where the stream ends."""

    block: int
    rates: tuple[int, ...]


class Draws(Protocol):
    """What a stream asks of a schedule."""

    def drawn_before(self, task: int, block: int) -> int:
        """How often a task was drawn in blocks 0 ... block - 1."""

    def counts(self, block: int) -> list[int]:
        """How often each task is drawn in a block."""

    def order(self, block: int) -> npt.NDArray[np.int64]:
        """The shuffled order of a block's draws, which stand task by task before it."""


class Schedule:
    """The draws of every block, from integer rates, phases, a block size and the key that shuffles blocks."""

    def __init__(
        self,
        rates: Sequence[int],
        phases: Sequence[int],
        block_size: int,
        key: int,
        changes: Sequence[RateChange] = (),
    ) -> None:
        stages = _stages(rates, block_size, changes)
        if len(phases) != len(rates) or not all(0 <= phase < ONE for phase in phases):
            raise ConfigError(f"{len(rates)} tasks need as many phases in [0, 2^64)")
        self.rates, self.phases = tuple(rates), tuple(phases)
        self.block_size, self.key = block_size, key
        self._starts = [stage.block for stage in stages]
        self._rates = [stage.rates for stage in stages]
        self._elapsed = [tuple(0 for _ in rates)]  # of every task's clock, in 2^-64 draws, where each stage begins
        for stage, after in itertools.pairwise(stages):
            blocks = after.block - stage.block
            pairs = zip(self._elapsed[-1], stage.rates, strict=True)
            self._elapsed.append(tuple(before + blocks * block_size * rate for before, rate in pairs))

    def elapsed(self, task: int, block: int) -> int:
        """What a task's clock shows before a block, in draws times 2^64: the sum of its rates over time."""
        stage = bisect.bisect_right(self._starts, block) - 1
        since = (block - self._starts[stage]) * self.block_size
        return self._elapsed[stage][task] + since * self._rates[stage][task]

    def drawn_before(self, task: int, block: int) -> int:
        """How often a task was drawn in blocks 0 ... block - 1: max(0, ceil((elapsed - p) / 2^64)).

        >>> schedule = Schedule([3 << 62, 1 << 62], [0, 0], block_size=4, key=0)
        >>> schedule.drawn_before(0, 2), schedule.drawn_before(1, 2)
        (6, 2)
        """
        return max(0, -((self.phases[task] - self.elapsed(task, block)) // ONE))

    def counts(self, block: int) -> list[int]:
        """How often each task is drawn in a block."""
        _refuse_behind_the_end(self._starts, self._rates, block)
        return [self.drawn_before(task, block + 1) - self.drawn_before(task, block) for task in range(len(self.rates))]

    def order(self, block: int) -> npt.NDArray[np.int64]:
        """The shuffled order of a block's draws."""
        return order(int(derive(self.key, block)), sum(self.counts(block)))


class SampledSchedule:
    """Independent draws, as the original mixes: draw i of block g takes the task into whose share its word falls."""

    def __init__(self, rates: Sequence[int], block_size: int, key: int) -> None:
        _stages(rates, block_size, ())
        self.rates, self.block_size, self.key = tuple(rates), block_size, key
        # a word lies behind the shares that end at or before it, and never behind the last one, which ends at 2^64
        self._ends = np.array([end for end in itertools.accumulate(rates) if end < ONE], dtype=np.uint64)
        self._before = [np.zeros(len(rates), dtype=np.int64)]  # draws of each task before every counted part
        self._counted = functools.lru_cache(maxsize=8)(self._count)

    def drawn_before(self, task: int, block: int) -> int:
        """How often a task was drawn in blocks 0 ... block - 1: counted from the start, once in a process."""
        part, rest = divmod(block, _COUNTED_BLOCKS)
        while len(self._before) <= part:
            self._before.append(self._before[-1] + self._counted(len(self._before) - 1).sum(axis=0))
        return int(self._before[part][task] + self._counted(part)[:rest, task].sum())

    def counts(self, block: int) -> list[int]:
        """How often each task is drawn in a block."""
        counts: list[int] = self._counted(block // _COUNTED_BLOCKS)[block % _COUNTED_BLOCKS].tolist()
        return counts

    def order(self, block: int) -> npt.NDArray[np.int64]:
        """Where the draws, task by task, stand in the order in which they were sampled."""
        tasks = self._tasks(block, 1)[0]
        places = np.empty(len(tasks), dtype=np.int64)
        places[np.argsort(tasks, kind="stable")] = np.arange(len(tasks))
        return places

    def _tasks(self, block: int, count: int) -> npt.NDArray[np.int64]:
        """Tasks of the draws of neighbouring blocks: [count, block_size]."""
        words = bits(derive(self.key, block + np.arange(count))[:, None], np.arange(self.block_size))
        return np.searchsorted(self._ends, words, side="right")

    def _count(self, part: int) -> npt.NDArray[np.int64]:
        """Draws of each task in each block of a part: [blocks, tasks]."""
        tasks = self._tasks(part * _COUNTED_BLOCKS, _COUNTED_BLOCKS)
        flat = tasks + np.arange(_COUNTED_BLOCKS)[:, None] * len(self.rates)
        counted = np.bincount(flat.ravel(), minlength=_COUNTED_BLOCKS * len(self.rates))
        return counted.reshape(_COUNTED_BLOCKS, len(self.rates))


def _stages(rates: Sequence[int], block_size: int, changes: Sequence[RateChange]) -> list[RateChange]:
    stages = [RateChange(0, tuple(rates)), *changes]
    for stage in stages:
        ended = stage is stages[-1] and len(stages) > 1 and not any(stage.rates)
        if (
            len(stage.rates) != len(rates)
            or min(stage.rates, default=-1) < 0
            or (sum(stage.rates) != ONE and not ended)
        ):
            raise ConfigError(f"integer rates must be at least 0 and sum to 2^64, found a sum of {sum(stage.rates)}")
    if any(before.block >= after.block for before, after in itertools.pairwise(stages)):
        raise ConfigError(f"rates must change at ascending blocks from 1 on, found {[one.block for one in changes]}")
    if block_size < 1:
        raise ConfigError(f"block_size is {block_size}: it must be at least 1")
    return stages


def _refuse_behind_the_end(starts: Sequence[int], rates: Sequence[Sequence[int]], block: int) -> None:
    if block >= starts[-1] and not any(rates[-1]):
        raise DataError(
            f"the stream ends at block {starts[-1]}: every task was drawn as often as mixture.repeats allows; "
            "raise it, or train fewer steps"
        )


def capped_changes(
    rates: Mapping[str, float], most: Mapping[str, int], phase_of: Callable[[str], int], block_size: int
) -> tuple[RateChange, ...]:
    """Where tasks that may be drawn at most so often stop being drawn, and what the others' rates are from there on.

    A task stops at the last block before which it was drawn at most `most` times; the rest keep their proportions.
    Where none is left the last change has rates of 0: the stream ends there.

    >>> changes = capped_changes({"squad": 1.0, "rte": 1.0}, {"rte": 100}, lambda _: 0, block_size=10)
    >>> [(change.block, [rate / 2**64 for rate in change.rates]) for change in changes]
    [(20, [1.0, 0.0])]
    """
    names, live = list(rates), {name: rate for name, rate in rates.items() if rate}
    elapsed, block = dict.fromkeys(rates, 0), 0
    changes: list[RateChange] = []
    current = integer_rates(rates)
    while True:
        ends = {
            name: max(0, (most[name] * ONE + phase_of(name) - elapsed[name]) // (block_size * current[name]))
            for name in live
            if name in most and current[name]
        }
        if not ends:
            return tuple(changes)
        blocks = min(ends.values())
        elapsed = {name: before + blocks * block_size * current[name] for name, before in elapsed.items()}
        block += blocks
        live = {name: rate for name, rate in live.items() if ends.get(name) != blocks}
        remaining = integer_rates({name: live.get(name, 0.0) for name in names}) if live else dict.fromkeys(names, 0)
        if block == 0:
            capped = ", ".join(name for name, end in ends.items() if end == 0)
            raise ConfigError(
                f"{capped} may be drawn too seldom for one block of {block_size} draws: "
                "raise its repeats, lower data.block_size, or leave it out"
            )
        current = remaining
        if changes and changes[-1].block == block:
            changes.pop()
        changes.append(RateChange(block, tuple(current[name] for name in names)))
        if not live:
            return tuple(changes)
