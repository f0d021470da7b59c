"""What a rank copies to host memory at a checkpoint: its pieces of the parameters and of the optimizer's state.

The only stall of training is this copy. Everything is in coordinates of whole parameters, so that any number of
ranks and any ZeRO stage can read what any other wrote.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
