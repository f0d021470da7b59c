"""What is said beforehand of an engine's memory is what it takes, part by part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.training.footprint import Weights, moment_bytes, state_bytes

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).with_name("footprint_runs.py")
WIDTH, LAYERS = 160, 12
BUCKET = 2 * WIDTH * WIDTH
CASES = [
    (0, "fp32", "adafactor"),
    (0, "fp32", "adamw"),
    (1, "fp32", "adafactor"),
    (1, "fp32", "adamw"),
    (1, "bf16", "adafactor"),
    (2, "fp32", "adafactor"),
    (2, "bf16", "adafactor"),
    (2, "bf16", "adamw"),
    (3, "fp32", "adafactor"),
    (3, "bf16", "adamw"),
]


@pytest.fixture(scope="module")
def counted(repository: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """What the engine took in each case, counted in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1"}
    arguments = [",".join(map(str, case)) for case in CASES]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("counted ")]
    return {
        (row["stage"], row["precision"], row["optimizer"]): row for row in json.loads(line.removeprefix("counted "))
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"zero{case[0]}-{case[1]}-{case[2]}")
def test_state_is_as_planned(counted: dict[tuple[int, str, str], dict[str, Any]], case: tuple[int, str, str]) -> None:
    stage, precision, optimizer = case
    row = counted[case]
    shapes = {f"{layer}.{part}": (WIDTH,) * rank for layer in range(LAYERS) for part, rank in (("w", 2), ("b", 1))}
    weights = Weights(shapes, {})
    assert weights.trained_elements == row["elements"]
    planned = state_bytes(
        weights, stage=stage, workers=1, precision=precision, optimizer=optimizer, bucket_elements=BUCKET
    )
    assert planned.parameters == pytest.approx(row["parameters"], rel=0.01)
    assert planned.optimizer == pytest.approx(row["state"], rel=0.03)
    # The most at a time: gradients with what reduces them, or with what the update needs.
    held = {1: 2 if precision == "bf16" else 4, 3: 0}.get(stage, 4) * row["elements"]  # at stage 3 they are kept
    most = row["gradients_kept"] + max(row["backward_peak"], held + row["update_peak"])
    assert planned.gradients + max(planned.buffers, planned.update) == pytest.approx(most, rel=0.1)


def test_state_is_divided_among_workers() -> None:
    weights = Weights({"wi": (1024, 512), "scale": (1024,)}, {"embedding": (300, 512)})
    alone, shared = (
        {
            stage: state_bytes(weights, stage=stage, workers=workers, precision="bf16", optimizer="adamw")
            for stage in (1, 2, 3)
        }
        for workers in (1, 4)
    )
    trained, frozen = 1024 * 512 + 1024, 300 * 512
    assert shared[1].optimizer == alone[1].optimizer / 4 == 12 * trained / 4
    assert shared[1].gradients == alone[1].gradients
    assert shared[2].gradients == alone[2].gradients / 4 == 4 * trained / 4
    assert shared[2].parameters == 2 * (trained + frozen)
    # Small weights, here the scale, are on every worker whole.
    assert shared[3].parameters == alone[3].parameters / 4 + 2 * 1024


def test_adafactor_keeps_a_row_and_a_column_where_both_are_large_enough() -> None:
    # A matrix of 128 or more on both sides: 200 + 128 means, each with its count; everything else per element.
    assert moment_bytes({"large": (200, 128)}, "adafactor", owned=25_600) == 4 * 2 * (200 + 128)
    assert moment_bytes({"small": (200, 127)}, "adafactor", owned=25_400) == 4 * 25_400
    assert moment_bytes({"large": (200, 128)}, "adamw", owned=25_600) == 4 * 2 * 25_600


def test_offloading_leaves_the_optimizers_part_out() -> None:
    weights = Weights({"wi": (1000, 500)}, {})
    planned = state_bytes(weights, stage=2, workers=2, precision="bf16", optimizer="adamw", offload=True)
    assert planned.optimizer == planned.update == 0
    assert planned.parameters == 2 * 500_000
