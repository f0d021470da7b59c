"""The training loss: cross entropy summed over target tokens, with T5's z-loss.

A loss is a sum here, never a mean: rows differ in their number of real tokens, so a mean of the means of microbatches
or ranks would weigh tokens unequally. The training loop divides the sum by one number of the whole global batch.

Shapes: `logits` [batch, length, vocabulary]; `targets`, `weights` and losses per token [batch, length].
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SummedCrossEntropy(torch.autograd.Function):
    """Forward keeps only the logits and one number per token; backward fills one tensor of the logits' size."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        log_z = torch.logsumexp(logits, dim=-1)
        target_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        per_token = log_z - target_logits
        loss = per_token
        if label_smoothing:
            loss = loss + label_smoothing * (target_logits - logits.mean(dim=-1))
        if z_loss:
            loss = loss + z_loss * log_z.square()
        ctx.save_for_backward(logits, targets, weights, log_z)
        ctx.z_loss, ctx.label_smoothing = z_loss, label_smoothing
        ctx.mark_non_differentiable(per_token)
        return (loss * weights).sum(), per_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, weights, log_z = ctx.saved_tensors
        scale = grad_sum * weights
        grad = (logits - log_z.unsqueeze(-1)).exp_()
        grad.mul_((scale * (1 + 2 * ctx.z_loss * log_z)).unsqueeze(-1))
        if ctx.label_smoothing:
            grad.sub_((scale * (ctx.label_smoothing / logits.shape[-1])).unsqueeze(-1))
        at_target = (scale * (ctx.label_smoothing - 1)).unsqueeze(-1)
        return grad.scatter_add_(-1, targets.unsqueeze(-1), at_target), None, None, None, None


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss summed over tokens, and the cross entropy of each token without gradient.

    loss = sum_i weights_i * (-log p_i(target) + z_loss * log^2 Z_i),    Z_i = sum_v exp(logits_iv)

    The z-loss (1e-4 in T5's training, 0 when evaluating) keeps log Z near 0, so that logits do not drift. With
    `label_smoothing` s the target's probability is 1 - s + s/V and every other one s/V; the second result stays the
    plain -log p(target), unweighted. Everything is computed in fp32.

    >>> total, per_token = cross_entropy(torch.zeros(1, 3, 4), torch.tensor([[2, 1, 0]]), torch.tensor([[1, 1, 0]]))
    >>> round(float(total), 4), [round(value, 4) for value in per_token[0].tolist()]
    (2.7726, [1.3863, 1.3863, 1.3863])
    """
    arguments = logits.float(), targets.long(), weights.float(), z_loss, label_smoothing
    return cast("tuple[Tensor, Tensor]", _SummedCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]


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
