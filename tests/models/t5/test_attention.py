from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixtura.models.t5 import T5, T5Config, create_model
from mixtura.models.t5.attention import (
    ATTENTION,
    MASKED,
    AttentionKind,
    DenseBias,
    RelativeBias,
    Visible,
    eager_attention,
    mask,
    score_bias,
    sdpa_attention,
)
from mixtura.models.t5.dropout import Dropout


def relative_bias(config: T5Config, buckets: int, max_distance: int) -> RelativeBias:
    changed = replace(
        config, relative_attention_num_buckets=buckets, relative_attention_max_distance=max_distance, num_heads=3
    )
    bias = RelativeBias(changed)
    torch.nn.init.normal_(bias.weight, generator=torch.Generator().manual_seed(0))
    return bias


def test_buckets_are_those_of_the_original(shared: Path, config: T5Config) -> None:
    rows = [json.loads(line) for line in (shared / "golden" / "mesh.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "relpos"]
    assert len(rows) >= 3
    for row in rows:
        bias = relative_bias(config, row["num_buckets"], row["max_distance"])
        positions = torch.tensor(row["relative_positions"])
        assert bias.bucket(positions, bidirectional=row["bidirectional"]).tolist() == row["result"]


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
    ours = relative_bias(config, buckets, max_distance).bucket(relative, bidirectional=bidirectional)
    assert torch.equal(ours, theirs)


def test_last_buckets_start_at_91_and_113(config: T5Config) -> None:
    bias = relative_bias(config, 32, 128)
    assert bias.bucket(torch.tensor([-91, -90, 91, 1, 0]), bidirectional=True).tolist() == [15, 14, 31, 17, 0]
    assert bias.bucket(torch.tensor([-113, -112, 0, 5]), bidirectional=False).tolist() == [31, 30, 0, 0]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_bias_is_read_by_difference_of_positions(config: T5Config, bidirectional: bool) -> None:
    bias = relative_bias(config, 8, 20)
    relative = torch.arange(9)[None, :] - torch.arange(9)[:, None]
    expected = bias.weight[bias.bucket(relative, bidirectional=bidirectional)].permute(2, 0, 1)
    assert torch.equal(bias(9, bidirectional=bidirectional), expected)


def test_a_position_sees_its_segment_and_in_a_causal_stack_not_ahead() -> None:
    segments, prefix = torch.tensor([[1, 1, 2, 0]]), torch.tensor([[True, True, False, False]])
    one = torch.ones_like(segments)
    for visible, seen in (
        (Visible(segments, segments), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        (Visible(one, segments), [[1, 1, 0, 0]] * 4),
        (Visible(one, one, causal=True), [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]),
        (Visible(one, one, causal=True, prefix=prefix), [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]),
        (Visible(segments, segments, causal=True), [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ):
        assert visible.dense().int().tolist() == [[seen]]
    assert mask(torch.tensor([True, False]), torch.float32).tolist() == [0.0, MASKED]


def test_blocks_hold_all_that_is_visible_and_short_neighbours_share_one() -> None:
    def row(*runs: tuple[int, int]) -> Tensor:
        return torch.tensor([[segment for segment, length in runs for _ in range(length)]])

    def blocks(queries: Tensor, keys: Tensor) -> list[tuple[int, int, int, int]]:
        found = Visible(queries, keys).blocks()
        assert all(block.row == 0 for block in found)
        return [(block.queries.start, block.queries.stop, block.keys.start, block.keys.stop) for block in found]

    long_then_short = row((1, 60), (2, 30), (3, 20), (0, 90))
    assert blocks(long_then_short, long_then_short) == [(0, 60, 0, 60), (60, 110, 60, 110), (110, 200, 110, 200)]
    assert blocks(row((1, 4), (2, 2), (0, 9)), row((1, 400), (2, 200))) == [(0, 6, 0, 600), (6, 15, 0, 600)]
    scattered = row((1, 2), (2, 70), (1, 70))
    assert blocks(scattered, scattered) == [(0, 142, 0, 142)]

    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        queries, keys = (torch.randint(0, 5, (3, 150), generator=generator).sort(1).values for _ in range(2))
        visible = Visible(queries, keys)
        covered = torch.zeros(3, 150, 150, dtype=torch.bool)
        for block in visible.blocks():
            covered[block] = True
        assert covered.any(2).all()
        assert not (visible.dense()[:, 0] & ~covered).any()
        assert not covered.all()


def scores() -> list[Tensor]:
    """Queries, keys, values and bias of 2 rows, 3 heads, 5 queries and 7 keys."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4), (1, 3, 5, 7)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def test_a_row_that_may_see_nothing_makes_no_nan() -> None:
    for attend in (eager_attention, sdpa_attention):
        q, k, v, bias = scores()
        queries, keys = torch.ones(2, 5), torch.ones(2, 7)
        queries[1, 2:] = 2
        visible = Visible(queries, keys)
        out = attend(q, k, v, score_bias("sdpa", bias[0], visible, 3, q.dtype))
        out[:, :, :2].square().sum().backward()
        assert all(tensor.isfinite().all() for tensor in (out, q.grad, k.grad, v.grad, bias.grad) if tensor is not None)


def test_dropping_values_is_dropping_weights_shared_over_queries() -> None:
    q, k, v, bias = scores()
    dropout = Dropout.of_rows(torch.tensor([5, -9]), 0.4, sites=3, indices=21)
    dropped = dropout.value_rows(site=2, heads=3, length=7, dtype=torch.float32)
    weights = torch.softmax(q @ k.transpose(-1, -2) + bias, -1)
    expected = (weights * dropped.transpose(-1, -2)) @ v
    for attend in (eager_attention, sdpa_attention):
        found = attend(q, k, v * dropped, DenseBias(bias.detach(), bias[0]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def visible_on(device: str) -> Visible:
    """Pairs of those queries and keys that are of one segment."""
    queries = torch.tensor([[1, 1, 2, 2, 2], [1, 2, 2, 3, 3]], device=device)
    return Visible(queries, torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 3, 3, 0]], device=device))


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def fused_kinds(device: str) -> tuple[AttentionKind, ...]:
    """FlexAttention has no gradients on a CPU."""
    return ("sdpa", "flex") if device == "cuda" else ("sdpa",)


@pytest.mark.parametrize("with_position", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_every_attention_gives_the_same_outputs_and_gradients(device: str, with_position: bool) -> None:

    def results(kind: AttentionKind) -> list[Tensor | None]:
        q, k, v, table = scores()
        on_device = [tensor.to(device) for tensor in (q, k, v, table[0])]
        position = on_device[3] if with_position else None
        bias = score_bias(kind, position, visible_on(device), 3, q.dtype)
        out = ATTENTION[kind](*on_device[:3], bias)
        out.square().sum().backward()
        return [out, q.grad, k.grad, v.grad, *([table.grad] if with_position else [])]

    expected = results("eager")
    for kind in fused_kinds(device):
        for found, wanted in zip(results(kind), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_are_attended_to_segment_by_segment_with_the_same_gradients(
    dtype: torch.dtype, causal: bool
) -> None:
    generator = torch.Generator().manual_seed(5)
    lengths = [[70, 3, 40, 67, 20], [200, 0, 0, 0, 0], [90, 90, 1, 1, 18]]
    order = torch.tensor([1, 2, 3, 4, 0])
    segments = torch.stack([order.repeat_interleave(torch.tensor(row)) for row in lengths])
    visible = Visible(segments, segments, causal=causal)
    assert len(visible.blocks()) > 6
    shapes = [(3, 2, 200, 8)] * 3 + [(2, 200, 200)]
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

    def results(kind: AttentionKind) -> list[Tensor]:
        q, k, v, position = tensors = [value.clone().requires_grad_() for value in values]
        out = ATTENTION[kind](q, k, v, score_bias(kind, position, visible, 2, dtype))
        gradients = torch.autograd.grad(out.float().square().sum(), tensors)
        return [out, *gradients]

    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for found, wanted in zip(results("sdpa"), results("eager"), strict=True):
        assert (found - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize("with_position", [True, False])
def test_flex_attention_gives_the_same_outputs_on_a_cpu(with_position: bool) -> None:
    q, k, v, table = (tensor.detach() for tensor in scores())
    outputs = []
    kinds: tuple[AttentionKind, ...] = ("eager", "flex")
    for kind in kinds:
        bias = score_bias(kind, table[0] if with_position else None, visible_on("cpu"), 3, q.dtype)
        outputs.append(ATTENTION[kind](q, k, v, bias))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def test_flex_attention_is_refused_where_it_cannot_train(config: T5Config, random_model: Callable[..., T5]) -> None:
    tokens = torch.tensor([[5, 1]])
    with pytest.raises(ValueError, match="needs a GPU to train on; set attention to 'sdpa'"):
        random_model(config, "flex")(tokens, tokens)


@pytest.mark.parametrize("device", DEVICES)
def test_fused_attention_is_the_written_out_one_in_a_whole_model(
    config: T5Config, random_model: Callable[..., T5], padded_rows: tuple[Tensor, Tensor], device: str
) -> None:
    inputs, targets = (tokens.to(device) for tokens in padded_rows)
    keys = torch.tensor([11, 12, 13], device=device)
    results = []
    for attention in ("eager", *fused_kinds(device)):
        model = random_model(config, attention).to(device)
        logits = model(inputs, targets, dropout_keys=keys)
        logits.square().mean().backward()
        results.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (eager, eager_grads), *others = results
    assert eager_grads["encoder.relative_bias.weight"].abs().max() > 0
    for fused, fused_grads in others:
        torch.testing.assert_close(fused, eager, rtol=0, atol=1e-5 * eager.abs().max().item())
        for name, gradient in eager_grads.items():
            scale = gradient.abs().max()
            torch.testing.assert_close(fused_grads[name] / scale, gradient / scale, rtol=0, atol=1e-5, msg=name)


def test_an_unknown_attention_is_refused(config: T5Config) -> None:
    with pytest.raises(ValueError, match="attention is 'flash'; choose one of 'sdpa', 'eager', 'flex'"):
        create_model(config, attention="flash")  # type: ignore[arg-type]
