"""Command lines, asked in this process."""

from __future__ import annotations

import sys

import pytest

from mixtura.platform.cli.main import main

from .asking import Answer, Ask


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs a command line in this process, as the console script does; nothing it prints may be a traceback."""

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["mixtura", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        output, message = capsys.readouterr()
        assert "Traceback" not in output + message
        return Answer(code, output, message)

    return run
