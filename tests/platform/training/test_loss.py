"""The loss: the original's numbers, PyTorch's gradients, and nothing from padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mixtura.platform.training.loss import linear_cross_entropy, sum_by_task

torch.set_num_threads(1)

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def composed(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, z_loss: float, label_smoothing: float
) -> torch.Tensor:
    """The same loss out of PyTorch's parts."""
    per_token = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(targets.shape)
    return ((per_token + z_loss * torch.logsumexp(logits, -1) ** 2) * weights).sum()


@pytest.fixture
def parts() -> Parts:
    """Hidden states [3, 5, 6], a head [11, 6], targets and weights; the last row has no target."""
    generator = torch.Generator().manual_seed(0)
    hidden = 2 * torch.randn(3, 5, 6, generator=generator)
    targets = torch.randint(0, 11, (3, 5), generator=generator)
    weights = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    return hidden, torch.randn(11, 6, generator=generator), targets, weights


def test_losses_equal_the_original(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "golden/mesh.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "loss"]
    assert len(rows) == 3
    for row in rows:
        logits, targets = torch.tensor(row["logits"])[None], torch.tensor(row["targets"])[None]
        terms = {"z_loss": row["z_loss"], "label_smoothing": row["label_smoothing"]}
        head = torch.eye(logits.shape[-1])
        ones = torch.eye(targets.shape[1])
        ours = [float(linear_cross_entropy(logits, head, targets, one[None], **terms)[0]) for one in ones]
        assert ours == pytest.approx(row["result"]["per_position"], rel=1e-6)


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_value_and_gradients_are_those_of_the_formula(
    parts: Parts, z_loss: float, label_smoothing: float, chunk_tokens: int
) -> None:
    hidden, head, targets, weights = parts
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in (hidden, head)] for _ in range(2))
    loss, _ = linear_cross_entropy(
        *ours, targets, weights, z_loss=z_loss, label_smoothing=label_smoothing, chunk_tokens=chunk_tokens
    )
    expected = composed(functional.linear(*theirs), targets, weights, z_loss, label_smoothing)
    (loss / 7).backward()
    (expected / 7).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_nobody_needs_is_not_made(parts: Parts) -> None:
    hidden, head, targets, weights = parts
    loss, _ = linear_cross_entropy(hidden.requires_grad_(), head, targets, weights)
    loss.backward()
    assert hidden.grad is not None
    assert head.grad is None
    with torch.no_grad():
        assert linear_cross_entropy(hidden, head, targets, weights)[0] == loss


def test_positions_that_are_given_are_those_that_are_found(parts: Parts) -> None:
    positions = parts[3].flatten().nonzero().squeeze(-1)
    given, found = linear_cross_entropy(*parts, positions=positions), linear_cross_entropy(*parts)
    assert all(torch.equal(one, other) for one, other in zip(given, found, strict=True))


def test_the_logits_of_a_batch_are_never_there_at_once() -> None:
    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for tensor in pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self.largest = max(self.largest, tensor.numel())
            return out

    hidden, head = torch.randn(4, 50, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    weights = torch.ones(4, 50)
    weights[:, 40:] = 0
    with Sizes() as sizes:
        loss, _ = linear_cross_entropy(hidden, head, torch.zeros(4, 50).long(), weights, chunk_tokens=16)
        loss.backward()
    assert sizes.largest == 16 * 1000


def test_the_sum_over_microbatches_is_the_sum_over_the_batch(parts: Parts) -> None:
    hidden, head, targets, weights = parts
    whole = linear_cross_entropy(*parts, z_loss=1e-4)[0]
    rows = [(hidden[row : row + 1], head, targets[row : row + 1], weights[row : row + 1]) for row in range(3)]
    summed = torch.stack([linear_cross_entropy(*row, z_loss=1e-4)[0] for row in rows]).sum()
    torch.testing.assert_close(summed, whole)


def test_padding_never_reaches_the_loss_or_a_gradient(parts: Parts) -> None:
    hidden, head, targets, weights = parts
    changed = torch.where(weights[..., None] == 0, torch.nan, hidden).requires_grad_()
    loss, _ = linear_cross_entropy(changed, head, targets, weights, z_loss=1e-4)
    loss.backward()
    assert loss == linear_cross_entropy(*parts, z_loss=1e-4)[0]
    assert changed.grad is not None
    assert not changed.grad[weights == 0].any()


def test_a_batch_without_targets_has_a_loss_and_gradients_of_zero(parts: Parts) -> None:
    hidden, head, targets, weights = parts
    loss, per_token = linear_cross_entropy(
        hidden.requires_grad_(), head.requires_grad_(), targets, torch.zeros_like(weights)
    )
    loss.backward()
    assert loss == 0
    assert not per_token.any()
    assert hidden.grad is not None
    assert head.grad is not None
    assert not hidden.grad.any()
    assert not head.grad.any()


def test_per_token_losses_are_plain_cross_entropy_without_gradient(parts: Parts) -> None:
    hidden, head, targets, weights = parts
    _, per_token = linear_cross_entropy(
        hidden.requires_grad_(), head, targets, weights, z_loss=0.1, label_smoothing=0.1
    )
    assert not per_token.requires_grad
    logits = functional.linear(hidden.detach(), head).flatten(0, 1)
    expected = functional.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape) * weights
    torch.testing.assert_close(per_token, expected)


def test_low_precision_is_added_up_in_fp32(parts: Parts) -> None:
    hidden, head, targets, weights = parts
    low = [tensor.bfloat16().requires_grad_() for tensor in (hidden, head)]
    exact = [tensor.detach().float().requires_grad_() for tensor in low]
    loss, per_token = linear_cross_entropy(*low, targets, weights, z_loss=1e-4)
    expected, _ = linear_cross_entropy(*exact, targets, weights, z_loss=1e-4)
    loss.backward()
    expected.backward()
    assert loss.dtype is per_token.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for mine, other in zip(low, exact, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.float(), other.grad, rtol=2**-7, atol=1e-6)


def test_sums_by_task_add_up_to_the_loss(parts: Parts) -> None:
    loss, per_token = linear_cross_entropy(*parts)
    tasks = torch.tensor([[2, 2, 0, -1, -1], [0, 0, 0, 2, 2], [-1, -1, -1, -1, -1]])
    losses, tokens = sum_by_task(per_token, parts[3], tasks, num_tasks=3)
    assert tokens.tolist() == [4, 0, 4]
    assert losses.sum().item() == pytest.approx(loss.item())
    assert losses[1] == 0
