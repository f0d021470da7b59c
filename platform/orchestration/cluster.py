"""A Ray cluster to work on, and the one ledger by which its CPUs are divided."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from mixtura.platform.config import ExecutorSection
from mixtura.platform.errors import ResourceError

_SMALLEST_SHARE = 0.01
_HOUR_MS = 3_600_000
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Ledger:
    """Who may use how many CPUs of the cluster while a run trains; fractions where the machine is small."""

    cpus: float
    workers: int
    worker_cpus: float
    worker_gpus: float
    builder_cpus: float
    """CPUs of one block-building task."""
    builders: int
    """Block-building tasks at a time in each worker's pipeline."""
    evaluator_cpus: float
    evaluators: int

    def describe(self) -> str:
        """One line for the terminal."""
        gpus = f" + {self.worker_gpus:g} GPU" if self.worker_gpus else ""
        return (
            f"{self.workers} x {self.worker_cpus:g} CPU{gpus} train, "
            f"{self.workers * self.builders} x {self.builder_cpus:g} build blocks, "
            f"{self.evaluators} x {self.evaluator_cpus:g} evaluate, of {self.cpus:g} CPUs"
        )


def divide(cpus: float, gpus: float, settings: ExecutorSection) -> Ledger:
    """Divide a cluster: half of the CPUs train (or what was asked for), a quarter builds blocks, a quarter evaluates.

    Raises ResourceError with the numbers where the plan could never be scheduled.

    >>> divide(2, 0, ExecutorSection(workers=2)).describe()
    '2 x 0.5 CPU train, 2 x 0.25 build blocks, 2 x 0.25 evaluate, of 2 CPUs'
    """
    workers = settings.workers
    wanted_gpus = settings.gpus_per_worker * workers
    if wanted_gpus > gpus:
        raise ResourceError(
            f"{workers} workers with {settings.gpus_per_worker:g} GPUs each need {wanted_gpus:g} GPUs; "
            f"the cluster has {gpus:g}: lower executor.workers or executor.gpus_per_worker"
        )
    worker = settings.cpus_per_worker if settings.cpus_per_worker is not None else _rounded(cpus / 2 / workers)
    share = (cpus - worker * workers) / 2
    if share < _SMALLEST_SHARE * workers:
        raise ResourceError(
            f"{workers} workers with {worker:g} CPUs each leave {max(0.0, cpus - worker * workers):g} of {cpus:g} CPUs "
            "for building blocks and evaluation, which would wait for ever: "
            "lower executor.cpus_per_worker or executor.workers"
        )
    builder = _rounded(min(1.0, share / workers))
    evaluator = _rounded(min(1.0, share / 2)) if settings.gpus_per_worker == 0 else min(1.0, share)
    return Ledger(
        cpus=cpus,
        workers=workers,
        worker_cpus=worker,
        worker_gpus=settings.gpus_per_worker,
        builder_cpus=builder,
        builders=max(1, int(share / workers / builder + 1e-9)),
        evaluator_cpus=evaluator,
        evaluators=max(1, min(8, int(share / evaluator + 1e-9))),
    )


def _rounded(share: float) -> float:
    """Whole CPUs where there is one, otherwise down to thousandths."""
    return float(int(share)) if share >= 1 else int(share * 1000) / 1000


@contextlib.contextmanager
def connected(settings: ExecutorSection) -> Iterator[Ledger]:
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
            ray.init(address="local", include_dashboard=False, **options)
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`"
        ) from None
    try:
        resources = ray.cluster_resources()
        yield divide(resources.get("CPU", 0), resources.get("GPU", 0), settings)
    finally:
        ray.shutdown()


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
