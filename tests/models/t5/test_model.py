from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixtura.models.t5 import T5, T5Config, create_model, initialize
from mixtura.models.t5.layers import RMSNorm, decoding_logits, logits


@contextlib.contextmanager
def calls_of(stack: torch.nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """Rows and lengths of what a stack is called with."""
    seen: list[tuple[int, ...]] = []
    hook = stack.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape[:2])))
    yield seen
    hook.remove()


RandomModel = Callable[..., T5]


def test_packed_segments_give_the_logits_of_rows_of_their_own(config: T5Config, random_model: RandomModel) -> None:
    model = random_model(config)
    first, second = torch.randint(2, 64, (1, 70)), torch.randint(2, 64, (1, 65))
    first_targets, second_targets = torch.randint(2, 64, (1, 30)), torch.randint(2, 64, (1, 45))
    packed = model(
        functional.pad(torch.cat([first, second], 1), (0, 15)),
        functional.pad(torch.cat([first_targets, second_targets], 1), (0, 5)),
        encoder_segment_ids=torch.tensor([[1] * 70 + [2] * 65 + [0] * 15]),
        decoder_segment_ids=torch.tensor([[1] * 30 + [2] * 45 + [0] * 5]),
    )
    torch.testing.assert_close(packed[:, :30], model(first, first_targets), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[:, 30:75], model(second, second_targets), rtol=1e-5, atol=1e-5)


def test_padding_never_reaches_the_logits(
    config: T5Config, random_model: RandomModel, padded_rows: tuple[Tensor, Tensor]
) -> None:
    model, (inputs, targets) = random_model(config), padded_rows
    logits = model(inputs, targets)
    torch.testing.assert_close(model(inputs[2:, :9], targets[2:, :133])[0], logits[2, :133], rtol=1e-5, atol=1e-5)


def test_rows_of_nothing_but_padding_make_no_nan(config: T5Config, random_model: RandomModel) -> None:
    model = random_model(config)
    inputs, targets = torch.tensor([[5, 6, 1, 0], [0] * 4]), torch.tensor([[0, 7, 8], [0] * 3])
    decoder_segments = torch.tensor([[1, 1, 1], [0, 0, 0]])
    for segments in ({}, {"encoder_segment_ids": (inputs > 0).int(), "decoder_segment_ids": decoder_segments}):
        logits = model(inputs, targets, dropout_keys=torch.tensor([1, 2]), **segments)
        logits[0].logsumexp(-1).sum().backward()
        assert logits.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        model.zero_grad()


def test_decoder_padding_without_encoder_padding_makes_no_nan(config: T5Config, random_model: RandomModel) -> None:
    model = random_model(config)
    logits = model(
        torch.tensor([[5, 6, 1]]),
        torch.tensor([[0, 7, 0]]),
        encoder_segment_ids=torch.tensor([[1, 1, 1]]),
        decoder_segment_ids=torch.tensor([[1, 1, 0]]),
    )
    logits[:, :2].sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_segment_ids_of_one_stack_alone_are_refused(config: T5Config, random_model: RandomModel) -> None:
    tokens = torch.tensor([[5, 1]])
    with pytest.raises(ValueError, match="encoder_segment_ids came without decoder_segment_ids"):
        random_model(config)(tokens, tokens, encoder_segment_ids=torch.ones_like(tokens))


def test_a_decoder_position_does_not_see_ahead(config: T5Config, random_model: RandomModel) -> None:
    model, inputs, targets = random_model(config), torch.randint(2, 64, (1, 9)), torch.randint(2, 64, (1, 12))
    changed = targets.clone()
    changed[:, 8:] = 2
    assert torch.equal(model(inputs, targets)[:, :8], model(inputs, changed)[:, :8])


def test_tokens_may_be_int32(config: T5Config, random_model: RandomModel) -> None:
    model, tokens = random_model(config), torch.randint(2, 64, (2, 9))
    assert torch.equal(model(tokens.int(), tokens.int()), model(tokens, tokens))


def test_tied_embeddings_are_one_parameter(config: T5Config) -> None:
    names = {name for name, _ in T5(config).named_parameters()} & {"head.weight", "embedding.weight"}
    assert names == ({"embedding.weight"} if config.tie_embeddings else {"head.weight", "embedding.weight"})
    assert set(T5(config).state_dict()) == {name for name, _ in T5(config).named_parameters()}


def test_a_model_that_was_not_filled_shows_it(config: T5Config) -> None:
    tokens = torch.tensor([[5, 1]])
    assert T5(config)(tokens, tokens).isnan().all()


def test_bfloat16_runs_finite_near_float32_with_float32_logits(
    config: T5Config, padded_rows: tuple[Tensor, Tensor]
) -> None:
    inputs, targets = padded_rows
    for attention in ("sdpa", "eager"):
        small = replace(config, d_model=64, d_ff=128, d_kv=16)
        model = create_model(small, attention=attention)  # type: ignore[arg-type]
        initialize(model, 0)
        expected = model(inputs, targets).detach()
        model.to(torch.bfloat16)
        logits = model(inputs, targets)
        assert logits.dtype == torch.float32
        assert (logits - expected).square().mean() < 1e-3 * expected.square().mean()
        model(inputs, targets, dropout_keys=torch.tensor([1, 2, 3])).logsumexp(-1).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_computes_in_float32_and_rounds_once(config: T5Config, dtype: torch.dtype) -> None:
    norm = RMSNorm(config).to(dtype)
    torch.nn.init.normal_(norm.scale, 1.0, 0.3)
    x = (torch.randn(50, config.d_model) * 3 + 10).to(dtype)
    wide = x.double()
    expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.scale.double()
    # A few units in the last place of float32's 24 bits; half a unit of bfloat16's 8.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8 + 1e-6
    torch.testing.assert_close(norm(x).double(), expected, rtol=tolerance, atol=0)


def test_decoding_step_by_step_gives_the_logits_of_decoding_at_once(
    config: T5Config, random_model: RandomModel, padded_rows: tuple[Tensor, Tensor]
) -> None:
    model, (inputs, targets) = random_model(config), padded_rows
    targets[:, 0] = 0
    segments = (inputs != 0).int()
    with torch.no_grad():
        at_once = model(inputs, targets)
        cache, first = model.start_decoding(inputs, segments, max_length=targets.shape[1])
        steps = torch.stack([first, *(model.decode_next(tokens, cache) for tokens in targets.T[1:])], 1)
    torch.testing.assert_close(steps, at_once, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="position 140 was asked of a decoder cache with room for 140"):
        model.decode_next(targets[:, 0], cache)


def test_rows_of_other_lengths_are_encoded_apart_and_give_the_same(config: T5Config, random_model: RandomModel) -> None:
    model, lengths = random_model(config), [40, 600, 400, 9, 580, 380]
    inputs = torch.zeros(len(lengths), 600, dtype=torch.int64)
    for row, length in enumerate(lengths):
        inputs[row, :length] = torch.randint(2, 64, (length,))
    segments = (inputs != 0).int()
    with torch.no_grad():
        with calls_of(model.encoder) as encoded:
            _, logits = model.start_decoding(inputs, segments, max_length=1)
        expected = model(inputs, torch.zeros(len(lengths), 1, dtype=torch.int64))[:, 0]
    assert encoded == [(2, 600), (3, 400), (1, 9)]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_likeliest_logits_of_bf16_factors_are_exact_when_decoding() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 1, 64, generator=generator).bfloat16()
    weight = torch.randn(900, 64, generator=generator).bfloat16()
    found, exact = decoding_logits(hidden, weight), logits(hidden, weight)
    best = exact.topk(4, dim=-1)
    torch.testing.assert_close(found.gather(-1, best.indices), best.values, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.argmax(-1), exact.argmax(-1))
    torch.testing.assert_close(found.logsumexp(-1), exact.logsumexp(-1), rtol=0, atol=1e-2)
    assert torch.equal(decoding_logits(hidden.float(), weight.float()), logits(hidden.float(), weight.float()))


def test_a_cache_can_be_cut_and_reordered(config: T5Config, random_model: RandomModel) -> None:
    model, inputs, targets = random_model(config), torch.randint(2, 64, (3, 8)), torch.randint(2, 64, (3, 6))
    targets[:, 0] = 0
    chosen = torch.tensor([2, 0, 2])
    with torch.no_grad():
        cache, _ = model.start_decoding(inputs, torch.ones_like(inputs), max_length=6)
        for position in range(1, 5):
            model.decode_next(targets[:, position], cache)
        logits = model.decode_next(targets[chosen, 5], cache.select(chosen))
        expected = model(inputs, targets)[chosen, 5]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
