from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mixtura.models.t5 import T5, T5Config, initialize

WIDE = T5Config(2048, 256, 32, 512, 4, num_layers=1, num_decoder_layers=1)
CUT = 0.8796  # what is left of a normal's standard deviation when it is cut at 2 of them


def initialized(config: T5Config, seed: int = 0) -> dict[str, torch.Tensor]:
    model = T5(config)
    initialize(model, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("ending", "deviation", "limit"),
    [
        ("embedding.weight", 1.0, None),
        ("q.weight", (256 * 32) ** -0.5, None),
        ("k.weight", 256**-0.5, None),
        ("v.weight", 256**-0.5, None),
        ("o.weight", 128**-0.5, None),
        ("wi.weight", CUT * 256**-0.5, 2 * 256**-0.5),
        ("wi_0.weight", CUT * 256**-0.5, 2 * 256**-0.5),
        ("wi_1.weight", CUT * 256**-0.5, 2 * 256**-0.5),
        ("wo.weight", CUT * 512**-0.5, 2 * 512**-0.5),
        ("head.weight", CUT * 256**-0.5, 2 * 256**-0.5),
        ("relative_bias.weight", (2 / 36) ** 0.5, (6 / 36) ** 0.5),
    ],
)
def test_every_weight_has_the_spread_of_the_original(ending: str, deviation: float, limit: float | None) -> None:
    gated = replace(WIDE, feed_forward="gated-gelu", tie_embeddings=False)
    tensors = {**initialized(gated), **initialized(WIDE)}
    found = [tensor for name, tensor in tensors.items() if name.endswith("." + ending) or name == ending]
    assert found
    for tensor in found:
        # Twice the sampling error of the standard deviation, four times over.
        tolerance = 4 * (2 * tensor.numel()) ** -0.5
        assert tensor.std().item() == pytest.approx(deviation, rel=tolerance)
        assert abs(tensor.mean().item()) < 5 * deviation * tensor.numel() ** -0.5
        largest = tensor.abs().max().item()
        assert largest > 3 * deviation if limit is None else 0.85 * limit < largest <= limit * (1 + 1e-6)


def test_norms_start_at_one(config: T5Config) -> None:
    scales = [tensor for name, tensor in initialized(config).items() if name.endswith("scale")]
    assert len(scales) == 2 + 2 * config.num_layers + 3 * config.num_decoder_layers
    assert all((scale == 1).all() for scale in scales)


def test_first_values_depend_on_seed_and_name_only(config: T5Config) -> None:
    torch.manual_seed(0)
    first, other_seed = initialized(config), initialized(config, seed=1)
    torch.manual_seed(1)
    again, deeper = initialized(config), initialized(replace(config, num_layers=5))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, deeper[name])
        assert name.endswith("scale") or not torch.equal(tensor, other_seed[name])
    keys = [first[f"encoder.layers.{layer}.self_attention.k.weight"] for layer in (0, 1)]
    assert not torch.equal(*keys)


def test_filling_a_model_leaves_the_global_generator_alone(config: T5Config) -> None:
    before = torch.get_rng_state()
    initialized(config)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_logits_have_unit_scale() -> None:
    for config in (WIDE, replace(WIDE, feed_forward="gated-gelu", tie_embeddings=False)):
        model = T5(config)
        initialize(model, 0)
        tokens = torch.randint(2, 2048, (2, 20))
        assert 0.5 < model(tokens, tokens).std().item() < 2.0
