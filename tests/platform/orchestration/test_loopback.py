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
from mixtura.platform.orchestration.cluster import connected
with connected(ExecutorSection(workers=1)):
    family = psutil.Process().children(recursive=True)
    found = [one for process in family for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    print(json.dumps(sorted({one.laddr.ip.removeprefix("::ffff:") for one in found})))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_every_server_of_a_runs_own_cluster_listens_on_loopback(repository: Path) -> None:
    dropped = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    result = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=repository,
        env=environment | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == ["127.0.0.1"]
