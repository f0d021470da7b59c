"""From the command to the first batch, part by part, for a run whose caches are prepared.

Run by hand on a quiet machine: `python benchmarks/start.py`. It prepares the quickstart in a folder of its own, then
starts `mixtura train` with one step, inline and on Ray, and notes when each part of the start is over.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mixtura.platform.tracking.records import TrainPoint, read_events


def main() -> None:
    """Print seconds from the command on, for both executors."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        subprocess.run([*_mixtura("prepare"), f"run.root={root}"], check=True, stdout=subprocess.DEVNULL)
        print(f"{'seconds from the command':<52}{'inline':>10}{'Ray':>10}")
        both = [_timed(root, kind) for kind in ("inline", "ray")]
        for part in both[0]:
            print(f"{part:<52}{both[0][part]:>10.2f}{both[1][part]:>10.2f}")


def _mixtura(command: str) -> list[str]:
    return [sys.executable, "-m", "mixtura", command, "quickstart"]


def _timed(root: Path, kind: str) -> dict[str, float]:
    name = f"start-{kind}"
    given = [
        f"run.root={root}",
        f"run.name={name}",
        f"executor.kind={kind}",
        "training.steps=1",
        "evaluation.test=false",
    ]
    started, wall = time.perf_counter(), time.time()
    process = subprocess.Popen(
        [sys.executable, "-u", *_mixtura("train")[1:], *given, "evaluation.when=after"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None, "the output is a pipe"
    seen: dict[str, float] = {}
    for line in process.stdout:
        at = time.perf_counter() - started
        if line.startswith("run "):
            seen.setdefault("Python, imports, settings, checks", at)
        elif "CPU train" in line or "inline" in line.split(":")[0]:
            seen.setdefault("the executor is there", at)
        elif line.startswith("Mixture"):
            seen.setdefault("caches verified, stream decided, mixture counted", at)
    process.wait()
    (point,) = (one for one in read_events(root / name / "events") if isinstance(one, TrainPoint))
    seen["workers and model are there, the first batch is asked for"] = point.time_s - wall - point.metrics["step_s"]
    seen["the first batch is there"] = point.time_s - wall - point.metrics["step_s"] + point.metrics["data_wait_s"]
    return seen


if __name__ == "__main__":
    main()
