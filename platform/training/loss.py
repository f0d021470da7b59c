"""The training loss: cross entropy summed over target tokens, with T5's z-loss.

A loss is a sum here, never a mean: rows differ in their number of real tokens, so a mean of the means of microbatches
or ranks would weigh tokens unequally. The sum is divided once, by a number of the whole global batch (`normalizer`).

Shapes: `logits` [batch, length, vocabulary]; `targets`, `weights` and losses per token [batch, length].
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixtura.platform.errors import UnknownNameError


class _CrossEntropySum(torch.autograd.Function):
    """Forward keeps only the logits and one number per token; backward fills one tensor of the logits' size."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float, label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        log_z = torch.logsumexp(logits, dim=-1)
        target_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        cross_entropy = log_z - target_logits
        loss = cross_entropy
        if label_smoothing:
            loss = loss + label_smoothing * (target_logits - logits.mean(dim=-1))
        if z_loss:
            loss = loss + z_loss * log_z.square()
        ctx.save_for_backward(logits, targets, weights, log_z)
        ctx.z_loss, ctx.label_smoothing = z_loss, label_smoothing
        ctx.mark_non_differentiable(cross_entropy)
        return (loss * weights).sum(), cross_entropy

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


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, weights: Tensor, *, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss summed over tokens, and the cross entropy of each token without gradient.

    loss = sum_i weights_i * (-log p_i(target) + z_loss * log^2 Z_i),    Z_i = sum_v exp(logits_iv)

    The z-loss (1e-4 in T5's training, 0 when evaluating) keeps log Z near 0, so that logits do not drift. With
    `label_smoothing` s the target's probability is 1 - s + s/V and every other one s/V; the second result stays the
    plain -log p(target), unweighted. Everything is computed in fp32.

    >>> total, per_token = cross_entropy_sum(torch.zeros(1, 3, 4), torch.tensor([[2, 1, 0]]), torch.tensor([[1, 1, 0]]))
    >>> round(float(total), 4), [round(value, 4) for value in per_token[0].tolist()]
    (2.7726, [1.3863, 1.3863, 1.3863])
    """
    result = _CrossEntropySum.apply(logits.float(), targets.long(), weights.float(), z_loss, label_smoothing)
    return cast(tuple[Tensor, Tensor], result)


def normalizer(name: str, *, target_tokens: int, rows: int, targets_length: int) -> float:
    """The one number by which the loss of a global batch is divided; all arguments are of the global batch.

    `target_tokens`: its real target tokens. `padded_targets`: rows * length, as the released code of T5 does.

    >>> normalizer("target_tokens", target_tokens=700, rows=8, targets_length=114)
    700.0
    >>> normalizer("padded_targets", target_tokens=700, rows=8, targets_length=114)
    912.0
    """
    match name:
        case "target_tokens":
            return float(max(target_tokens, 1))
        case "padded_targets":
            return float(rows * targets_length)
        case _:
            raise UnknownNameError("normalizer", name, ["target_tokens", "padded_targets"])


def task_of_token(segment_ids: Tensor, segment_tasks: Tensor) -> Tensor:
    """The task of every token [batch, length], -1 for padding.

    `segment_ids` [batch, length] count from 1, 0 is padding; `segment_tasks` [batch, segments] has the task of segment
    k + 1 at k.

    >>> task_of_token(torch.tensor([[1, 1, 2, 0]]), torch.tensor([[7, 3, -1]])).tolist()
    [[7, 7, 3, -1]]
    """
    index = (segment_ids.long() - 1).clamp(min=0)
    return segment_tasks.long().gather(1, index).masked_fill(segment_ids == 0, -1)


def sum_by_task(per_token: Tensor, weights: Tensor, task_of_token: Tensor, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Sums of losses and of weights per task, two fp64 vectors [num_tasks]; tokens of task -1 are left out.

    Summed in a fixed order on every device, so that a repeated run logs the same numbers.

    >>> losses, tokens = sum_by_task(
    ...     torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.ones(4), torch.tensor([1, 1, 0, -1]), num_tasks=3
    ... )
    >>> losses.tolist(), tokens.tolist()
    ([4.0, 3.0, 0.0], [1.0, 2.0, 0.0])
    """
    flat_weights = weights.flatten().float()
    tasks = torch.arange(num_tasks, device=task_of_token.device).unsqueeze(1)
    member = task_of_token.flatten().unsqueeze(0) == tasks  # [num_tasks, tokens]
    losses = per_token.flatten().float() * flat_weights
    return (member * losses).sum(1, dtype=torch.float64), (member * flat_weights).sum(1, dtype=torch.float64)
