"""What is said of a microbatch's memory is what autograd keeps, within 10 %."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mixtura.models.t5 import T5Config, create_model, initialize, stack
from mixtura.models.t5.attention import DenseBias, score_bias
from mixtura.models.t5.footprint import Microbatch, kept_bytes

# Wide enough for the vectors to outweigh the numbers that are kept for a whole row.
V1_0 = T5Config(
    vocab_size=256, d_model=96, d_kv=16, d_ff=224, num_heads=4, num_layers=3, num_decoder_layers=2, dropout_rate=0.1
)
V1_1 = replace(V1_0, feed_forward="gated-gelu", tie_embeddings=False)
ROWS, ENCODER, DECODER = 4, 48, 40


def features(names: tuple[str, ...], *, packed: bool) -> dict[str, Tensor]:
    """Rows of one segment, or of two."""
    made = {}
    for name in names:
        length = ENCODER if name.startswith("encoder") else DECODER
        values = torch.ones(ROWS, length, dtype=torch.int32)
        if name.endswith("tokens"):
            values = torch.randint(2, 256, (ROWS, length), dtype=torch.int32)
        elif name.endswith("segment_ids") and packed:
            values[:, length // 3 :] = 2
        elif name.endswith("causal_attention"):
            values[:, length // 3 :] = 0
        made[name] = values
    return made


@contextmanager
def gathered_masks() -> Iterator[dict[int, Tensor]]:
    """What is added to the scores of the models that run inside, by the place of its storage."""
    seen: dict[int, Tensor] = {}

    def gather(*args: Any) -> Any:
        bias = score_bias(*args)
        assert isinstance(bias, DenseBias)
        seen[bias.added.untyped_storage().data_ptr()] = bias.added
        return bias

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "score_bias", gather)
        yield seen


def kept_by_autograd(model: Any, inputs: dict[str, Tensor]) -> int:
    """Bytes of all that a forward pass saves, each storage once, without parameters, biases and masks."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        # Keeps what the loss does, which makes its logits again: the hidden states.
        return torch.nn.functional.linear(hidden, weight)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), gathered_masks() as masks:
        model(**inputs, head=head)
    others = parameters | masks.keys()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in others)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no_dropout"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_activations_are_as_planned(
    feed_forward: str, attention: str, dtype: torch.dtype, dropout: bool, packed: bool
) -> None:
    config = V1_0 if feed_forward == "relu" else V1_1
    config = config if dropout else replace(config, dropout_rate=0.0)
    check(config, attention, dtype, packed=packed)


@pytest.mark.parametrize("architecture", ["shared", "prefix_lm", "lm"])
@pytest.mark.parametrize("adapter_size", [None, 24])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_of_every_architecture_are_as_planned(
    architecture: str, adapter_size: int | None, checkpointing: bool
) -> None:
    config = replace(V1_1, architecture=architecture, adapter_size=adapter_size, num_decoder_layers=3)  # type: ignore[arg-type]
    check(config, "sdpa", torch.float32, packed=True, checkpointing=checkpointing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_checkpointed_activations_are_as_planned(dtype: torch.dtype) -> None:
    check(replace(V1_0, num_layers=6, num_decoder_layers=6), "sdpa", dtype, packed=True, checkpointing=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["encoder_decoder", "shared", "prefix_lm", "lm"])
def test_bias_and_mask_are_as_planned(architecture: str, dtype: torch.dtype) -> None:
    config = replace(V1_0, architecture=architecture, num_decoder_layers=3)  # type: ignore[arg-type]
    model = create_model(config)
    initialize(model, 0)
    model.to(dtype)
    with gathered_masks() as masks:
        model(**features(model.features, packed=True))
    counted = sum(mask.untyped_storage().nbytes() for mask in masks.values())
    single = "encoder_input_tokens" not in model.features
    batch = Microbatch(ROWS, 0 if single else ENCODER, DECODER)
    planned = kept_bytes(config, batch, width=dtype.itemsize, on_gpu=False)
    assert planned.bias == pytest.approx(counted, rel=0.1)


def check(config: T5Config, attention: Any, dtype: torch.dtype, *, packed: bool, checkpointing: bool = False) -> None:
    torch.manual_seed(0)
    model = create_model(config, attention=attention, activation_checkpointing=checkpointing)
    initialize(model, 0)
    model.to(dtype)
    inputs = features(model.features, packed=packed)
    if config.dropout_rate:
        inputs["dropout_keys"] = torch.arange(ROWS)
    counted = kept_by_autograd(model, inputs)
    single = "encoder_input_tokens" not in model.features
    planned = kept_bytes(
        config,
        Microbatch(ROWS, 0 if single else ENCODER, DECODER),
        width=dtype.itemsize,
        attention=attention,
        activation_checkpointing=checkpointing,
        on_gpu=False,
    )
    assert planned.activations == pytest.approx(counted, rel=0.1)
