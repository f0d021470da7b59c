"""The shapes of the paper's section 3.2, adapters and unfreezing of section 3.5.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixtura.models.t5 import SIZES, DecoderOnlyT5, T5Config, TextToText, create_model, greedy_decode, initialize

RandomModel = Callable[..., TextToText]

SMALL = T5Config(
    vocab_size=64, d_model=16, d_kv=6, d_ff=24, num_heads=3, num_layers=2, num_decoder_layers=2, dropout_rate=0.25
)
EVERY: Mapping[str, T5Config] = {
    "encoder_decoder": SMALL,
    "shared": replace(SMALL, architecture="shared"),
    "prefix_lm": replace(SMALL, architecture="prefix_lm"),
    "lm": replace(SMALL, architecture="lm"),
    "gated_lm": replace(SMALL, architecture="lm", feed_forward="gated-gelu", tie_embeddings=False),
    "adapters": replace(SMALL, adapter_size=5),
    "independent": replace(SMALL, dropout_over_length="independent"),
}
KEYS = torch.tensor([3, -7, 2**62])


@pytest.fixture(params=list(EVERY))
def every_config(request: pytest.FixtureRequest) -> T5Config:
    """A toy of every architecture."""
    return EVERY[request.param]


def packed_features(model: TextToText) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Three rows of two segments each with padding, and the same segments in rows of their own."""
    generator = torch.Generator().manual_seed(5)
    lengths = {"encoder": (40, 33), "decoder": (21, 30)}
    packed: dict[str, Tensor] = {}
    alone: list[dict[str, Tensor]] = [{}, {}]
    for stack, (first, second) in lengths.items():
        tokens = torch.randint(2, 64, (3, first + second), generator=generator)
        segments = torch.tensor([1] * first + [2] * second + [0] * 4).expand(3, -1)
        packed |= {
            f"{stack}_input_tokens": functional.pad(tokens, (0, 4)),
            f"{stack}_segment_ids": segments,
            f"{stack}_causal_attention": torch.tensor([1] * 9 + [0] * (first - 9) + [1] * 5 + [0] * (second - 1)),
        }
        for part, cut in zip(alone, (slice(0, first), slice(first, first + second)), strict=True):
            part |= {name: packed[name][..., cut] for name in packed if name.startswith(stack)}
            part[f"{stack}_segment_ids"] = torch.ones_like(part[f"{stack}_segment_ids"])
    everything = [packed, *alone]
    for features in everything:
        features["decoder_causal_attention"] = features["decoder_causal_attention"].expand(3, -1)
    taken = [{name: features[name] for name in model.features} for features in everything]
    return taken[0], taken[1:]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (SIZES["base"], 222_903_552),
        (replace(SIZES["base"], architecture="shared"), 137_949_312),
        (replace(SIZES["base"], num_layers=6, num_decoder_layers=6), 123_790_080),
        (replace(SIZES["base"], architecture="lm"), 109_628_544),
        (replace(SIZES["base"], architecture="prefix_lm"), 109_628_544),
        (replace(SIZES["large"], num_layers=16, num_decoder_layers=16), 502_746_112),
        (replace(SIZES["large"], num_layers=32, num_decoder_layers=32), 972_590_080),
    ],
)
def test_variants_have_the_parameters_of_the_original(config: T5Config, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_packed_segments_give_the_logits_of_rows_of_their_own(
    every_config: T5Config, random_model: RandomModel
) -> None:
    model = random_model(every_config)
    packed, (first, second) = packed_features(model)
    logits, split = model(**packed), first["decoder_segment_ids"].shape[1]
    torch.testing.assert_close(logits[:, :split], model(**first), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[:, split:-4], model(**second), rtol=1e-5, atol=1e-5)


def step_of(model: TextToText, features: Mapping[str, Tensor], keys: Tensor | None = KEYS) -> list[Tensor]:
    """Logits, and the gradients of a loss of them."""
    logits = model(**features, dropout_keys=keys)
    logits.logsumexp(-1).square().mean().backward()
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def computed(config: T5Config, random_model: RandomModel, **computing: Any) -> list[Tensor]:
    model = create_model(config, **computing)
    model.load_state_dict(random_model(config).state_dict())
    return step_of(model, packed_features(model)[0])


def test_activation_checkpointing_changes_no_number(every_config: T5Config, random_model: RandomModel) -> None:
    plain = computed(every_config, random_model)
    for found, expected in zip(computed(every_config, random_model, activation_checkpointing=True), plain, strict=True):
        assert torch.equal(found, expected)


def test_written_out_attention_changes_no_number(every_config: T5Config, random_model: RandomModel) -> None:
    plain = computed(every_config, random_model)
    for found, expected in zip(computed(every_config, random_model, attention="eager"), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder_decoder", "shared", "lm"])
def test_compiled_layers_change_no_number(name: str, random_model: RandomModel) -> None:
    config = replace(EVERY[name], num_layers=1, num_decoder_layers=1)
    plain = computed(config, random_model)
    for found, expected in zip(computed(config, random_model, compile=True), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_dropout_does_not_depend_on_microbatch_or_padding(every_config: T5Config, random_model: RandomModel) -> None:
    model = random_model(every_config)
    features, _ = packed_features(model)
    together = model(**features, dropout_keys=KEYS)
    assert (together - model(**features)).abs().max() > 0.1
    longer = {name: functional.pad(value, (0, 3)) for name, value in features.items()}
    for row in range(3):
        alone = model(
            **{name: value[row : row + 1] for name, value in longer.items()}, dropout_keys=KEYS[row : row + 1]
        )
        torch.testing.assert_close(alone[0, :-7], together[row, :-4], rtol=1e-5, atol=2e-5)


def test_a_head_gets_what_logits_are_made_of(every_config: T5Config, random_model: RandomModel) -> None:
    model = random_model(every_config)
    features, _ = packed_features(model)
    hidden, weight = model(**features, head=lambda hidden, weight: (hidden, weight))
    assert weight.shape == (64, 16)
    torch.testing.assert_close(functional.linear(hidden, weight), model(**features))


def test_stacks_that_share_weights_are_two_with_equal_ones(random_model: RandomModel) -> None:
    shared, two = random_model(EVERY["shared"]), create_model(SMALL)
    state = shared.state_dict()
    state |= {
        name.replace("decoder.", "encoder."): value
        for name, value in shared.state_dict().items()
        if name.startswith("decoder.") and ".cross_attention" not in name
    }
    two.load_state_dict(state)
    features, _ = packed_features(shared)
    torch.testing.assert_close(shared(**features), two(**features), rtol=1e-5, atol=1e-5)
    # Two passes through the same layers drop out independently of each other.
    found, expected = step_of(shared, features, None), dict(two.named_parameters())
    step_of(two, features, None)
    for (name, _), gradient in zip(shared.named_parameters(), found[1:], strict=True):
        wanted = expected[name].grad
        assert wanted is not None
        if (twin := name.replace("decoder.", "encoder.")) != name and twin in expected:
            wanted = wanted + expected[twin].grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item(), msg=name)


def test_passes_through_shared_layers_have_masks_of_their_own(random_model: RandomModel) -> None:
    model = random_model(EVERY["shared"])
    seen: list[Tensor] = []

    def keep(_module: Any, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[2].kept(0, 500))

    model.get_submodule("decoder.layers.0").register_forward_pre_hook(keep)
    model(**packed_features(model)[0], dropout_keys=KEYS)
    encoder, decoder = seen
    assert 0.5 < (encoder == decoder).double().mean().item() < 0.75  # 0.75^2 + 0.25^2 if independent


def test_a_language_model_sees_only_what_came_before(random_model: RandomModel) -> None:
    for name, prefix in (("lm", 0), ("prefix_lm", 6)):
        model = random_model(EVERY[name])
        tokens = torch.randint(2, 64, (1, 12))
        changed = tokens.clone()
        changed[:, 8:] = 2
        inputs = {"decoder_segment_ids": torch.ones_like(tokens)}
        if prefix:
            inputs["decoder_causal_attention"] = (torch.arange(12) < prefix)[None].int()
        assert torch.equal(
            model(decoder_input_tokens=tokens, **inputs)[:, :8], model(decoder_input_tokens=changed, **inputs)[:, :8]
        )
        changed = tokens.clone()
        changed[:, 4] = 2 + (tokens[:, 4] - 1) % 60
        seen = (
            model(decoder_input_tokens=tokens, **inputs)[:, :4] != model(decoder_input_tokens=changed, **inputs)[:, :4]
        )
        assert bool(seen.any()) == bool(prefix)  # within the prefix, positions see ahead


def test_what_a_prefix_is_must_be_said(random_model: RandomModel) -> None:
    tokens = torch.tensor([[5, 1]])
    with pytest.raises(ValueError, match="'prefix_lm' was called without decoder_causal_attention"):
        random_model(EVERY["prefix_lm"])(tokens, tokens)
    with pytest.raises(ValueError, match="'lm' was called with decoder_causal_attention"):
        random_model(EVERY["lm"])(tokens, tokens, decoder_causal_attention=tokens)


@pytest.mark.parametrize("name", ["prefix_lm", "lm"])
def test_decoding_goes_on_from_inputs_of_any_length(name: str, random_model: RandomModel) -> None:
    model = random_model(EVERY[name], gain=2.0)
    assert isinstance(model, DecoderOnlyT5)
    inputs = torch.tensor([[7, 8, 9, 1], [9, 1, 0, 0], [5, 6, 1, 0]])
    answers = greedy_decode(model, inputs, max_length=6)
    for row, answer in zip(inputs, answers, strict=True):
        known = torch.cat([torch.tensor([0]), row[row != 0]])
        for token in answer[: int((answer != 0).sum())]:
            features = {"decoder_input_tokens": known[None], "decoder_segment_ids": torch.ones_like(known)[None]}
            if name == "prefix_lm":
                among = torch.arange(len(known)) <= (row != 0).sum()
                features["decoder_causal_attention"] = among[None].int()
            assert int(model(**features)[0, -1].argmax()) == int(token)
            known = torch.cat([known, token[None]])


def test_only_adapters_and_norms_are_trained(random_model: RandomModel) -> None:
    model = random_model(EVERY["adapters"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".adapter." in name or name.endswith(".scale") for name in trained)
    layers = SMALL.num_layers + SMALL.num_decoder_layers
    assert sum(".adapter." in name for name in trained) == 2 * layers
    assert sum(name.endswith(".scale") for name in trained) == 3 * 2 + 4 * 2 + 2
    step_of(model, packed_features(model)[0])
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


def test_an_adapter_begins_with_the_spread_of_a_feed_forward_block() -> None:
    config = replace(SMALL, d_model=256, adapter_size=64)
    model = create_model(config)
    initialize(model, 0)
    adapter = (
        model.get_parameter("encoder.layers.0.adapter.wi.weight"),
        model.get_parameter("encoder.layers.0.adapter.wo.weight"),
    )
    assert adapter[0].std().item() == pytest.approx(0.8796 * 256**-0.5, rel=0.03)
    assert adapter[1].std().item() == pytest.approx(0.8796 * 64**-0.5, rel=0.03)


def test_layers_unfreeze_from_the_top_of_both_stacks(random_model: RandomModel) -> None:
    model = random_model(replace(SMALL, num_decoder_layers=3))
    first, *layers = model.unfreezing_order
    assert first == {
        "embedding.weight",
        "encoder.relative_bias.weight",
        "encoder.final_norm.scale",
        "decoder.relative_bias.weight",
        "decoder.final_norm.scale",
    }
    assert [{".".join(name.split(".")[:3]) for name in group} for group in layers] == [
        {"encoder.layers.1", "decoder.layers.2"},
        {"encoder.layers.0", "decoder.layers.1"},
        {"decoder.layers.0"},
    ]
    assert first.union(*layers) == {name for name, _ in model.named_parameters()}


def test_flex_attention_with_independent_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match="'flex', which has no dropout_over_length 'independent'"):
        create_model(EVERY["independent"], attention="flex")
