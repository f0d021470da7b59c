"""What every optimizer here has in common: the partition map, the gradient's norm, clipping, frozen parameters, state.

An optimizer is handed tensors (*holders*) in which the parameters, or pieces of them, lie as `Layout` says. A step is
one call on every rank: DeepSpeed makes it when the holders have their gradients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mixtura.platform.training.layout import Layout, StateOfParameters, gradient_piece, unnamed_layout
from mixtura.platform.training.snapshot import Fragment


class PartitionedOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer that is exact on whole tensors and on ZeRO's partitions; without `bind` they are whole parameters.

    `lr` of the parameter group is set anew for every step. Parameters named in `frozen` get no update in a step, their
    state stays as it is, and their gradients count neither for the norm nor for clipping. `gradient_norm` is that of
    the last step before clipping; if it is not finite, nothing was changed.
    """

    def __init__(self, params: Iterable[Tensor], defaults: dict[str, Any], clip_gradient_norm: float | None) -> None:
        super().__init__(params, defaults)
        self.clip_gradient_norm = clip_gradient_norm
        self.frozen: frozenset[str] = frozenset()
        self.gradient_norm = math.nan
        self.update_count = 0
        """Updates done, over all attempts of a run."""
        self._layout: Layout | None = None

    def bind(self, layout: Layout) -> None:
        """Take the partition map; the state begins anew."""
        self._layout = layout
        self.update_count = 0
        self._allocate(layout)

    def _bound(self) -> Layout:
        """The partition map; where there is none the tensors are whole parameters."""
        if self._layout is None:
            self.bind(unnamed_layout(self.param_groups))
            assert self._layout is not None
        return self._layout

    @abstractmethod
    def _allocate(self, layout: Layout) -> None:
        """Make the state of update 0."""

    # ---- a step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update with the gradients that the tensors hold; a missing gradient counts as zero."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        layout = self._bound()
        trained = [
            (index, holder, fragment)
            for index, (holder, fragment) in enumerate(layout)
            if fragment.length and fragment.name not in self.frozen
        ]
        self.gradient_norm = self._clip(layout, trained)
        if math.isfinite(self.gradient_norm):
            self._update(layout, trained)
            self.update_count += 1
        return loss

    def _clip(self, layout: Layout, trained: Sequence[Placed]) -> float:
        """The norm of the gradient over all ranks; the gradients are scaled down where it is too large."""
        total = torch.zeros(1, device=layout.holders[0].device)
        gradients = [gradient_piece(holder, fragment) for _, holder, fragment in trained if holder.grad is not None]
        if gradients:
            total += squared_norms(gradients).sum()
        norm = float(layout.reduce(total).sqrt())
        if self.clip_gradient_norm is not None and self.clip_gradient_norm < norm < math.inf:
            for holder in layout.holders:
                if holder.grad is not None:
                    holder.grad.mul_(self.clip_gradient_norm / norm)
        return norm

    @abstractmethod
    def _update(self, layout: Layout, trained: Sequence[Placed]) -> None:
        """Change the weights and the state of what is trained here; the gradients are finite."""

    # ---- state -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def local_state(self) -> dict[str, dict[str, Tensor]]:
        """What is kept per element, flat, for every fragment here."""

    @abstractmethod
    def replicated_state(self) -> dict[str, Tensor]:
        """What every rank keeps in the same way: `PARAMETER/KEY` to tensor."""

    @abstractmethod
    def load_state(self, state: StateOfParameters, update_count: int) -> None:
        """Take state in coordinates of whole parameters, written at any stage and world size."""

    @property
    def state_bytes(self) -> int:
        """Bytes of what is kept from step to step beside the weights."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor)]
        of_holders = [value for state in self.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in [*own, *of_holders])


Placed = tuple[int, Tensor, Fragment]
"""A fragment with its place in the layout and its holder."""


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Sums of squares, one number a tensor.

    PyTorch's own norms add up one after the other in fp32 on a CPU: at 4 million elements they are off by 1e-4.
    """
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(list(tensors))).square_()
    return torch.stack([tensor.square().sum() for tensor in tensors])
