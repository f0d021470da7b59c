"""Runs the ranks of runs as processes of one machine, without Ray: `python rank_runs.py PLANS.json FOLDER`.

PLANS is a list of {"plan": a TrainPlan's values, "workers": 4, "hangs": {"rank": 1, "after_blocks": 4} or null}, done
in their order; runs of equally many workers share their processes, which meet in a file of FOLDER and open no port. A
rank that is to hang never gets another block after so many.
"""

from __future__ import annotations

import importlib
import itertools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.orchestration.executor import InlineBlockSource
from mixtura.platform.orchestration.watchdog import leave_process
from mixtura.platform.orchestration.worker import Rank, TrainPlan
from mixtura.platform.training import engine


class HangingBlocks(InlineBlockSource):
    """Blocks that stop coming after so many."""

    def __init__(self, stream: MixtureStream, after: int) -> None:
        super().__init__(stream)
        self._left = after

    def get(self, lane: int, turn: int) -> Any:
        self._left -= 1
        if self._left < 0:
            threading.Event().wait()
        return super().get(lane, turn)


def run_ranks(entries: Sequence[Mapping[str, Any]], rank: int, folder: Path) -> None:
    workers = int(entries[0]["workers"])
    store = dist.FileStore(str(folder / f"meeting-{workers}"), workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    for entry in entries:
        hangs = entry["hangs"] if entry["hangs"] and entry["hangs"]["rank"] == rank else None

        def blocks(stream: MixtureStream, _: object, hangs: Any = hangs) -> InlineBlockSource:
            return InlineBlockSource(stream) if hangs is None else HangingBlocks(stream, hangs["after_blocks"])

        one = Rank(
            TrainPlan(**entry["plan"]),
            rank=rank,
            world_size=workers,
            make_blocks=blocks,
            evaluate=lambda path, step: None,
            end=leave_process,
        )
        assert one.train()


def main(plans: Path, folder: Path) -> int:
    # Imported once, for all processes that are forked from this one.
    engine._import_deepspeed()
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    worst = 0
    for workers, group in itertools.groupby(json.loads(plans.read_text()), key=lambda entry: entry["workers"]):
        entries = list(group)
        forked = multiprocessing.get_context("fork")
        ranks = [forked.Process(target=run_ranks, args=(entries, rank, folder)) for rank in range(workers)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            worst = max(worst, abs(process.exitcode or 0))
    return worst


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
