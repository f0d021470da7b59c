"""What a worker may run on: memory, and the rate of dense matrix products as the makers state it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mixtura.platform.errors import UnknownNameError

_GIB = 2**30
_TERA = 1e12


@dataclass(frozen=True)
class Device:
    """One accelerator, or one core of a CPU."""

    name: str
    memory_bytes: float
    """What programs see of it."""
    bf16_flops: float | None
    """Floating point operations a second in matrix products without sparsity; None where it has no bf16."""
    fp32_flops: float
    """The same in true fp32, which is what torch computes unless TF32 is switched on."""
    overhead_bytes: float
    """Assumed for what is no tensor: the CUDA context, libraries and their workspaces, NCCL, fragments between tensors;
    of a CPU, Python with its libraries."""

    def flops(self, precision: str) -> float:
        """The peak that is counted with: of bf16 on a device without it, that of fp32."""
        return self.fp32_flops if precision == "fp32" or self.bf16_flops is None else self.bf16_flops


def _gpu(name: str, memory_gib: float, bf16: float | None, fp32: float) -> Device:
    # 0.6 GiB of context, 1 GiB of workspaces and NCCL's channels, and 3 % lost between tensors.
    overhead = (1.6 + 0.03 * memory_gib) * _GIB
    return Device(name, memory_gib * _GIB, None if bf16 is None else bf16 * _TERA, fp32 * _TERA, overhead)


GPUS: Mapping[str, Device] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            # GiB, dense bf16 and fp32 TFLOP/s: the makers' data sheets, of the SXM form where there are several.
            _gpu("a100-40", 39.4, 312, 19.5),
            _gpu("a100-80", 79.1, 312, 19.5),
            _gpu("h100", 79.1, 989, 67),
            _gpu("h200", 139.7, 989, 67),
            _gpu("b200", 178.3, 2250, 75),
            _gpu("l4", 22.0, 121, 30.3),
            _gpu("a10g", 22.0, 70, 31.5),
            _gpu("v100", 31.7, None, 15.7),
        )
    }
)

# One core of a server of 2024, as measured; another machine's may have half of it, and many have no bf16 unit.
_CORE_BF16, _CORE_FP32 = 0.456 * _TERA, 0.086 * _TERA


def device(name: str, workers: int) -> Device:
    """A device by name; `cpu` is one core for each worker, with this machine's memory divided among them."""
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device("cpu", memory / workers, _CORE_BF16, _CORE_FP32, 0.8 * _GIB)
    if name not in GPUS:
        raise UnknownNameError("GPU", name, [*GPUS, "cpu"])
    return GPUS[name]


def device_called(name: str) -> Device | None:
    """The device by the name that its driver gives it; None where its peak is not known.

    >>> [device_called(f"NVIDIA {name}").name for name in ("H100 80GB HBM3", "A100-SXM4-40GB", "A100 80GB PCIe", "L4")]
    ['h100', 'a100-40', 'a100-80', 'l4']
    >>> device_called("NVIDIA L40S") is None
    True
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    for key, gpu in GPUS.items():
        kind, _, memory = key.partition("-")
        if kind in words and (not memory or f"{memory}gb" in words):
            return gpu
    return None
