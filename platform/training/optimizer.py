"""The optimizers, each exact on whole tensors and on ZeRO's partitions, with state that any stage can load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.training.adafactor import Adafactor
from mixtura.platform.training.layout import Layout, StateOfParameters, cut, piece, state_of, unnamed_layout

__all__ = ["Adafactor", "AdamW", "OptimizerSettings", "PartitionedOptimizer", "create_optimizer"]


class PartitionedOptimizer(Protocol):
    """What the engine asks of an optimizer."""

    param_groups: list[dict[str, Any]]
    update_count: int
    """Updates done, over all attempts of a run."""

    def bind(self, layout: Layout) -> None:
        """Take the partition map; the state begins anew."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of what the holders have, with their gradients."""

    def local_state(self) -> dict[str, dict[str, Tensor]]:
        """What is kept per element, flat, for every fragment here."""

    def replicated_state(self) -> dict[str, Tensor]:
        """What every rank keeps in the same way: `PARAMETER/KEY` to tensor."""

    def load_state(self, state: StateOfParameters, update_count: int) -> None:
        """Take state in coordinates of whole parameters."""


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW, whose state can be taken and given by parameter; see Adafactor for `bind`.

    Its arithmetic is elementwise, so it needs no knowledge of where a matrix is cut. Weight decay is decoupled and, as
    in PyTorch, applies to every parameter.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.update_count = 0
        self._layout: Layout | None = None

    def bind(self, layout: Layout) -> None:
        """Take the partition map; both moments begin at zero."""
        self._layout = layout
        self.update_count = 0
        self._reset_state(layout)

    def _bound(self) -> Layout:
        """The partition map; where there is none the tensors are whole parameters."""
        if self._layout is not None:
            return self._layout
        layout = unnamed_layout(self.param_groups)
        self.bind(layout)
        return layout

    def _reset_state(self, layout: Layout) -> None:
        self.state.clear()
        for holder in layout.holders:
            self.state[holder] = {
                "step": torch.tensor(float(self.update_count)),
                "exp_avg": torch.zeros_like(holder, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(holder, requires_grad=False),
            }

    def step(self, closure: Any = None) -> Any:
        """One update with the gradients that the tensors hold."""
        self._bound()
        result = super().step(closure)
        self.update_count += 1
        return result

    def local_state(self) -> dict[str, dict[str, Tensor]]:
        """Flat `exp_avg` and `exp_avg_sq` of the fragments here."""
        return {
            fragment.name: {key: piece(self.state[holder][key], fragment) for key in ("exp_avg", "exp_avg_sq")}
            for holder, fragment in self._bound()
            if fragment.length
        }

    def replicated_state(self) -> dict[str, Tensor]:
        """Nothing: all of it is kept per element."""
        return {}

    @torch.no_grad()
    def load_state(self, state: StateOfParameters, update_count: int) -> None:
        """Take state in coordinates of whole parameters, written at any stage and world size."""
        layout = self._bound()
        self.update_count = update_count
        self._reset_state(layout)
        for holder, fragment in layout:
            if fragment.length:
                for key in ("exp_avg", "exp_avg_sq"):
                    source = cut(state_of(state, fragment.name, key), fragment)
                    piece(self.state[holder][key], fragment).copy_(source)


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer, and what is particular to it; the learning rate is given at every step."""

    name: str = "adafactor"
    weight_decay: float = 0.0
    """AdamW's only; T5's Adafactor has none."""
    clip_gradient_norm: float | None = None
    """Largest norm of the gradient of all parameters together; None does not clip, as T5."""
    min_dim_size_to_factor: int = 128
    """Adafactor's: smaller matrices keep a full second moment."""


def create_optimizer(settings: OptimizerSettings, parameters: Iterable[Tensor]) -> Adafactor | AdamW:
    """The optimizer that a recipe names."""
    match settings.name:
        case "adafactor":
            if settings.weight_decay:
                raise ConfigError(
                    f"optimizer.weight_decay is {settings.weight_decay}, but Adafactor has none in T5: "
                    "set it to 0, or use optimizer.name=adamw"
                )
            return Adafactor(parameters, min_dim_size_to_factor=settings.min_dim_size_to_factor)
        case "adamw":
            return AdamW(parameters, weight_decay=settings.weight_decay)
        case _:
            raise UnknownNameError("optimizer", settings.name, ["adafactor", "adamw"])
