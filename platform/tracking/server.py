"""MLflow's pages for a person: a server on loopback, over the workspace's store."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mixtura.platform.errors import ResourceError
from mixtura.platform.tracking.mlflow_store import artifact_folder

HOST = "127.0.0.1"
DEFAULT_PORT = 5000

# The command `mlflow`, which the kernel (Linux only) ends when the process that started it ends, however that ends.
_MLFLOW = """
import ctypes, runpy, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
runpy.run_module("mlflow", run_name="__main__")
"""


@dataclass
class UiServer:
    """A running MLflow server. As a context manager it is stopped at the end."""

    process: subprocess.Popen[bytes]
    url: str

    def wait(self) -> int:
        """Wait until the server ends by itself."""
        return self.process.wait()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the server and what it started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                os.killpg(self.process.pid, sign)
                try:
                    self.process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    continue

    def __enter__(self) -> UiServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def serve_ui(store_uri: str, port: int | None = None, *, log: Path | None = None, timeout_s: float = 180.0) -> UiServer:
    """Start MLflow's server over a store, reachable from this machine only, and return when it answers.

    Without a port the first free one from 5000 on is taken. What the server says goes to the file `log`.
    Raises ResourceError where the port is taken or the server does not come up.
    """
    chosen = _free_port() if port is None else _checked(port)
    command = [sys.executable, "-c", _MLFLOW, "server", "--backend-store-uri", store_uri]
    folder = artifact_folder(store_uri)
    if folder is not None:  # for those who give it files over HTTP; otherwise a folder of the working directory
        command += ["--artifacts-destination", str(folder)]
    command += ["--host", HOST, "--port", str(chosen), "--workers", "1"]
    # The server would otherwise run jobs for agents and report its use.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **quiet},
            start_new_session=True,
        )
    server = UiServer(process, f"http://{HOST}:{chosen}")
    try:
        _wait_until_up(server, timeout_s, log)
    except BaseException:
        server.stop()
        raise
    return server


def _checked(port: int) -> int:
    if not _is_free(port):
        raise ResourceError(
            f"port {port} on {HOST} is taken: give another one with --port, or leave it out to take a free one"
        )
    return port


def _free_port() -> int:
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 100):
        if _is_free(port):
            return port
    raise ResourceError(
        f"the ports {DEFAULT_PORT} to {DEFAULT_PORT + 99} on {HOST} are all taken: give one with --port"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server will, so that a port is not refused while the system holds it after a connection's end.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _answers(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _wait_until_up(server: UiServer, timeout_s: float, log: Path | None) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        if _answers(server.url):
            return
        time.sleep(0.2)
    where = f"; what it said is in {log}" if log is not None else ""
    raise ResourceError(f"MLflow's server did not come up at {server.url} within {timeout_s:.0f} s{where}")
