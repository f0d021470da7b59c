"""What a rank copies to host memory at a checkpoint: its pieces of the parameters and of the optimizer's state.

The only stall of training is this copy. Everything is in coordinates of whole parameters, so that any number of
ranks and any ZeRO stage can read what any other wrote.
"""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Fragment:
    """A piece of a flattened parameter: elements `start` to `start + length` lie here, at `offset` of a flat tensor.

    `shape` is the whole parameter's shape and `numel` its number of elements.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    start: int
    length: int
    offset: int


@dataclass
class FragmentState:
    """Values of a fragment: flat fp32 host tensors of equal length, beginning at element `start` of the parameter.

    `tensors` has "master" (the fp32 weights) and what the optimizer keeps per element ("exp_avg", "exp_avg_sq",
    "second_moment").
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, torch.Tensor]

    @property
    def length(self) -> int:
        """Number of elements of the parameter that lie in this fragment."""
        return next(iter(self.tensors.values())).numel() if self.tensors else 0

    @property
    def numel(self) -> int:
        """Number of elements of the whole parameter."""
        return math.prod(self.shape)


@dataclass
class Snapshot:
    """One rank's share of a checkpoint.

    `replicated` holds what is equal on all ranks ("<parameter>/row", "<parameter>/column" of Adafactor's factored
    second moment); rank 0 writes it. Fragments of different ranks may overlap (stage 0: every rank has everything)
    as long as they agree: the first rank's values are taken.
    """

    fragments: list[FragmentState]
    replicated: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer_step: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [tensor for fragment in self.fragments for tensor in fragment.tensors.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, *self.replicated.values()])


class HostCopies:
    """fp32 copies of tensors in host memory, valid after `wait`.

    From a GPU they go to page-locked memory, all one after the other while the host waits only once, which is several
    times as fast as copies to ordinary memory. Locking pages takes longer than copying to them, and so does the first
    touch of ordinary ones: the memory of `reuse`, a snapshot that nobody needs any more, is taken again.
    """

    def __init__(self, reuse: Snapshot | None = None) -> None:
        self._free: dict[tuple[str, str], torch.Tensor] = {}
        self._device: torch.device | None = None
        if reuse is not None:
            for fragment in reuse.fragments:
                self._free |= {(fragment.name, kind): values for kind, values in fragment.tensors.items()}
            self._free |= {(name, ""): values for name, values in reuse.replicated.items()}

    def copy(self, name: str, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of one tensor; `name` and `kind` tell the same one in the next snapshot."""
        copy = self._free.pop((name, kind), None)
        if copy is None or copy.shape != tensor.shape:
            copy = _host_memory(tensor)
        if tensor.device.type == "cuda":
            self._device = tensor.device
        return copy.copy_(tensor.detach(), non_blocking=True)

    def wait(self) -> None:
        """Wait until all copies are there."""
        if self._device is not None:
            torch.cuda.current_stream(self._device).synchronize()


def _host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a copy, page-locked for a tensor of a GPU unless too much of the machine's is taken."""
    if tensor.device.type == "cuda" and _may_lock(4 * tensor.numel()):
        with contextlib.suppress(RuntimeError):  # the driver allows no more of it
            return torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
    return torch.empty(tensor.shape, dtype=torch.float32, device="cpu")


def _may_lock(size_bytes: int) -> bool:
    """PyTorch locks up to twice what is asked for, every rank of this machine asks now, and locked pages cannot be
    swapped out: half of what is free stays so."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 4 * size_bytes * ranks < _available_bytes()


def _available_bytes() -> int:
    """Memory that the machine could give without swapping; 0 where it does not say."""
    about = Path("/proc/meminfo")
    if not about.exists():
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in about.read_text().splitlines() if line.startswith("MemAvailable")), 0
    )
