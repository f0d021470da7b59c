"""A cluster of several machines, played by processes of this one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "idle_worker_killing_time_threshold_ms": 3_600_000,  # as in a cluster that a run starts for itself
}


@contextlib.contextmanager
def two_machines(repository: Path) -> Iterator[Any]:
    """Two machines of one CPU each, the first of which cannot be lost."""
    import ray
    from ray.cluster_utils import Cluster

    from mixtura.platform.orchestration.cluster import quiet_ray

    quiet_ray()
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "_system_config": QUICK_TO_NOTICE},
        shutdown_at_exit=False,  # its signal handlers could be set in the main thread only
    )
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    environment = {"PYTHONPATH": str(repository / "src")}
    ray.init(
        address=made.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": environment},
    )
    yield made
    ray.shutdown()
    made.shutdown()
