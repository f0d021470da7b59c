"""The parts of a T5 layer that look at one position at a time.

Parameters are NaN until `initialize` or a loaded state fills them, so that a forgotten step shows at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.dropout import Dropout, drop


def unfilled(*shape: int) -> nn.Parameter:
    """A parameter whose values are still to come."""
    return nn.Parameter(torch.full(shape, torch.nan))


class Linear(nn.Module):
    """y = x W^T without a bias; the weight is [outputs, inputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = unfilled(outputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return functional.linear(x, self.weight)


class Embedding(nn.Module):
    """A row of the weight [rows, width] for every id."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = unfilled(rows, width)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return functional.embedding(ids, self.weight)


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
    """T5 1.0: wo(drop(relu(wi(x))))."""

    def __init__(self, config: T5Config, site: int) -> None:
        super().__init__()
        self.site = site
        self.wi = Linear(config.d_model, config.d_ff)
        self.wo = Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        """[batch, length, d_model] -> the same."""
        hidden: Tensor = self.wo(drop(functional.relu(self.wi(x)), self.site, dropout))
        return hidden


class GatedGeluFeedForward(nn.Module):
    """T5 1.1: wo(drop(gelu(wi_0(x)) * wi_1(x))), with the tanh approximation of GELU (Shazeer 2020)."""

    def __init__(self, config: T5Config, site: int) -> None:
        super().__init__()
        self.site = site
        self.wi_0 = Linear(config.d_model, config.d_ff)
        self.wi_1 = Linear(config.d_model, config.d_ff)
        self.wo = Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        """[batch, length, d_model] -> the same."""
        gated = functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        hidden: Tensor = self.wo(drop(gated, self.site, dropout))
        return hidden


def feed_forward(config: T5Config, site: int) -> ReluFeedForward | GatedGeluFeedForward:
    """The feed-forward sublayer that the config asks for; `site` numbers its dropout."""
    return ReluFeedForward(config, site) if config.feed_forward == "relu" else GatedGeluFeedForward(config, site)
