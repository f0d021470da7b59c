from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixtura.models.t5 import T5, T5Config, greedy_decode, hf_config, hf_state, our_name
from mixtura.models.t5.config import DropoutOverLength
from mixtura.models.t5.dropout import Dropout

transformers = pytest.importorskip("transformers")


def reference(model: T5, attention: str = "sdpa") -> Any:
    """The transformers model with the same weights, without dropout."""
    config = transformers.T5Config(**hf_config(model.config))
    # The constructor ties whatever it is told; untied must be set afterwards, and then ties nothing at all.
    config.tie_word_embeddings = model.config.tie_embeddings
    config._attn_implementation = attention
    theirs = transformers.T5ForConditionalGeneration(config)
    theirs.set_input_embeddings(theirs.shared)
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    copies |= {"lm_head.weight"} if model.config.tie_embeddings else set()
    missing, unexpected = theirs.load_state_dict(hf_state(model.state_dict(), model.config), strict=False)
    assert set(missing) <= copies
    assert not unexpected
    return theirs.eval()


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)


def assert_same_gradients(ours: T5, theirs: nn.Module) -> None:
    """Each to 2e-5 of its largest element."""
    parameters = dict(ours.named_parameters())
    expected = {our_name(name): p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert set(parameters) == set(expected)
    for name, gradient in expected.items():
        found, scale = parameters[name].grad, gradient.abs().max()
        assert scale > 0, name
        assert found is not None, name
        assert (found - gradient).abs().max() <= 2e-5 * scale, name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("with_segments", [True, False], ids=["segments", "tokens"])
def test_logits_loss_and_gradients_equal_those_of_transformers(
    config: T5Config,
    random_model: Callable[..., T5],
    padded_rows: tuple[Tensor, Tensor],
    attention: str,
    with_segments: bool,
) -> None:
    inputs, targets = padded_rows
    model = random_model(config, attention)
    theirs = reference(model)
    shifted = functional.pad(targets[:, :-1], (1, 0))
    real = targets != 0
    expected = theirs(
        input_ids=inputs,
        attention_mask=inputs != 0,
        decoder_input_ids=shifted,
        decoder_attention_mask=real if with_segments else None,
        labels=targets.masked_fill(~real, -100),
    )
    segments = {"encoder_segment_ids": (inputs != 0).int(), "decoder_segment_ids": real.int()} if with_segments else {}
    logits = model(inputs, shifted, **segments)
    torch.testing.assert_close(logits[real], expected.logits[real], rtol=1e-5, atol=1e-5)
    loss = losses(logits, targets)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=0)
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(model, theirs)


def sites_in_order(model: T5) -> list[int]:
    """The numbers of the dropout sites in the order in which a pass meets them: a stack's input and output come first,
    then eight for each layer."""
    sites, first = [], 0
    # Self-attention's weights and output, cross-attention's, the feed-forward's hidden channels and output.
    for stack, of_layer in ((model.encoder, [0, 3, 2, 5]), (model.decoder, [0, 3, 1, 4, 2, 5])):
        layers = [first + 2 + 8 * number + site for number in range(len(stack.layers)) for site in of_layer]
        sites += [first, *layers, first + 1]
        first += stack.sites
    return sites


@pytest.mark.parametrize(
    ("attention", "over_length"), [("sdpa", "shared"), ("eager", "shared"), ("sdpa", "independent")]
)
def test_dropout_falls_where_transformers_has_it(
    config: T5Config,
    random_model: Callable[..., T5],
    padded_rows: tuple[Tensor, Tensor],
    attention: str,
    over_length: DropoutOverLength,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, targets = padded_rows
    config = replace(config, dropout_over_length=over_length)
    model = random_model(config, attention)
    theirs = reference(model, "eager").train()
    keys = torch.tensor([21, 22, 23])
    masks = Dropout.of_rows(keys, config.dropout_rate, sites=60, indices=3 * 150**2, over_length=over_length)
    sites = iter(sites_in_order(model))

    def keyed_dropout(x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
        assert (p, training) == (config.dropout_rate, True)
        if x.ndim == 3:
            return x * masks.channels(next(sites), x.shape[-1], x.shape[1], x.dtype)
        # Attention weights [batch, heads, queries, keys].
        if over_length == "independent":
            return x * masks.pairs(next(sites), x.shape[1], x.shape[2], x.shape[3], x.dtype)
        return x * masks.value_rows(next(sites), x.shape[1], x.shape[3], x.dtype).transpose(2, 3)

    monkeypatch.setattr(functional, "dropout", keyed_dropout)
    expected = theirs(input_ids=inputs, attention_mask=inputs != 0, decoder_input_ids=targets).logits
    assert next(sites, None) is None
    logits = model(inputs, targets, dropout_keys=keys)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    losses(logits, targets).backward()
    losses(expected, targets).backward()
    assert_same_gradients(model, theirs)


def test_greedy_answers_are_those_of_transformers(
    config: T5Config, random_model: Callable[..., T5], padded_rows: tuple[Tensor, Tensor]
) -> None:
    inputs = torch.cat([padded_rows[0], padded_rows[0].roll(1, dims=1).flip(1)[:, :150]])
    ended = running = 0
    for seed in range(4):
        model = random_model(config, seed=seed, gain=2.0)
        eos = int(greedy_decode(model, inputs, max_length=40)[0, 5])
        ours = greedy_decode(model, inputs, max_length=40, eos_id=eos)
        # Their cache takes the encoder's depth for the decoder's, so it cannot be used with unequal stacks.
        options = {"max_new_tokens": 40, "do_sample": False, "use_cache": False, "eos_token_id": eos}
        theirs = reference(model).generate(inputs, attention_mask=(inputs != 0).int(), **options)
        assert torch.equal(ours, theirs[:, 1:])
        ended += int((ours == eos).any(1).sum())
        running += int((ours != eos).all(1).sum())
    assert min(ended, running) > 0, "the rows should test both ways to end"
