"""What training costs: model FLOPs against the device's peak, memory of the process, and how busy each machine is."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil
import torch

from mixtura.platform.orchestration.devices import device_called
from mixtura.platform.orchestration.helper_thread import HelperThread
from mixtura.platform.tracking.records import EventWriter, SystemPoint
from mixtura.platform.training.loop import LoopSettings, StepReport
from mixtura.platform.workspace import Run

if TYPE_CHECKING:
    from mixtura.models.t5 import T5Config

_MB = 1e6


class StepMeter:
    """The numbers of a step beside its loss: FLOPs of the model a second, their share of the peak of all workers' GPUs
    (model FLOPs utilisation) where the GPU is known, and the memory of this process."""

    def __init__(
        self, model: T5Config, settings: LoopSettings, precision: str, workers: int, device: torch.device
    ) -> None:
        self._model, self._settings, self._device = model, settings, device
        known = device_called(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if known is None else known.flops(precision) * workers
        self._process = psutil.Process()

    def of(self, report: StepReport) -> dict[str, float]:
        """By the name of its curve."""
        from mixtura.models.t5.flops import flops_per_step

        settings = self._settings
        flops = flops_per_step(
            self._model,
            settings.global_batch_size,
            settings.inputs_length,
            settings.targets_length,
            report.target_tokens,
        )
        per_second = flops.step / report.step_s
        metrics = {"tflops": per_second / 1e12, "memory/process_mb": self._process.memory_info().rss / _MB}
        if self._peak is not None:
            metrics["mfu"] = per_second / self._peak
        if self._device.type == "cuda":
            metrics["memory/gpu_mb"] = torch.cuda.max_memory_allocated(self._device) / _MB
            torch.cuda.reset_peak_memory_stats(self._device)
        return metrics


class SystemMonitor(HelperThread):
    """Writes every so many seconds how busy this machine is, to a file of events of its own.

    What cannot be read or written is left out: no training ends for want of it.
    """

    def __init__(self, run: Run, node: int, every_s: float) -> None:
        super().__init__(run, "system metrics", every_s)
        self.node = node
        self._events = EventWriter(run.events / f"system-{node:04d}-{time.time_ns()}.jsonl")
        psutil.cpu_percent()  # the first call only begins to measure

    def look(self) -> None:
        """Write how it is now."""
        with contextlib.suppress(OSError, psutil.Error):
            self._events.write(SystemPoint(self.node, system_metrics(self.run.path)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        with contextlib.suppress(OSError):
            self._events.close()


def system_metrics(folder: Path) -> dict[str, float]:
    """How busy this machine is, and how full the disk of a folder, by the names that MLflow's own monitor has."""
    memory = psutil.virtual_memory()
    metrics = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MB,
        "system_memory_usage_percentage": memory.percent,
    }
    with contextlib.suppress(OSError):
        disk = psutil.disk_usage(os.fspath(folder))
        metrics |= {"disk_usage_percentage": disk.percent, "disk_available_megabytes": disk.free / _MB}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            metrics[f"gpu_{number}_memory_usage_megabytes"] = (total - free) / _MB
            metrics[f"gpu_{number}_memory_usage_percentage"] = 100 * (1 - free / total)
            with contextlib.suppress(Exception):  # needs NVIDIA's management library
                metrics[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization(number))
    return metrics
