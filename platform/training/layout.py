"""Which elements of which parameter lie in the tensors that an optimizer is handed: the partition map.

A *holder* is such a tensor. Without ZeRO, or at stage 0, every parameter is its own holder. At stages 1 and 2 a rank
has one holder, its flat fp32 partition, in which pieces of parameters (`Fragment`) follow each other:

    parameters   | embedding      | norm | query          |
    holders      | rank 0             | rank 1             |     norm begins on rank 0 and ends on rank 1

At stage 3 every parameter is cut into as many pieces as there are ranks, all equally long but for what the last ones
lack, and a rank's holder has one piece of each:

    rank 0       | embedding | norm | query |      the first half of each
    rank 1       | embedding | norm | query |      the second half, padded where the number of elements is odd
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixtura.platform.errors import CheckpointError
from mixtura.platform.training.snapshot import Fragment

StateOfParameters = Mapping[str, Mapping[str, Tensor]]
"""Optimizer state in coordinates of whole parameters: name of the parameter, name of the state, tensor."""


@dataclass(frozen=True)
class Layout:
    """Holders and the fragments in each of them, in the same order of parameters on every rank.

    A parameter of which nothing lies here is present with length 0, so that all ranks agree on what is reduced.
    `group` is the process group over which fragments complete each other; None where they are whole. Its ranks talk
    through `device`, if that is not where the holders are.
    """

    holders: tuple[Tensor, ...]
    fragments: tuple[tuple[Fragment, ...], ...]
    group: dist.ProcessGroup | None = None
    device: torch.device | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Fragment]]:
        """Every fragment with its holder."""
        for holder, fragments in zip(self.holders, self.fragments, strict=True):
            for fragment in fragments:
                yield holder, fragment

    def local(self) -> list[Fragment]:
        """The fragments that have elements here."""
        return [fragment for _, fragment in self if fragment.length]

    def reduce(self, sums: Tensor) -> Tensor:
        """Sums over the ranks that share the parameters, in place."""
        if self.group is not None:
            sent = sums if self.device is None else sums.to(self.device)
            dist.all_reduce(sent, group=self.group)
            if sent is not sums:
                sums.copy_(sent)
        return sums


def whole_layout(parameters: Iterable[tuple[str, Tensor]]) -> Layout:
    """Every parameter in one piece, in its own tensor.

    >>> whole_layout([("scale", torch.ones(4))]).local()
    [Fragment(name='scale', shape=(4,), numel=4, start=0, length=4, offset=0)]
    """
    named = list(parameters)
    return Layout(
        holders=tuple(tensor for _, tensor in named),
        fragments=tuple(
            (Fragment(name, tuple(tensor.shape), tensor.numel(), 0, tensor.numel(), 0),) for name, tensor in named
        ),
    )


def unnamed_layout(param_groups: Iterable[Mapping[str, Any]]) -> Layout:
    """Whole parameters that are only known by their place in an optimizer: "0", "1", ..."""
    tensors = [tensor for group in param_groups for tensor in group["params"]]
    return whole_layout((str(index), tensor) for index, tensor in enumerate(tensors))


def piece(holder: Tensor, fragment: Fragment) -> Tensor:
    """The fragment's elements as a flat view of its holder, or of any tensor laid out like it."""
    return holder.detach().view(-1)[fragment.offset : fragment.offset + fragment.length]


def gradient_piece(holder: Tensor, fragment: Fragment) -> Tensor:
    """The fragment's gradient, flat; zeros where the holder has none."""
    if holder.grad is None:
        return torch.zeros(fragment.length, dtype=holder.dtype, device=holder.device)
    return piece(holder.grad.contiguous(), fragment)


def cut(whole: Tensor, fragment: Fragment) -> Tensor:
    """The fragment's elements of a tensor in the whole parameter's shape."""
    if tuple(whole.shape) != fragment.shape:
        raise CheckpointError(
            f"parameter {fragment.name!r} has shape {fragment.shape}, but {tuple(whole.shape)} is to be loaded: "
            "the checkpoint is of another model"
        )
    return whole.reshape(-1)[fragment.start : fragment.start + fragment.length]


def state_of(state: StateOfParameters, parameter: str, key: str) -> Tensor:
    """One tensor of an optimizer's state; a CheckpointError that says what is there if it is missing."""
    try:
        return state[parameter][key]
    except KeyError:
        there = ", ".join(sorted(state[parameter])) if parameter in state else "nothing"
        raise CheckpointError(
            f"optimizer state {key!r} of parameter {parameter!r} is not in the checkpoint, which has {there} for it: "
            "load it with the optimizer it was written by"
        ) from None
