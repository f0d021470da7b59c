"""The most memory that a step takes is what was said beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.config import Config, validated
from mixtura.platform.orchestration.memory import Planned, Setting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("memory_runs.py")
BUCKET = 300_000
CASES: list[dict[str, Any]] = [
    {"stage": stage, "precision": precision, "optimizer": optimizer, "feed_forward": kind, "checkpointing": again}
    for stage, precision, optimizer, kind, again in (
        (0, "fp32", "adafactor", "relu", False),
        (1, "fp32", "adamw", "gated-gelu", False),
        (1, "bf16", "adafactor", "gated-gelu", False),
        (2, "fp32", "adafactor", "gated-gelu", False),
        (2, "bf16", "adamw", "relu", False),
        (1, "bf16", "adafactor", "gated-gelu", True),
        (2, "fp32", "adafactor", "relu", True),
    )
]


@pytest.fixture(scope="module")
def counted(repository: Path) -> list[int]:
    """Bytes at the worst moment of each case, counted in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1"}
    given = json.dumps([{**case, "bucket": BUCKET} for case in CASES])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), given], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("counted ")]
    return list(json.loads(line.removeprefix("counted ")))


@pytest.mark.parametrize("place", range(len(CASES)), ids=lambda place: "-".join(map(str, CASES[place].values())))
def test_the_most_at_a_time_is_as_planned(counted: list[int], place: int) -> None:
    case = CASES[place]
    planned = Planned.of(recipe(case))
    setting = Setting(case["stage"], workers=1, microbatch=4, activation_checkpointing=case["checkpointing"])
    assert planned.memory(setting, on_gpu=False).total == pytest.approx(counted[place], rel=0.1)


def recipe(case: dict[str, Any]) -> Config:
    """Two microbatches of four rows of 128 and 128, with a vocabulary too small to matter."""
    shape = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_heads": 4, "num_layers": 4}
    return validated(
        {
            "model": {**shape, "feed_forward": case["feed_forward"]},
            "vocabulary": {"size": 300},
            "mixture": {"tasks": ["squad"]},
            "data": {"inputs_length": 128, "targets_length": 128},
            "optimizer": {"name": case["optimizer"]},
            "training": {
                "steps": 1,
                "global_batch_size": 8,
                "microbatch_size": 4,
                "precision": case["precision"],
                "zero_stage": case["stage"],
                "deepspeed": {"zero_optimization": {"reduce_bucket_size": BUCKET}},
            },
        },
        where="this test",
    )
