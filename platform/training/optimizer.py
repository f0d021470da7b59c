"""The optimizers, each exact on whole tensors and on ZeRO's partitions, with state that any stage can load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.training.adafactor import Adafactor
from mixtura.platform.training.layout import Layout, StateOfParameters, cut, gradient_piece, piece, state_of
from mixtura.platform.training.partitioned import PartitionedOptimizer, Placed, squared_norms

__all__ = ["Adafactor", "AdamW", "OptimizerSettings", "PartitionedOptimizer", "create_optimizer"]

_SMALLEST_SCALE = 1e-3


class AdamW(PartitionedOptimizer):
    """AdamW (Loshchilov and Hutter 2019) as PyTorch's; and with the learning rate of each matrix scaled by its size.

    The arithmetic is elementwise, so it needs no knowledge of where a matrix is cut, except with `scale_by_parameter`:
    then the rate of a parameter w is multiplied by max(RMS(w), 1e-3), as Adafactor's is, with the root mean square of
    the whole of it before the update. nanoT5 (Nawrot 2023) found that as good as Adafactor for pre-training T5, with a
    rate of 0.02 and a cosine. One small all-reduce completes the norms of weights that are cut.

    Weight decay is decoupled, uses the unscaled rate and, as in PyTorch, applies to every parameter. Each parameter
    counts its own updates for the bias correction, so one that is frozen at first begins as all others do.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        scale_by_parameter: bool = False,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr}, clip_gradient_norm)
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.scale_by_parameter = scale_by_parameter

    def _allocate(self, layout: Layout) -> None:
        self.state.clear()
        for holder in layout.holders:
            self.state[holder] = {key: torch.zeros_like(holder, requires_grad=False) for key in _MOMENTS}
        self._names = [fragment.name for _, fragment in layout]
        self._updates = [0] * len(self._names)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def _update(self, layout: Layout, trained: Sequence[Placed]) -> None:
        rate = float(self.param_groups[0]["lr"])
        weights = [piece(holder, fragment) for _, holder, fragment in trained]
        gradients = [gradient_piece(holder, fragment) for _, holder, fragment in trained]
        moments = [[piece(self.state[holder][key], fragment) for _, holder, fragment in trained] for key in _MOMENTS]
        device = layout.holders[0].device
        counts = torch.tensor([self._updates[index] + 1.0 for index, _, _ in trained], device=device)
        columns = (weights, gradients, *moments, list(counts.unbind()))
        if self.scale_by_parameter:
            rates = self._scaled(rate, layout, trained)
            if self.weight_decay and weights:
                torch._foreach_mul_(weights, 1 - rate * self.weight_decay)
            for scaled, row in zip(rates, zip(*columns, strict=True), strict=True):
                self._fused(scaled, 0.0, *([tensor] for tensor in row))
        elif trained:
            self._fused(rate, self.weight_decay, *columns)
        for index, name in enumerate(self._names):
            self._updates[index] += name not in self.frozen

    def _fused(
        self,
        rate: float,
        weight_decay: float,
        weights: list[Tensor],
        gradients: list[Tensor],
        first: list[Tensor],
        second: list[Tensor],
        counts: list[Tensor],
    ) -> None:
        # Through torch.optim's functions a call for each parameter takes ten times as long.
        torch._fused_adamw_(
            weights,
            gradients,
            first,
            second,
            [],
            counts,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=self.eps,
            maximize=False,
        )

    def _scaled(self, rate: float, layout: Layout, trained: Sequence[Placed]) -> list[float]:
        """The learning rate of each parameter that is trained here."""
        sums = torch.zeros(len(self._names), device=layout.holders[0].device)
        here = [index for index, _, _ in trained]
        if trained:
            sums[here] = squared_norms([piece(holder, fragment) for _, holder, fragment in trained])
        totals = layout.reduce(sums)[here].tolist()
        scales = [(total / fragment.numel) ** 0.5 for total, (_, _, fragment) in zip(totals, trained, strict=True)]
        return [rate * max(scale, _SMALLEST_SCALE) for scale in scales]

    # ---- state -------------------------------------------------------------------------------------------------------

    def local_state(self) -> dict[str, dict[str, Tensor]]:
        """Flat `exp_avg` and `exp_avg_sq` of the fragments here."""
        return {
            fragment.name: {key: piece(self.state[holder][key], fragment) for key in _MOMENTS}
            for holder, fragment in self._bound()
            if fragment.length
        }

    def replicated_state(self) -> dict[str, Tensor]:
        """How many updates each parameter had: `NAME/updates`."""
        self._bound()
        return {
            f"{name}/updates": torch.tensor(float(count))
            for name, count in zip(self._names, self._updates, strict=True)
        }

    @torch.no_grad()
    def load_state(self, state: StateOfParameters, update_count: int) -> None:
        """Take state in coordinates of whole parameters, written at any stage and world size."""
        layout = self._bound()
        self._allocate(layout)
        self.update_count = update_count
        for index, (holder, fragment) in enumerate(layout):
            if fragment.length:
                for key in _MOMENTS:
                    source = cut(state_of(state, fragment.name, key), fragment)
                    piece(self.state[holder][key], fragment).copy_(source)
            self._updates[index] = int(state_of(state, fragment.name, "updates"))


_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer, and what is particular to it; the learning rate is given at every step."""

    name: str = "adafactor"
    """`adamw_rms` is AdamW with a learning rate scaled by the size of each matrix."""
    weight_decay: float = 0.0
    """AdamW's only; T5's Adafactor has none."""
    clip_gradient_norm: float | None = None
    """Largest norm of the gradient of all parameters together; None does not clip, as T5."""
    min_dim_size_to_factor: int = 128
    """Adafactor's: smaller matrices keep a full second moment."""
    beta1: float = 0.9
    """AdamW's share of the first moment that is kept, as `beta2` is of the second."""
    beta2: float = 0.999
    epsilon: float = 1e-8
    """AdamW's, added to the root of the second moment."""


def create_optimizer(settings: OptimizerSettings, parameters: Iterable[Tensor]) -> Adafactor | AdamW:
    """The optimizer that a recipe names."""
    match settings.name:
        case "adafactor":
            if settings.weight_decay:
                raise ConfigError(
                    f"optimizer.weight_decay is {settings.weight_decay}, but Adafactor has none in T5: "
                    "set it to 0, or use optimizer.name=adamw"
                )
            return Adafactor(
                parameters,
                min_dim_size_to_factor=settings.min_dim_size_to_factor,
                clip_gradient_norm=settings.clip_gradient_norm,
            )
        case "adamw" | "adamw_rms":
            return AdamW(
                parameters,
                betas=(settings.beta1, settings.beta2),
                eps=settings.epsilon,
                weight_decay=settings.weight_decay,
                scale_by_parameter=settings.name == "adamw_rms",
                clip_gradient_norm=settings.clip_gradient_norm,
            )
        case _:
            raise UnknownNameError("optimizer", settings.name, ["adafactor", "adamw", "adamw_rms"])
