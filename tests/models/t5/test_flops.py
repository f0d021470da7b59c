from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixtura.models.t5 import SIZES, T5Config, create_model
from mixtura.models.t5.flops import flops_per_step

ARCHITECTURES = ["encoder_decoder", "shared", "prefix_lm", "lm"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("adapter_size", [None, 7])
def test_the_formula_counts_what_the_model_multiplies(
    config: T5Config, architecture: str, adapter_size: int | None
) -> None:
    layers = {"num_decoder_layers": config.num_layers} if architecture == "shared" else {}
    config = replace(config, architecture=architecture, adapter_size=adapter_size, **layers)  # type: ignore[arg-type]
    rows, encoder, decoder = 3, 10, 6
    lengths = {"encoder": encoder, "decoder": decoder}
    with torch.device("meta"):
        model = create_model(config, attention="eager")
        features = {
            name: torch.ones(rows, lengths[name.partition("_")[0]], dtype=torch.int32) for name in model.features
        }
    with FlopCounterMode(display=False) as counted:
        model(**features)
    single = architecture in ("prefix_lm", "lm")
    assert flops_per_step(config, rows, 0 if single else encoder, decoder).forward == counted.get_total_flops()


def test_published_sizes_cost_what_is_known_of_them() -> None:
    # GFLOP of forward and backward pass for one example of 512 and 114 tokens.
    known = {"v1_1-small": 106, "v1_1-base": 426, "v1_1-large": 1468, "v1_1-xl": 5346, "v1_1-xxl": 20900}
    assert {size: round(flops_per_step(SIZES[size], 1, 512, 114).step / 1e9) for size in known} == known


def test_logits_are_counted_where_targets_are() -> None:
    base = SIZES["base"]
    every, few = flops_per_step(base, 2, 512, 114), flops_per_step(base, 2, 512, 114, target_positions=100)
    assert few.head == 100 * 2 * 768 * 32128
    assert every.forward - every.head == few.forward - few.head


def test_activation_checkpointing_computes_all_but_the_logits_again() -> None:
    flops = flops_per_step(SIZES["base"], 1, 512, 114)
    assert flops.hardware(activation_checkpointing=False) == flops.step == 3 * flops.forward
    assert flops.hardware(activation_checkpointing=True) == 4 * flops.forward - flops.head
