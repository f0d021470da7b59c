"""`mixtura ui` of runs that are on a tracking server: links there, and nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.tracking import server
from mixtura.platform.tracking.mlflow_state import State
from mixtura.platform.workspace import Run

from .asking import Ask


def test_runs_on_a_tracking_server_are_linked_to_there(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("a server was started")

    monkeypatch.setattr(server, "serve_ui", started)
    run = Run(tmp_path / "base")
    run.path.mkdir()
    run.set_status("done", recipe="quickstart", attempts=1)
    State(store="http://tracking.example:5000", experiment_id="7", run_id="ab").save(run.path / "mlflow.json")
    answer = ask("ui", "--root", str(tmp_path))
    assert answer.code == 0
    assert answer.output.startswith("checkpoints of base: http://tracking.example:5000/#/experiments/7/runs?")


def test_a_folder_without_a_run_has_no_page(ask: Ask, tmp_path: Path) -> None:
    answer = ask("ui", "--root", str(tmp_path))
    assert (answer.code, answer.output) == (2, "")
    assert "has no tracked run yet: start one with `mixtura train quickstart`" in answer.message
