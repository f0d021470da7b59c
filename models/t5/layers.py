"""The parts of a T5 layer that look at one position at a time.

Parameters are NaN until `initialize` or a loaded state fills them, so that a forgotten step shows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.dropout import Dropout, drop


def unfilled(*shape: int) -> nn.Parameter:
    """A parameter whose values are still to come."""
    return nn.Parameter(torch.full(shape, torch.nan))


Head = Callable[[Tensor, Tensor], Any]
"""What is made of hidden states [..., d_model] and a weight [vocab_size, d_model]: logits, or a loss without them."""


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden [..., width] and weight [rows, width] -> float32 [..., rows]."""
    return functional.linear(hidden.float(), weight.float())


_EXACT_LOGITS = 8


def decoding_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """As `logits`, for one position of each row [rows, 1, width]: of bf16 factors only the likeliest few are exact.

    The others are rounded to bf16: a step of decoding would else turn the whole weight into float32 each time.
    """
    if hidden.dtype == torch.float32 or product_dtype(hidden) == torch.float32:
        return logits(hidden, weight)
    if hidden.is_cuda:
        return torch.mm(hidden.flatten(0, 1), weight.t(), out_dtype=torch.float32)[:, None]
    rounded = functional.linear(hidden, weight)
    _, likeliest = rounded.topk(min(_EXACT_LOGITS, len(weight)), dim=-1)
    exact = (weight[likeliest].float() @ hidden.float().unsqueeze(-1)).squeeze(-1)
    return rounded.float().scatter_(-1, likeliest, exact)


@lru_cache(maxsize=1)
def _cpu_multiplies_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision in which products of a tensor are computed: its own, but for bfloat16 on a CPU that cannot.

    There torch takes kernels that are twenty times slower than those of float32.
    """
    wide = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu_multiplies_bf16()
    return torch.float32 if wide else x.dtype


class _WideProduct(torch.autograd.Function):
    """x W^T of bfloat16 tensors, computed in float32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """As `functional.linear`."""
        ctx.save_for_backward(x, weight)
        return functional.linear(x.float(), weight.float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of x and the weight."""
        x, weight = ctx.saved_tensors
        wide, of_x, of_weight = gradient.float(), None, None
        if ctx.needs_input_grad[0]:
            of_x = (wide @ weight.float()).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (wide.flatten(0, -2).t() @ x.float().flatten(0, -2)).to(weight.dtype)
        return of_x, of_weight


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., inputs] and weight [outputs, inputs] -> [..., outputs]."""
    if product_dtype(x) == x.dtype:
        return functional.linear(x, weight)
    out: Tensor = _WideProduct.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Module):
    """y = x W^T without a bias; the weight is [outputs, inputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = unfilled(outputs, inputs)

    def forward(self, x: Tensor, head: Head | None = None) -> Any:
        """[..., inputs] -> [..., outputs]; or what `head` makes of x and the weight.

        A head runs in here since ZeRO has the whole weight only while its module runs.
        """
        return product(x, self.weight) if head is None else head(x, self.weight)


class Embedding(nn.Module):
    """A row of the weight [rows, width] for every id; the weight of a tied head, too."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = unfilled(rows, width)

    def forward(self, x: Tensor, head: Head | None = None) -> Any:
        """Ids [...] -> [..., width]; or what `head` makes of x [..., width] and the weight, as in `Linear`."""
        return functional.embedding(x, self.weight) if head is None else head(x, self.weight)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32; no mean is subtracted, no bias added."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.epsilon = config.layer_norm_epsilon
        self.scale = unfilled(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] -> the same."""
        # The kernel itself computes in float32 whatever the dtype, and rounds once.
        return functional.rms_norm(x, self.scale.shape, self.scale, self.epsilon)


class ReluFeedForward(nn.Module):
    """wo(drop(relu(wi(x)))): T5 1.0's, and an adapter."""

    def __init__(self, d_model: int, d_ff: int, site: int) -> None:
        super().__init__()
        self.site = site
        self.wi = Linear(d_model, d_ff)
        self.wo = Linear(d_ff, d_model)

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        """[batch, length, d_model] -> the same."""
        hidden: Tensor = self.wo(
            drop(functional.relu(self.wi(x), inplace=not torch.is_grad_enabled()), self.site, dropout)
        )
        return hidden


class GatedGeluFeedForward(nn.Module):
    """T5 1.1: wo(drop(gelu(wi_0(x)) * wi_1(x))), with the tanh approximation of GELU (Shazeer 2020)."""

    def __init__(self, d_model: int, d_ff: int, site: int) -> None:
        super().__init__()
        self.site = site
        self.wi_0 = Linear(d_model, d_ff)
        self.wi_1 = Linear(d_model, d_ff)
        self.wo = Linear(d_ff, d_model)

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        """[batch, length, d_model] -> the same."""
        gated = functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        hidden: Tensor = self.wo(drop(gated, self.site, dropout))
        return hidden


def feed_forward(config: T5Config, site: int) -> ReluFeedForward | GatedGeluFeedForward:
    """The feed-forward sublayer that the config asks for; `site` numbers its dropout."""
    if config.feed_forward == "relu":
        return ReluFeedForward(config.d_model, config.d_ff, site)
    return GatedGeluFeedForward(config.d_model, config.d_ff, site)


def adapter(config: T5Config, size: int, site: int) -> ReluFeedForward:
    """A small dense-ReLU-dense block that is trained in place of the model around it (section 3.5.1)."""
    return ReluFeedForward(config.d_model, size, site)
