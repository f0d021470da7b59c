from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mixtura.models.t5 import SIZES, T5, T5Config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model is 0"),
        ({"num_decoder_layers": -1}, "num_decoder_layers is -1"),
        ({"feed_forward": "swiglu"}, "feed_forward is 'swiglu'; choose 'relu' or 'gated-gelu'"),
        ({"architecture": "encoder"}, "architecture is 'encoder'; choose 'encoder_decoder' or 'shared' or"),
        ({"dropout_over_length": "none"}, "dropout_over_length is 'none'; choose 'shared' or 'independent'"),
        ({"adapter_size": 0}, "adapter_size is 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0"),
        ({"dropout_rate": float("nan")}, "dropout_rate is nan"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon is 0.0"),
        ({"relative_attention_num_buckets": 7}, "relative_attention_num_buckets is 7"),
        ({"relative_attention_max_distance": 16}, "max_distance is 16, but 32 buckets"),
    ],
)
def test_impossible_architectures_are_refused(config: T5Config, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("small", 60_506_624),
        ("base", 222_903_552),
        ("large", 737_668_096),
        ("3B", 2_851_598_336),
        ("11B", 11_307_321_344),
        ("v1_1-small", 76_961_152),
        ("v1_1-base", 247_577_856),
        ("v1_1-large", 783_150_080),
        ("v1_1-xl", 2_849_757_184),
        ("v1_1-xxl", 11_135_332_352),
    ],
)
def test_published_sizes_have_their_parameters_to_the_last_one(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = T5(SIZES[size])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
