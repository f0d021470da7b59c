"""The training loss: cross entropy summed over target tokens, with T5's z-loss, from hidden states.

A loss is a sum here, never a mean: rows differ in their number of real tokens, so a mean of the means of microbatches
or ranks would weigh tokens unequally. The training loop divides the sum by one number of the whole global batch.

Logits are made for some tokens at a time, and only where there is a target: those of a whole batch, in fp32, are the
largest tensor of a small model's step. The gradient is made while they are there, and only it is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_TOKENS = 1024
"""Tokens whose logits are there at the same time: 132 MB in fp32 for T5's vocabulary."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Backward only scales the gradients that forward has made: the loss is a single number."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        terms: tuple[float, float],
        chunk_tokens: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        of_hidden_needed, of_weight_needed = (grad_enabled and needed for needed in ctx.needs_input_grad[:2])
        of_hidden = torch.empty_like(hidden) if of_hidden_needed else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight_needed else None
        total = hidden.new_zeros((), dtype=torch.float32)
        per_token = torch.empty_like(weights)
        room = None if hidden.is_cuda else hidden.new_empty(chunk_tokens, weight.shape[0], dtype=torch.float32)
        for first in range(0, len(hidden), chunk_tokens):
            chunk = slice(first, first + chunk_tokens)
            now = hidden[chunk]
            logits = _product(now, weight.t(), None if room is None else room[: len(now)])
            losses, per_token[chunk], *z = _losses(logits, targets[chunk], terms)
            total += (losses * weights[chunk]).sum()
            if of_hidden is None and of_weight is None:
                continue
            gradient = _gradient_in_place(logits, (z[0], z[1]), targets[chunk], weights[chunk], terms)
            # A GPU multiplies in the precision of the model, as all its other products.
            gradient = gradient.to(hidden.dtype) if hidden.is_cuda else gradient
            if of_hidden is not None:
                of_hidden[chunk] = _product(gradient, weight)
            if of_weight is not None:
                of_weight += _product(gradient.t(), now)
        ctx.gradients = of_hidden, None if of_weight is None else of_weight.to(weight.dtype)
        ctx.mark_non_differentiable(per_token)
        return total, per_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight = (None if one is None else one.mul_(scale) for one in ctx.gradients)
        ctx.gradients = None, None
        return of_hidden, of_weight, None, None, None, None, None


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """The matrix product in fp32, of bf16 factors too; on a CPU, `out` is memory for it."""
    if left.is_cuda:
        return left @ right if left.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)
    with _bf16_factors(torch.bfloat16 in (left.dtype, right.dtype)):
        return torch.mm(left.float(), right.float(), out=out)


@contextlib.contextmanager
def _bf16_factors(wanted: bool) -> Iterator[None]:
    """A CPU that multiplies bf16 natively may round fp32 factors to it, and still adds up in fp32."""
    if not wanted:
        yield
        return
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _losses(logits: Tensor, targets: Tensor, terms: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each token the loss, the plain cross entropy, log Z, and Z over exp(largest logit).

    The logits themselves become exp(logits - largest logit).
    """
    z_loss, label_smoothing = terms
    target_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    mean_logits = logits.mean(dim=-1) if label_smoothing else target_logits
    largest = logits.amax(dim=-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(dim=-1)
    log_z = largest.squeeze(-1) + total.log()
    per_token = log_z - target_logits
    losses = per_token
    if label_smoothing:
        losses = losses + label_smoothing * (target_logits - mean_logits)
    if z_loss:
        losses = losses + z_loss * log_z.square()
    return losses, per_token, log_z, total


def _gradient_in_place(
    exponentials: Tensor, z: tuple[Tensor, Tensor], targets: Tensor, weights: Tensor, terms: tuple[float, float]
) -> Tensor:
    """The gradient of the weighted sum of losses, in the place of what `_losses` left there; `z` is what it gave."""
    (z_loss, label_smoothing), (log_z, total) = terms, z
    gradient = exponentials.mul_((weights * (1 + 2 * z_loss * log_z) / total).unsqueeze(-1))
    if label_smoothing:
        gradient.sub_((weights * (label_smoothing / gradient.shape[-1])).unsqueeze(-1))
    return gradient.scatter_add_(-1, targets.unsqueeze(-1), (weights * (label_smoothing - 1)).unsqueeze(-1))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    positions: Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """The loss of logits `hidden weight^T` summed over tokens, and each token's cross entropy without gradient.

    loss = sum_i weights_i * (-log p_i(target) + z_loss * log^2 Z_i),    Z_i = sum_v exp(logits_iv)

    hidden [..., width], weight [vocabulary, width]; targets and weights [...]. `positions` int64 are those of the
    flattened targets whose weight is not 0, where the caller knows them: to count them a GPU would have to wait.

    The z-loss (1e-4 in T5's training, 0 when evaluating) keeps log Z near 0, so that logits do not drift. With
    `label_smoothing` s the target's probability is 1 - s + s/V and every other one s/V; the second result [...] stays
    the plain -log p(target), unweighted, and is 0 where the weight is. Logits and losses are fp32.

    >>> total, per_token = linear_cross_entropy(
    ...     torch.zeros(1, 3, 8), torch.ones(4, 8), torch.tensor([[2, 1, 0]]), torch.tensor([[1, 1, 0]])
    ... )
    >>> round(float(total), 4), [round(value, 4) for value in per_token[0].tolist()]
    (2.7726, [1.3863, 1.3863, 0.0])
    """
    if positions is None:
        positions = weights.flatten().nonzero().squeeze(-1)
    total, of_positions = cast(
        "tuple[Tensor, Tensor]",
        _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, -2)[positions],
            weight,
            targets.flatten()[positions].long(),
            weights.flatten()[positions].float(),
            (z_loss, label_smoothing),
            chunk_tokens,
            torch.is_grad_enabled(),
        ),
    )
    per_token = of_positions.new_zeros(targets.numel()).index_copy_(0, positions, of_positions)
    return total, per_token.view(targets.shape)


def sum_by_task(per_token: Tensor, weights: Tensor, task_of_token: Tensor, num_tasks: int) -> Tensor:
    """Weighted losses and weights summed by task: [2, num_tasks] in fp64; tokens of task -1 are left out.

    Summed in a fixed order on every device, so that a repeated run reports the same numbers.

    >>> sum_by_task(
    ...     torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.ones(4), torch.tensor([1, 1, 0, -1]), num_tasks=3
    ... ).tolist()
    [[4.0, 3.0, 0.0], [1.0, 2.0, 0.0]]
    """
    flat_weights = weights.flatten().float()
    values = torch.stack([per_token.flatten().float() * flat_weights, flat_weights])  # [2, tokens]
    tasks = torch.arange(num_tasks, device=values.device)
    member = task_of_token.flatten() == tasks.unsqueeze(1)  # [num_tasks, tokens]
    return torch.where(member, values.unsqueeze(1), 0.0).sum(-1, dtype=torch.float64)
