"""The loss: the original's numbers, PyTorch's gradients, and nothing from padding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from mixtura.platform.training.loss import cross_entropy, sum_by_task

torch.set_num_threads(1)


def composed(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, z_loss: float, label_smoothing: float
) -> torch.Tensor:
    """The same loss out of PyTorch's parts."""
    per_token = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(targets.shape)
    return ((per_token + z_loss * torch.logsumexp(logits, -1) ** 2) * weights).sum()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 5, 11, generator=generator)
    targets = torch.randint(0, 11, (3, 5), generator=generator)
    return logits, targets, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])


def test_losses_equal_the_original(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "golden/mesh.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "loss"]
    assert len(rows) == 3
    for row in rows:
        logits, targets = torch.tensor(row["logits"])[None], torch.tensor(row["targets"])[None]
        terms = {"z_loss": row["z_loss"], "label_smoothing": row["label_smoothing"]}
        ours = [float(cross_entropy(logits, targets, one[None], **terms)[0]) for one in torch.eye(targets.shape[1])]
        assert ours == pytest.approx(row["result"]["per_position"], rel=1e-6)


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_value_and_gradient_are_those_of_the_formula(batch: tuple, z_loss: float, label_smoothing: float) -> None:
    logits, targets, weights = batch
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss, _ = cross_entropy(ours, targets, weights, z_loss=z_loss, label_smoothing=label_smoothing)
    expected = composed(theirs, targets, weights, z_loss, label_smoothing)
    (loss / 7).backward()
    (expected / 7).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_the_sum_over_microbatches_is_the_sum_over_the_batch(batch: tuple) -> None:
    whole = cross_entropy(*batch, z_loss=1e-4)[0]
    parts = [cross_entropy(*(tensor[row : row + 1] for tensor in batch), z_loss=1e-4)[0] for row in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_padding_never_reaches_the_loss_or_a_gradient(batch: tuple) -> None:
    logits, targets, weights = batch
    changed = torch.where(weights[..., None] == 0, -logits, logits).requires_grad_()
    loss, _ = cross_entropy(changed, targets, weights, z_loss=1e-4)
    loss.backward()
    assert loss == cross_entropy(logits, targets, weights, z_loss=1e-4)[0]
    assert changed.grad is not None
    assert not changed.grad[weights == 0].any()


def test_per_token_losses_are_plain_cross_entropy_without_gradient(batch: tuple) -> None:
    logits, targets, weights = batch
    _, per_token = cross_entropy(logits.requires_grad_(), targets, weights, z_loss=0.1, label_smoothing=0.1)
    assert not per_token.requires_grad
    expected = functional.cross_entropy(logits.detach().flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(per_token.flatten(), expected)


def test_low_precision_logits_are_added_up_in_fp32(batch: tuple) -> None:
    logits, targets, weights = batch
    assert cross_entropy(logits.bfloat16(), targets, weights)[0].dtype is torch.float32


def test_sums_by_task_add_up_to_the_loss(batch: tuple) -> None:
    logits, targets, weights = batch
    loss, per_token = cross_entropy(logits, targets, weights)
    tasks = torch.tensor([[2, 2, 0, -1, -1], [0, 0, 0, 2, 2], [-1, -1, -1, -1, -1]])
    losses, tokens = sum_by_task(per_token, weights, tasks, num_tasks=3)
    assert tokens.tolist() == [4, 0, 4]
    assert losses.sum().item() == pytest.approx(loss.item())
    assert losses[1] == 0
