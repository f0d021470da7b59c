"""What a step costs, and how busy machines are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixtura.models.t5 import SIZES
from mixtura.models.t5.flops import flops_per_step
from mixtura.platform.config import Config
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration import meters
from mixtura.platform.orchestration.meters import StepMeter, SystemMonitor, system_metrics
from mixtura.platform.tracking.records import SystemPoint, read_events
from mixtura.platform.training.loop import LoopSettings, StepReport
from mixtura.platform.workspace import Run

SETTINGS = LoopSettings(
    steps=1,
    global_batch_size=8,
    microbatches=1,
    microbatch_size=8,
    inputs_length=512,
    targets_length=114,
    tasks=("a",),
    seed=0,
    learning_rate=lambda _: 0.01,
)
REPORT = StepReport(
    step=1,
    loss=1.0,
    loss_by_task={},
    learning_rate=0.01,
    gradient_norm=1.0,
    gradient_norm_by_task={},
    target_tokens=900,
    trained={},
    fingerprint="",
    data_wait_s=0.1,
    step_s=0.5,
)
SHAPE = SIZES["v1_1-base"]


def test_flops_are_those_of_the_model_in_the_time_of_the_whole_step() -> None:
    metrics = StepMeter(SHAPE, SETTINGS, "fp32", 2, torch.device("cpu")).of(REPORT)
    assert metrics["tflops"] == pytest.approx(flops_per_step(SHAPE, 8, 512, 114, 900).step / 0.5 / 1e12)
    assert 50 < metrics["memory/process_mb"] < 64_000
    assert "mfu" not in metrics  # the peak of this CPU is not known


def test_utilisation_is_the_share_of_the_peak_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    meter = StepMeter(SHAPE, SETTINGS, "bf16", 2, gpu)
    metrics, slower = meter.of(REPORT), meter.of(replace(REPORT, step_s=1.0))
    assert metrics["mfu"] == pytest.approx(metrics["tflops"] / (2 * 989))
    assert slower["mfu"] == pytest.approx(metrics["mfu"] / 2)
    assert metrics["memory/gpu_mb"] == 5.0


def test_a_monitor_writes_until_it_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with SystemMonitor(run, node=3, every_s=0.02):
        deadline = time.monotonic() + 30
        while len(read_events(run.events)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    points = [one for one in read_events(run.events) if isinstance(one, SystemPoint)]
    assert len(points) >= 3
    assert {point.node for point in points} == {3}
    for point in points:
        assert 0 <= point.metrics["cpu_utilization_percentage"] <= 100
        assert 0 < point.metrics["disk_usage_percentage"] <= 100
        assert all(math.isfinite(value) for value in point.metrics.values())
    time.sleep(0.1)
    assert len(read_events(run.events)) == len(points)


def test_what_cannot_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: str) -> None:
        raise OSError("no such device")

    monkeypatch.setattr(meters.psutil, "disk_usage", refuse)
    metrics = system_metrics(tmp_path)
    assert "disk_usage_percentage" not in metrics
    assert "cpu_utilization_percentage" in metrics


def test_how_often_is_a_duration(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system_every"):
        tiny_config(tmp_path, "any", "tracking.system_every=often")
    assert tiny_config(tmp_path, "any", "tracking.system_every=null").tracking.system_every is None
