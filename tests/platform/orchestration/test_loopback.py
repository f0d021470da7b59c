"""A cluster that a run starts for itself is not reachable from another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOK = """
import json, psutil
from mixtura.platform.config import ExecutorSection
from mixtura.platform.orchestration.{module} import {way}
with {way}(ExecutorSection(workers=1)):
    family = psutil.Process().children(recursive=True)
    found = [one for process in family for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    print(json.dumps(sorted(set(one.laddr.ip.removeprefix("::ffff:") for one in found))))
"""


def said_by(program: str, repository: Path) -> str:
    """The last line of a program that runs by itself, as on a machine where Ray was told nothing."""
    dropped = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repository,
        env=environment | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("module", "way"), [("cluster", "connected"), ("corpus_tasks", "corpus_tasks")])
def test_every_server_of_a_cluster_of_ones_own_listens_on_loopback(module: str, way: str, repository: Path) -> None:
    assert json.loads(said_by(LOOK.format(module=module, way=way), repository)) == ["127.0.0.1"]


ASK = """
from mixtura.platform.config import ExecutorSection
from mixtura.platform.orchestration.cluster import connected
with connected(ExecutorSection(workers=1)):
    import os, ray
    from ray.util.state import get_actor
    from ray.util.state.exception import RayStateApiException
    def ask():
        try:
            return get_actor("0" * 32, timeout=5)
        except RayStateApiException as error:
            return str(error)
    print("RAY_API_SERVER_ADDRESS" in os.environ, ray.get(ray.remote(num_cpus=0)(ask).remote()))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_s_own_cluster_asks_no_other_cluster_of_the_machine_who_is_alive(repository: Path) -> None:
    """Ray Train asks for its controller; another cluster does not know it, and the run would lose its workers."""
    ours, answer = said_by(ASK, repository).split(" ", 1)
    assert ours == "False"
    assert "Failed to make request to http://127.0.0.1:1" in answer
