"""What all tests share: the folder of public data and worked answers, a small Ray cluster, a prepared workspace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Clusters of one machine listen on loopback; read when Ray is imported, which some test may do before ours does.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# The quickstart at a size that trains in seconds; its tasks, lanes and executor stay as they are.
TINY = (
    "model.d_model=32",
    "model.d_kv=8",
    "model.d_ff=64",
    "model.num_heads=4",
    "model.num_layers=1",
    "vocabulary.size=600",
    "data.inputs_length=48",
    "data.targets_length=24",
    "data.block_size=32",
    "training.global_batch_size=12",
    "training.microbatch_size=6",
    "training.steps=8",
    "checkpoints.every=4",
    "evaluation.examples=8",
    "evaluation.decode_length=8",
)


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


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides that make the quickstart train in seconds."""
    return list(TINY)


@pytest.fixture(scope="session")
def workspace_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the vocabulary and the token caches of the tiny quickstart, made once."""
    from mixtura.platform import recipe_files
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.workspace import workspace

    root = tmp_path_factory.mktemp("workspace") / "runs"
    prepare(recipe_files.load("quickstart", TINY), workspace(str(root)), map_inline, SilentReporter())
    return root


@pytest.fixture(scope="session")
def tiny_vocabulary(workspace_root: Path) -> Path:
    """The vocabulary of the tiny quickstart, of 600 ids."""
    from mixtura.platform.orchestration.prepare import prepare_vocabulary
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.tasks import load_recipe, tasks_of
    from mixtura.platform.workspace import workspace

    config = load_recipe("quickstart", TINY)
    tasks = list(tasks_of(config).values())
    return prepare_vocabulary(config, workspace(str(workspace_root)), tasks, SilentReporter()).path


@pytest.fixture
def new_workspace(workspace_root: Path, tmp_path: Path) -> Path:
    """An empty folder of runs of this test's own, with the caches of the tiny quickstart."""
    root = tmp_path / "runs"
    root.mkdir()
    (root / "caches").symlink_to(workspace_root / "caches")
    return root


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
