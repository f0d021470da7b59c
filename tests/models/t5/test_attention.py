from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixtura.models.t5 import T5, T5Config
from mixtura.models.t5.attention import (
    MASKED,
    RelativeBias,
    causal,
    eager_attention,
    mask,
    same_segment,
    sdpa_attention,
)
from mixtura.models.t5.dropout import Dropout


def relative_bias(config: T5Config, buckets: int, max_distance: int, bidirectional: bool) -> RelativeBias:
    changed = replace(
        config, relative_attention_num_buckets=buckets, relative_attention_max_distance=max_distance, num_heads=3
    )
    bias = RelativeBias(changed, bidirectional=bidirectional)
    torch.nn.init.normal_(bias.weight, generator=torch.Generator().manual_seed(0))
    return bias


def test_buckets_are_those_of_the_original(shared: Path, config: T5Config) -> None:
    rows = [json.loads(line) for line in (shared / "golden" / "mesh.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "relpos"]
    assert len(rows) >= 3
    for row in rows:
        bias = relative_bias(config, row["num_buckets"], row["max_distance"], row["bidirectional"])
        assert bias.bucket(torch.tensor(row["relative_positions"])).tolist() == row["result"]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (64, 256), (4, 3), (16, 1000)])
def test_buckets_are_those_of_transformers(
    config: T5Config, buckets: int, max_distance: int, bidirectional: bool
) -> None:
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    relative = torch.arange(-1100, 1101)
    if not bidirectional:
        relative = relative[relative <= 0]
    theirs = modeling.T5Attention._relative_position_bucket(relative, bidirectional, buckets, max_distance)
    ours = relative_bias(config, buckets, max_distance, bidirectional).bucket(relative)
    assert torch.equal(ours, theirs)


def test_last_buckets_start_at_91_and_113(config: T5Config) -> None:
    both, left = (relative_bias(config, 32, 128, side) for side in (True, False))
    assert both.bucket(torch.tensor([-91, -90, 91, 1, 0])).tolist() == [15, 14, 31, 17, 0]
    assert left.bucket(torch.tensor([-113, -112, 0, 5])).tolist() == [31, 30, 0, 0]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_bias_is_read_by_difference_of_positions(config: T5Config, bidirectional: bool) -> None:
    bias = relative_bias(config, 8, 20, bidirectional)
    relative = torch.arange(9)[None, :] - torch.arange(7)[:, None]
    expected = bias.weight[bias.bucket(relative)].permute(2, 0, 1)[None]
    assert torch.equal(bias(7, 9), expected)


def test_masks_let_a_position_see_its_segment_and_not_ahead() -> None:
    segments = torch.tensor([[1, 1, 2, 0]])
    seen = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert same_segment(segments, segments)[0, 0].int().tolist() == seen
    assert causal(3, torch.device("cpu"))[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert mask(torch.tensor([True, False]), torch.float32).tolist() == [0.0, MASKED]


def scores() -> list[Tensor]:
    """Queries, keys, values and bias of 2 rows, 3 heads, 5 queries and 7 keys."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4), (1, 3, 5, 7)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def test_a_row_that_may_see_nothing_makes_no_nan() -> None:
    for attend in (eager_attention, sdpa_attention):
        q, k, v, bias = scores()
        visible = torch.ones(2, 1, 5, 7, dtype=torch.bool)
        visible[1, :, 2:] = False
        out = attend(q, k, v, bias + mask(visible, bias.dtype))
        out[:, :, :2].square().sum().backward()
        assert all(tensor.isfinite().all() for tensor in (out, q.grad, k.grad, v.grad, bias.grad) if tensor is not None)


def test_dropping_values_is_dropping_weights_shared_over_queries() -> None:
    q, k, v, bias = scores()
    dropped = Dropout(torch.tensor([5, -9]), 0.4).value_rows(site=2, heads=3, length=7, dtype=torch.float32)
    weights = torch.softmax(q @ k.transpose(-1, -2) + bias, -1)
    expected = (weights * dropped.transpose(-1, -2)) @ v
    for attend in (eager_attention, sdpa_attention):
        torch.testing.assert_close(attend(q, k, v * dropped, bias), expected, rtol=1e-5, atol=1e-6)


def test_fused_attention_is_the_written_out_one_in_outputs_and_all_gradients(
    config: T5Config, random_model: Callable[..., T5], padded_rows: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = padded_rows
    keys = torch.tensor([11, 12, 13])
    results = []
    for attention in ("sdpa", "eager"):
        model = random_model(config, attention)
        logits = model(inputs, targets, dropout_keys=keys)
        logits.square().mean().backward()
        results.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (fused, fused_grads), (eager, eager_grads) = results
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-5)
    assert fused_grads["encoder.relative_bias.weight"].abs().max() > 0
    for name, gradient in eager_grads.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(fused_grads[name] / scale, gradient / scale, rtol=0, atol=1e-5, msg=name)


def test_an_unknown_attention_is_refused(config: T5Config) -> None:
    with pytest.raises(ValueError, match="attention is 'flash'; choose one of 'sdpa', 'eager'"):
        T5(config, attention="flash")  # type: ignore[arg-type]
