"""What all tests share: the folder of public data and worked answers, a small Ray cluster, one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Public data and the original code's answers, which live beside the checkout and not in it."""
    folder = REPOSITORY / "../shared"
    if not folder.is_dir():
        pytest.skip("the folder of public data and worked answers (../shared) is not here")
    return folder.resolve()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster of two CPUs for all tests of a module."""
    import logging

    import ray

    from mixtura.platform.orchestration.cluster import quiet_ray

    quiet_ray()
    environment = {"PYTHONPATH": str(REPOSITORY / "src")}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()
