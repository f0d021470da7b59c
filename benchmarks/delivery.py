"""Blocks through Ray Data beside the block function in a loop: tokens for each second, data wait, and memory.

Run by hand on a quiet machine: `python benchmarks/delivery.py`, or with `--long` for the memory over many steps and
over corpora of two sizes. Ranks are actors that take their batches and train nothing; the ledger divides the machine as
for a run. Token caches are made by the script. Memory is that of each process alone (without files and what it shares).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from mixtura.platform.config import ExecutorSection
from mixtura.platform.data.cache import commit, write_shard
from mixtura.platform.data.lanes import RankStream, lane_positions
from mixtura.platform.data.mixture import integer_rates
from mixtura.platform.data.ragged import Ragged, offsets_of
from mixtura.platform.data.stream import MixtureStream, count_rows, ragged_columns
from mixtura.platform.data.stream_spec import StreamSpec, StreamTask
from mixtura.platform.orchestration.blocks import RayBlocks
from mixtura.platform.orchestration.cluster import Ledger, connected

LANES, ROWS = 16, 128
BLOCKS_AHEAD = 16
LONG_STEPS, TOLD_EVERY = 3000, 300


def make_stream(root: Path, documents: int) -> MixtureStream:
    """Text of so many documents of about 500 tokens, in 8 shards, and a tenth of it again as short pairs."""
    chance = np.random.default_rng(0)

    def tokens(lengths: np.ndarray[Any, Any]) -> pa.Array:
        return Ragged(chance.integers(3, 32_000, lengths.sum(), dtype=np.int32), offsets_of(lengths)).to_arrow()

    for shard in range(8):
        write_shard(root / "text-0", shard, 8, "train", pa.table({"tokens": tokens(_lengths(chance, documents, 500))}))
        sides = {"inputs": tokens(_lengths(chance, documents, 40)), "targets": tokens(_lengths(chance, documents, 4))}
        write_shard(root / "pairs-0", shard, 8, "train", pa.table(sides))
    for name in ("text-0", "pairs-0"):
        commit(root / name, name, {"made": "for a benchmark"}, {"train": 8})
    rates = integer_rates({"text": 2, "pairs": 1})
    tasks = (
        StreamTask("text", str(root / "text-0"), rates["text"], "span_corruption"),
        StreamTask("pairs", str(root / "pairs-0"), rates["pairs"]),
    )
    lengths = {
        "inputs_length": 512,
        "targets_length": 114,
        "block_size": 256,
        "lanes": LANES,
        "global_batch_size": ROWS,
    }
    vocabulary = {"eos_id": 1, "first_sentinel": 32_099, "vocabulary_size": 32_128}
    return MixtureStream(StreamSpec(seed=0, tasks=tasks, packing="best_fit", **lengths, **vocabulary))


def _lengths(chance: np.random.Generator, documents: int, mean: int) -> np.ndarray[Any, Any]:
    return chance.geometric(1 / mean, documents // 8).astype(np.int64)


class Reader:
    """A rank that takes its batches; an actor."""

    def __init__(self, spec: dict[str, Any], rank: int, world_size: int, ledger: Ledger) -> None:
        stream = MixtureStream(StreamSpec.from_dict(spec))
        self._source = RayBlocks(
            stream,
            lane_positions(stream.spec, rank, world_size, None),
            builder_cpus=ledger.builder_cpus,
            builders=ledger.builders,
            blocks_per_lane=BLOCKS_AHEAD,
            memory=ledger.stream_memory,
        )
        self._stream = RankStream(stream, rank, world_size, None, self._source)

    def take(self, steps: int, step_s: float) -> tuple[int, list[float]]:
        """Encoder tokens of the next steps, and the seconds that each waited; a step lasts so long after its wait."""
        tokens, waits = 0, []
        for _ in range(steps):
            before = self._source.waited_s
            tokens += int(self._stream.next_batch().counters["input_tokens"].sum())
            waits.append(self._source.waited_s - before)
            time.sleep(step_s)
        return tokens, waits

    def memory(self) -> tuple[int, int, int]:
        """Bytes of blocks held now and at the peak, and of this process."""
        return self._source.held_bytes, self._source.peak_bytes, own_bytes(psutil.Process())

    def close(self) -> None:
        """Stop building."""
        self._source.close()


def own_bytes(process: psutil.Process) -> int:
    """Memory of a process without mapped files and shared memory."""
    with contextlib.suppress(psutil.Error):
        found = process.memory_info()
        return int(found.rss - found.shared)
    return 0


@dataclass
class Watch:
    """Peaks of what the processes of the cluster hold, looked at twice a second."""

    store: float = 0.0
    builders: float = 0.0
    count: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def look(self) -> tuple[float, float, int]:
        """Bytes in the object store and in the builders, and the number of builders, now."""
        import ray
        from ray._private.internal_api import memory_summary

        address = ray.get_runtime_context().gcs_address
        found = re.search(r"Plasma memory usage (\d+) MiB", memory_summary(address, stats_only=True))
        store = float(found[1]) * 2**20 if found else 0.0
        processes = [one for one in psutil.Process().children(recursive=True) if _builds(one)]
        return store, float(sum(own_bytes(one) for one in processes)), len(processes)

    def run(self) -> None:
        """Look until it is ended."""
        while not self.ended.wait(0.5):
            store, builders, count = self.look()
            self.store, self.builders = max(self.store, store), max(self.builders, builders)
            self.count = max(self.count, count)

    @classmethod
    @contextlib.contextmanager
    def watching(cls) -> Iterator[Watch]:
        """Look while the context lasts."""
        watch = cls()
        thread = threading.Thread(target=watch.run, daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            watch.ended.set()
            thread.join()


def _builds(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith(("ray::MapBatches", "ray::IDLE"))
    return False


def in_a_loop(stream: MixtureStream, seconds: float = 5.0) -> tuple[float, float]:
    """Encoder tokens for each second on one core: of the block function in a loop, and of batches of its blocks."""
    stream.build_block(0)
    started, tokens, block = time.perf_counter(), 0, 0
    spent = 0.0
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        table = stream.build_block(block)
        spent += time.perf_counter() - begun
        tokens += int(count_rows(ragged_columns(table), len(stream.spec.tasks))["input_tokens"].sum())
        block += 1
    alone = tokens / spent
    reader, tokens, started = RankStream(stream), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        tokens += int(reader.next_batch().counters["input_tokens"].sum())
    return alone, tokens / (time.perf_counter() - started)


@contextlib.contextmanager
def readers(stream: MixtureStream, ranks: int) -> Iterator[list[Any]]:
    """So many ranks on a cluster of their own."""
    import ray

    with connected(ExecutorSection(workers=ranks)) as ledger:
        print(f"\n{ranks} ranks: {ledger.describe()}")
        kind = ray.remote(num_cpus=ledger.worker_cpus)(Reader)
        actors = [kind.remote(stream.spec.to_dict(), rank, ranks, ledger) for rank in range(ranks)]
        yield actors
        ray.get([actor.close.remote() for actor in actors])


def measure(stream: MixtureStream, ranks: int, steps: int, step_s: float, alone: float, batches: float) -> None:
    """Print what so many ranks get, as fast as they can and with steps of a given length."""
    import ray

    def take(count: int, length_s: float) -> tuple[int, list[float]]:
        taken = ray.get([actor.take.remote(count, length_s) for actor in actors])
        return sum(tokens for tokens, _ in taken), [wait for _, waits in taken for wait in waits]

    with readers(stream, ranks) as actors, Watch.watching() as watch:
        started = time.perf_counter()
        take(1, 0.0)
        print(f"  first batch after {time.perf_counter() - started:.1f} s")
        take(steps // 2, 0.0)
        started = time.perf_counter()
        tokens, _ = take(steps, 0.0)
        rate = tokens / (time.perf_counter() - started)
        print(f"  {rate:,.0f} encoder tokens/s, {rate / ranks:,.0f} a rank")
        print(
            f"  {rate / alone:.2f} of one core that builds blocks, {rate / batches:.2f} of one that also makes batches"
        )
        take(20, step_s)
        _, waits = take(60, step_s)
        late = np.quantile(waits, 0.99)
        print(
            f"  steps of {step_s:g} s: data wait {np.mean(waits) * 1e3:.2f} ms a step, 99 % below {late * 1e3:.1f} ms"
        )
        held = ray.get([actor.memory.remote() for actor in actors])
        print(
            f"  blocks of a rank at the peak {max(peak for _, peak, _ in held) / 1e6:.1f} MB; object store at the peak "
            f"{watch.store / 1e6:.0f} MB; {watch.count} builders with {watch.builders / 1e6:.0f} MB"
        )


def measure_long(stream: MixtureStream, ranks: int) -> None:
    """Print memory every few hundred steps."""
    import ray

    with readers(stream, ranks) as actors:
        print(f"  {'step':>6}{'blocks held':>13}{'at the peak':>13}{'a rank':>10}{'store':>9}{'builders':>10}  (MB)")
        for step in range(TOLD_EVERY, LONG_STEPS + 1, TOLD_EVERY):
            ray.get([actor.take.remote(TOLD_EVERY, 0.0) for actor in actors])
            held, peak, own = (
                max(values) for values in zip(*ray.get([a.memory.remote() for a in actors]), strict=True)
            )
            store, builders, _ = Watch().look()
            values = [held, peak, own, store, builders]
            texts = [f"{value / 1e6:{width},.1f}" for value, width in zip(values, (13, 13, 10, 9, 10), strict=True)]
            print(f"  {step:>6}{''.join(texts)}", flush=True)


def main() -> None:
    """Print the figures for 1, 4 and 16 ranks; or, with `--long`, the memory over many steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help=f"memory over {LONG_STEPS} steps, for two sizes of corpus")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 4, 16], help="numbers of ranks")
    parser.add_argument("--steps", type=int, default=300, help="steps as fast as they come")
    parser.add_argument("--step-s", type=float, default=0.1, help="length of a step without its wait")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        if given.long:
            for documents in (4_000, 80_000):
                stream = make_stream(Path(folder) / str(documents), documents)
                print(f"\na corpus of {documents:,} documents")
                measure_long(stream, given.ranks[0])
            return
        stream = make_stream(Path(folder), 40_000)
        alone, batches = in_a_loop(stream)
        print(f"one core, in a loop: {alone:,.0f} encoder tokens/s in blocks, {batches:,.0f} with batches made of them")
        for ranks in given.ranks:
            measure(stream, ranks, given.steps, given.step_s, alone, batches)


if __name__ == "__main__":
    main()
