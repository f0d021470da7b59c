"""A Ray cluster to work on, and the one ledger by which its CPUs and memory are divided."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mixtura.platform.config import DataSection, ExecutorSection, parse_bytes
from mixtura.platform.errors import ResourceError

_SMALLEST_SHARE = 0.01
_LARGE_ENOUGH = 0.25
"""CPUs of a block builder, below which one of them is better than two of half the size."""
_EVALUATORS_BESIDE = 3
"""Times the share of the builders, where training does not wait for evaluation."""
_MOST_EVALUATORS = 8
_STORE_SHARE = 0.5
"""Of a node's object store that blocks of the stream may take; the rest is for evaluation and preparation."""
_STREAM_MEMORY = parse_bytes(DataSection().stream_memory)
_HOUR_MS = 3_600_000
_PATIENCE_S = 10.0
_API_SERVER = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster has."""

    cpus: float
    gpus: float = 0.0
    object_store: int | None = None
    """bytes of memory that Ray shares between processes; None where it is not known"""


@dataclass(frozen=True)
class Ledger:
    """Who may use how much of the cluster while a run trains; fractions of CPUs where the machine is small.

    The shares of those who may wait for one another (a worker for its builders, a builder for a shard that is being
    prepared, training for evaluation) are apart, so that each goes on while the others wait.
    """

    cpus: float
    workers: int
    worker_cpus: float
    worker_gpus: float
    builder_cpus: float
    """CPUs of one block-building task."""
    builders: int
    """Block-building tasks at a time in each worker's pipelines."""
    evaluator_cpus: float
    evaluators: int
    preparer_cpus: float
    """CPUs of one task that prepares a shard while others train."""
    preparers: int
    """0 where everything is prepared before."""
    stream_memory: int
    """Most bytes of the blocks that each worker holds or has under way."""

    threads: int = 1
    """Threads of each worker: as many as it has CPUs of its own where that was asked for; otherwise the machine's CPUs
    divided, since the others have little to do while it trains."""
    evaluator_threads: int = 1
    evaluator_gpus: float = 0.0
    """GPUs that each evaluator has to itself."""
    evaluates_on_gpus_of_workers: bool = False
    """Whether evaluators use the GPUs of workers, which stand still meanwhile."""
    evaluates_beside: bool = False
    """Whether evaluators work while others train, and let them go first."""

    def describe(self) -> str:
        """One line for the terminal."""
        gpus = f" + {self.worker_gpus:g} GPU" if self.worker_gpus else ""
        parts = [
            f"{self.workers} x {self.worker_cpus:g} CPU{gpus} train",
            f"{self.workers * self.builders} x {self.builder_cpus:g} build blocks",
            f"{self.evaluators} x {self.evaluator_cpus:g}{self._gpus_of_evaluator} evaluate",
        ]
        if self.preparers:
            parts.append(f"{self.preparers} x {self.preparer_cpus:g} prepare")
        blocks = f"up to {self.stream_memory / 1e6:,.0f} MB of blocks for each worker"
        return f"{', '.join(parts)}, of {self.cpus:g} CPUs; {blocks}"

    @property
    def _gpus_of_evaluator(self) -> str:
        if self.evaluator_gpus:
            return f" CPU + {self.evaluator_gpus:g} GPU"
        return " CPU, on the workers' GPUs," if self.evaluates_on_gpus_of_workers else ""

    def places(self) -> list[tuple[float, float]]:
        """(CPUs, GPUs) of all that runs at the same time, each on one node."""
        return [
            *[(self.worker_cpus, self.worker_gpus)] * self.workers,
            *[(self.builder_cpus, 0.0)] * (self.builders * self.workers),
            *[(self.evaluator_cpus, self.evaluator_gpus)] * self.evaluators,
            *[(self.preparer_cpus, 0.0)] * self.preparers,
        ]


def divide(
    cpus: float,
    gpus: float,
    settings: ExecutorSection,
    *,
    preparing: bool = False,
    beside: bool = False,
    stream_memory: int = _STREAM_MEMORY,
    nodes: Sequence[Node] = (),
) -> Ledger:
    """Divide a cluster: half of the CPUs train (or what was asked for), the others build blocks and evaluate.

    Where shards are prepared while the run trains, a third of the others prepares them. Where checkpoints are evaluated
    `beside` training, evaluators have three quarters of what is left, a thread for each CPU, and the GPUs that no
    worker has; otherwise they have the machine while training waits. Each worker may have `stream_memory` bytes of
    blocks, or what its node's object store has for it. One node has all where none are given.

    Raises ResourceError with the numbers where the plan could never be scheduled.

    >>> divide(2, 0, ExecutorSection(workers=2)).describe()
    '2 x 0.5 CPU train, 2 x 0.25 build blocks, 2 x 0.25 evaluate, of 2 CPUs; up to 1,000 MB of blocks for each worker'
    """
    nodes, workers = nodes or [Node(cpus, gpus)], settings.workers
    worker = settings.cpus_per_worker
    if worker is None:
        worker = _rounded(min(cpus / 2 / workers, max(node.cpus for node in nodes)))
    _refuse_missing_gpus(gpus, settings)
    _refuse_workers_without_a_place(nodes, worker, settings)
    if beside:
        _refuse_evaluators_without_a_cpu(cpus, worker, settings)
    spare_gpus = gpus - settings.gpus_per_worker * workers if beside else 0.0
    share = (cpus - worker * workers) / (1 + preparing + (_EVALUATORS_BESIDE if beside else 1))
    while share >= _SMALLEST_SHARE * workers:
        ledger = _with_share(cpus, worker, share, settings, preparing=preparing, beside=beside, spare_gpus=spare_gpus)
        if all_have_a_place(nodes, ledger.places()):
            return dataclasses.replace(ledger, stream_memory=_memory_of_each(nodes, ledger, stream_memory))
        share *= 0.75  # what is left lies on several nodes, in pieces that are too small
    work = "building blocks, evaluation and preparation" if preparing else "building blocks and evaluation"
    raise ResourceError(
        f"{workers} workers with {worker:g} CPUs each leave {max(0.0, cpus - worker * workers):g} of {cpus:g} CPUs "
        f"for {work}, which would wait for ever: lower executor.cpus_per_worker or executor.workers"
    )


def _with_share(
    cpus: float,
    worker: float,
    share: float,
    settings: ExecutorSection,
    *,
    preparing: bool,
    beside: bool,
    spare_gpus: float,
) -> Ledger:
    """Every kind of work beside training has the same share of the CPUs, but evaluation beside it, which has more."""
    workers, gpus = settings.workers, settings.gpus_per_worker
    of_worker = share / workers
    builder = _rounded(min(1.0, of_worker / 2 if of_worker >= 2 * _LARGE_ENOUGH else of_worker))
    evaluation = share * _EVALUATORS_BESIDE if beside else share
    evaluator = _rounded(min(1.0, evaluation / 2 if gpus == 0 and not beside else evaluation))
    evaluators = min(_MOST_EVALUATORS, _how_many(evaluation, evaluator))
    if spare_gpus >= 1:
        evaluators = min(evaluators, int(spare_gpus))
    preparer = _rounded(min(1.0, share)) if preparing else 0.0
    return Ledger(
        cpus=cpus,
        workers=workers,
        worker_cpus=worker,
        worker_gpus=gpus,
        builder_cpus=builder,
        builders=_how_many(of_worker, builder),
        evaluator_cpus=evaluator,
        evaluators=evaluators,
        evaluator_threads=max(1, int(evaluator if beside else cpus / evaluators)),
        evaluator_gpus=1.0 if spare_gpus >= 1 else 0.0,
        evaluates_on_gpus_of_workers=gpus > 0 and not beside,
        evaluates_beside=beside,
        preparer_cpus=preparer,
        preparers=_how_many(share, preparer) if preparing else 0,
        stream_memory=0,
        threads=max(1, int(cpus / workers if settings.cpus_per_worker is None and not beside else worker)),
    )


def _how_many(share: float, each: float) -> int:
    return max(1, int(share / each + 1e-9))


def _rounded(share: float) -> float:
    """Whole CPUs where there is one, otherwise down to thousandths."""
    return float(int(share)) if share >= 1 else int(share * 1000) / 1000


def _refuse_missing_gpus(gpus: float, settings: ExecutorSection) -> None:
    wanted = settings.gpus_per_worker * settings.workers
    if wanted > gpus:
        raise ResourceError(
            f"{settings.workers} workers with {settings.gpus_per_worker:g} GPUs each need {wanted:g} GPUs; "
            f"the cluster has {gpus:g}: lower executor.workers or executor.gpus_per_worker"
        )


def _refuse_evaluators_without_a_cpu(cpus: float, worker: float, settings: ExecutorSection) -> None:
    """Threads of workers and of an evaluator on the same CPU would slow each other down."""
    threads = settings.workers * max(1, int(worker))
    if threads + 1 > cpus:
        raise ResourceError(
            f"evaluation.when is beside, but {settings.workers} workers train on {threads} of {cpus:g} CPUs, which "
            "leaves none to evaluate on: lower executor.workers or executor.cpus_per_worker, or let training wait for "
            "evaluation with evaluation.when=pause"
        )


def _refuse_workers_without_a_place(nodes: Sequence[Node], worker: float, settings: ExecutorSection) -> None:
    gpus = settings.gpus_per_worker
    if settings.cpus_per_worker is not None and not all_have_a_place(nodes, [(worker, gpus)] * settings.workers):
        found = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes)
        raise ResourceError(
            f"{settings.workers} workers with {worker:g} CPUs and {gpus:g} GPUs each do not fit on nodes that have "
            f"{found}: lower executor.cpus_per_worker or executor.workers"
        )


def all_have_a_place(nodes: Sequence[Node], places: Sequence[tuple[float, float]]) -> bool:
    """Whether all of these (CPUs, GPUs) fit on the nodes at once, each on one: the largest first, where there is room.

    >>> all_have_a_place([Node(2), Node(2)], [(3, 0)]), all_have_a_place([Node(2), Node(2)], [(1.5, 0), (1.5, 0)])
    (False, True)
    """
    free = [[node.cpus, node.gpus] for node in nodes]
    for cpus, gpus in sorted(places, key=lambda place: (place[1], place[0]), reverse=True):
        node = next((one for one in free if one[0] >= cpus - 1e-9 and one[1] >= gpus - 1e-9), None)
        if node is None:
            return False
        node[0], node[1] = node[0] - cpus, node[1] - gpus
    return True


def _memory_of_each(nodes: Sequence[Node], ledger: Ledger, wanted: int) -> int:
    """Bytes of blocks of each worker, where as many workers as a node can hold share its object store."""
    least = wanted
    for node in nodes:
        there = min(ledger.workers, int(node.cpus / ledger.worker_cpus + 1e-9))
        if ledger.worker_gpus:
            there = min(there, int(node.gpus / ledger.worker_gpus + 1e-9))
        if node.object_store is not None and there:
            least = min(least, int(node.object_store * _STORE_SHARE / there))
    return least


@contextlib.contextmanager
def connected(
    settings: ExecutorSection,
    *,
    preparing: bool = False,
    beside: bool = False,
    stream_memory: int = _STREAM_MEMORY,
) -> Iterator[Ledger]:
    """Connect as `connection` does, and divide the cluster as `divide` does."""
    with connection(settings):
        import ray  # not before: what keeps it to loopback it reads when it is imported

        has = ray.cluster_resources()
        nodes = nodes_of_cluster()
        yield divide(
            has.get("CPU", 0),
            has.get("GPU", 0),
            settings,
            preparing=preparing,
            beside=beside,
            stream_memory=stream_memory,
            nodes=nodes,
        )


@contextlib.contextmanager
def connection(settings: ExecutorSection) -> Iterator[None]:
    """Connect to the running cluster (`executor.address`, or the job's own), or start one on this machine."""
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if not address:
        _keep_to_loopback()
    import ray

    quiet_ray()
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _refuse_silence(address)
            ray.init(address=address, **options)
        else:
            # On a small machine Ray would end a block builder after each window of blocks and start it anew for the
            # next one, which costs two seconds of a core each time.
            os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(_HOUR_MS))
            with _without_api_of_others():
                ray.init(address="local", include_dashboard=False, **options)
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_api_of_others() -> Iterator[None]:
    """For processes that begin meanwhile: an address of an API server at which nobody answers, as our cluster has none.

    Without one Ray Train would ask whatever cluster with a dashboard it finds on this machine whether its controller is
    alive; that cluster does not know it, and Ray Train would take the workers' places away.
    """
    before = os.environ.get(_API_SERVER)
    os.environ[_API_SERVER] = "http://127.0.0.1:1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_API_SERVER]
        else:
            os.environ[_API_SERVER] = before


def nodes_of_cluster() -> list[Node]:
    """The machines of the cluster that this process is connected to."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        Node(has.get("CPU", 0.0), has.get("GPU", 0.0), int(has.get("object_store_memory", 0)) or None) for has in alive
    ]


def _keep_to_loopback() -> None:
    """A cluster of this machine alone listens on loopback; by default, on Linux, it would on every interface.

    Ray reads this variable, which turns clusters of several machines on or off, once: when it is imported.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _refuse_silence(address: str) -> None:
    """Raise where nobody listens at HOST:PORT: Ray itself would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()


def quiet_ray() -> None:
    """Keep Ray's own lines off the terminal; its log files stay."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
