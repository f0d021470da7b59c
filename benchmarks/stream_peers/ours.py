"""The mixture stream's own side: run by `benchmarks/stream.py`, one process for each number.

python ours.py rate CASE.json               batches for some seconds, as the peers are measured
python ours.py profile CASE.json            which functions take the time
python ours.py blocks CASE.json 0 1000000   how long a block takes to build, by its number
python ours.py resume CASE.json 0 500000    how long the first batch takes, by the step that it belongs to
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from counting import rate

from mixtura.platform.data.lanes import RankStream
from mixtura.platform.data.stream import MixtureStream, StreamSpec

PROFILED_BATCHES = 300
TIMED = 9
"""Blocks or first batches that are timed for each number; they take turns."""


def features(reader: RankStream) -> Iterator[Mapping[str, Any]]:
    """The features of one batch after the other."""
    while True:
        yield reader.next_batch().features


def warm_stream(spec: StreamSpec) -> MixtureStream:
    """A stream whose caches are open and whose code has run."""
    stream = MixtureStream(spec)
    reader = RankStream(stream)
    for _ in range(5):
        reader.next_batch()
    return stream


def measured_rate(spec: StreamSpec, seconds: float) -> dict[str, float]:
    """A reader of its own begins when the clock does: no block that is given out was built before."""
    return rate(features(RankStream(warm_stream(spec))), seconds, warmup=0)


def profile(spec: StreamSpec) -> dict[str, Any]:
    """Own and cumulated time of every function, for `PROFILED_BATCHES` batches."""
    reader = RankStream(warm_stream(spec))
    profiler = cProfile.Profile()
    started = time.perf_counter()
    profiler.enable()
    for _ in range(PROFILED_BATCHES):
        reader.next_batch()
    profiler.disable()
    elapsed = time.perf_counter() - started
    statistics: Any = pstats.Stats(profiler)
    rows = [
        {"function": _name(place), "calls": calls, "own_s": own, "with_callees_s": cumulated}
        for place, (_, calls, own, cumulated, _) in statistics.stats.items()
    ]
    rows.sort(key=lambda row: row["own_s"], reverse=True)
    return {"batches": PROFILED_BATCHES, "seconds": elapsed, "functions": rows}


def _name(place: tuple[str, int, str]) -> str:
    file, line, function = place
    return f"{Path(file).name}:{line} {function}" if line else function


def block_seconds(spec: StreamSpec, blocks: Sequence[int]) -> dict[str, list[float]]:
    """Seconds to build `TIMED` blocks from each of these on."""
    stream = warm_stream(spec)
    seconds: dict[str, list[float]] = {str(block): [] for block in blocks}
    for turn in range(TIMED):
        for block in blocks:
            started = time.perf_counter()
            stream.build_block(block + turn)
            seconds[str(block)].append(time.perf_counter() - started)
    return seconds


def resume_seconds(spec: StreamSpec, steps: Sequence[int]) -> dict[str, list[float]]:
    """Seconds from a spec and a state to the first batch, caches opened anew each time."""
    stream = warm_stream(spec)
    rows_per_block = len(stream.build_block(0))
    start = RankStream(stream).state()
    seconds: dict[str, list[float]] = {str(step): [] for step in steps}
    for _ in range(TIMED):
        for step in steps:
            state = _state_near(start, step, spec.rows_per_lane, rows_per_block)
            started = time.perf_counter()
            RankStream(MixtureStream(spec), 0, 1, state).next_batch()
            seconds[str(step)].append(time.perf_counter() - started)
    return seconds


def _state_near(start: Mapping[str, Any], step: int, rows_per_lane: int, rows_per_block: int) -> dict[str, Any]:
    """A state that a run may have at a step: each lane in the round that it has come to, at its block's first row."""
    round_ = step * rows_per_lane // rows_per_block
    return {**start, "step": step, "lanes": [[lane[0], round_, 0] for lane in start["lanes"]]}


def main() -> None:
    """Print one answer as JSON."""
    kind, file, *numbers = sys.argv[1:]
    case = json.loads(Path(file).read_text())
    spec = StreamSpec.from_dict(case["spec"])
    match kind:
        case "rate":
            answer: Any = measured_rate(spec, case["seconds"])
        case "profile":
            answer = profile(spec)
        case "blocks":
            answer = block_seconds(spec, [int(number) for number in numbers])
        case "resume":
            answer = resume_seconds(spec, [int(number) for number in numbers])
        case _:
            raise SystemExit(f"{kind!r} was asked for: there are rate, profile, blocks and resume")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
