"""Machines that a cluster loses while a run trains: what is left, and whether the run fits on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mixtura.platform.orchestration.cluster import Ledger, Node, all_have_a_place, nodes_of_cluster
from mixtura.platform.orchestration.helper_thread import HelperThread
from mixtura.platform.tracking.records import EventWriter, Note
from mixtura.platform.workspace import Run

_EVERY_S = 2.0


class NodeWatch(HelperThread):
    """Follows the cluster's nodes and notes in the run's events what a change means for it."""

    def __init__(
        self,
        run: Run,
        attempt: int,
        ledger: Ledger,
        nodes: Callable[[], list[Node]] = nodes_of_cluster,
        every_s: float = _EVERY_S,
    ) -> None:
        super().__init__(run, "nodes", every_s)
        self.attempt, self.ledger = attempt, ledger
        self._nodes = nodes
        self._before = len(nodes())

    def look(self) -> None:
        """Tell of a change since the last time."""
        now = self._nodes()
        if len(now) != self._before:
            name = f"nodes-{self.attempt:04d}-{time.time_ns()}.jsonl"
            with EventWriter(self.run.events / name) as events:
                events.write(Note(what_it_means(self._before, now, self.ledger)))
            self._before = len(now)


def what_it_means(before: int, now: Sequence[Node], ledger: Ledger) -> str:
    """What a cluster that had `before` nodes and has others now means for a run.

    >>> ledger = Ledger(2, 2, 0.8, 0, 0.1, 1, 0.2, 1, 0, 0, 0)
    >>> what_it_means(2, [Node(1)], ledger)[:76]
    'a node was lost, 1 with 1 CPU is left: the 2 workers with 0.8 CPU each do no'
    """
    left = f"{len(now)} with {_amount(now)} {'is' if len(now) == 1 else 'are'} left"
    happened = f"a node was lost, {left}" if len(now) < before else f"a node joined, there are {len(now)} now"
    worker = (ledger.worker_cpus, ledger.worker_gpus)
    each = f"{worker[0]:g} CPU" + (f" and {worker[1]:g} GPU" if worker[1] else "")
    if not all_have_a_place(now, [worker] * ledger.workers):
        return (
            f"{happened}: the {ledger.workers} workers with {each} each do not fit there, so the run waits for a node "
            "to join; to go on with what there is, stop it and give the same command a smaller executor.workers"
        )
    if not all_have_a_place(now, ledger.places()):
        return f"{happened}: the {ledger.workers} workers fit there; building blocks and evaluation share the rest"
    return f"{happened}: the run fits there"


def _amount(nodes: Sequence[Node]) -> str:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return f"{cpus:g} CPU{'s' * (cpus != 1)}" + (f" and {gpus:g} GPUs" if gpus else "")
