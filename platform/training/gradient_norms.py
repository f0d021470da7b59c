"""How large the gradient of one part of the loss is by itself: which task pulls how hard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def gradient_norm(module: nn.Module, losses: Iterable[Tensor], sum_over_ranks: Callable[[Tensor], Tensor]) -> float:
    """The norm of the gradient of a sum of losses, those of all microbatches of all ranks.

    It goes past the engine and leaves the gradients of the step as they are. Every rank calls it, with as many losses
    as it likes; the parameters must be whole, so not at ZeRO stage 3.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)
    return math.sqrt(sum(float(sum_over_ranks(total).double().square().sum()) for total in sums))
