from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.models.t5 import (
    SIZES,
    T5,
    T5Config,
    TextToText,
    config_from_hf,
    hf_config,
    hf_name,
    hf_state,
    our_name,
    our_state,
)

RandomModel = Callable[..., T5]

SMALL = T5Config(64, 16, 6, 24, 3, num_layers=2, num_decoder_layers=2)


def save(model: TextToText, folder: Path) -> None:
    """As checkpoints are saved."""
    safetensors = pytest.importorskip("safetensors.torch")
    (folder / "config.json").write_text(json.dumps(hf_config(model.config)))
    state = {name: tensor.clone() for name, tensor in hf_state(model.state_dict(), model.config).items()}
    safetensors.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_names_go_there_and_back(config: T5Config) -> None:
    names = [name for name, _ in T5(config).named_parameters()]
    theirs = [hf_name(name) for name in names]
    assert len(set(theirs)) == len(names)
    assert [our_name(name) for name in theirs] == names


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("embedding.weight", "shared.weight"),
        ("head.weight", "lm_head.weight"),
        ("encoder.final_norm.scale", "encoder.final_layer_norm.weight"),
        ("encoder.relative_bias.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("decoder.relative_bias.weight", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("encoder.layers.11.feed_forward.wi.weight", "encoder.block.11.layer.1.DenseReluDense.wi.weight"),
        ("encoder.layers.0.feed_forward_norm.scale", "encoder.block.0.layer.1.layer_norm.weight"),
        ("decoder.layers.2.cross_attention_norm.scale", "decoder.block.2.layer.1.layer_norm.weight"),
        ("decoder.layers.2.feed_forward.wo.weight", "decoder.block.2.layer.2.DenseReluDense.wo.weight"),
    ],
)
def test_names_are_those_of_hugging_face(ours: str, theirs: str) -> None:
    assert (hf_name(ours), our_name(theirs)) == (theirs, ours)


@pytest.mark.parametrize("name", ["encoder.layers.0.cross_attention.q.weight", "pooler.weight", "encoder.layers.0"])
def test_names_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        hf_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.0.layer.2.DenseReluDense.wo.weight",
        "encoder.block.0.layer.0.layer_norm.bias",
        "qa_outputs.weight",
    ],
)
def test_names_of_other_models_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        our_name(name)


@pytest.mark.parametrize("shared", [False, True], ids=["two stacks", "shared"])
def test_a_saved_model_loads_in_transformers_and_comes_back(
    config: T5Config, shared: bool, random_model: RandomModel, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    if shared:
        config = replace(config, architecture="shared", num_decoder_layers=config.num_layers)
    model = random_model(config)
    save(model, tmp_path)

    theirs, report = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    inputs, targets = torch.randint(2, 64, (2, 30)), torch.randint(2, 64, (2, 20))
    expected = theirs.eval()(input_ids=inputs, decoder_input_ids=targets).logits
    torch.testing.assert_close(model(inputs, targets), expected, rtol=1e-5, atol=1e-5)

    theirs.save_pretrained(tmp_path / "back")
    back = config_from_hf(json.loads((tmp_path / "back" / "config.json").read_text()))
    assert back == config  # transformers keeps the keys that it has no word for
    returned = our_state(safetensors.load_file(tmp_path / "back" / "model.safetensors"), back)
    assert set(returned) == set(model.state_dict())
    assert all(torch.equal(returned[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [{"architecture": "lm"}, {"architecture": "prefix_lm"}, {"adapter_size": 5}],
    ids=["lm", "prefix", "adapter"],
)
def test_what_transformers_has_no_class_for_keeps_our_names_and_is_refused_there(
    change: dict[str, Any], random_model: RandomModel, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(replace(SMALL, **change))
    save(model, tmp_path)
    with pytest.raises(Exception, match="not-in-transformers"):
        transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert our_state(hf_state(model.state_dict(), model.config), model.config).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"architecture": "shared"},
        {"architecture": "lm"},
        {"adapter_size": 5},
        {"dropout_over_length": "independent"},
    ],
)
def test_config_goes_there_and_back(config: T5Config, change: dict[str, Any]) -> None:
    config = replace(config, num_decoder_layers=config.num_layers, **change)
    assert config_from_hf(hf_config(config)) == config


def test_stacks_that_share_their_weights_must_be_equal_in_a_file(random_model: RandomModel) -> None:
    config = replace(SMALL, architecture="shared")
    state = hf_state(random_model(config).state_dict(), config)
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    with pytest.raises(ValueError, match=r"copy of 'decoder.layers.1.self_attention.q.weight' differ"):
        our_state({**state, name: state[name] + 1}, config)


def test_an_mt5_is_read_with_its_own_defaults_and_never_tied() -> None:
    config = config_from_hf({"model_type": "mt5", "tie_word_embeddings": True})
    assert config == T5Config(
        250112, 512, 64, 1024, 6, num_layers=8, num_decoder_layers=8, feed_forward="gated-gelu", tie_embeddings=False
    )


def test_keys_left_out_have_the_defaults_of_transformers() -> None:
    config = config_from_hf({"model_type": "t5"})
    assert config == SIZES["small"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bart"}, "model_type = 'bart'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj = 'gated-silu'"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
        ({"pad_token_id": 3}, "pad_token_id = 3"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id = 2"),
        ({"d_model": "wide"}, "is not one that can be read here"),
    ],
)
def test_other_architectures_are_refused(config: T5Config, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_hf({**hf_config(config), **change})


def test_copies_of_the_embedding_are_left_out_and_must_be_copies(config: T5Config, random_model: RandomModel) -> None:
    model = random_model(config)
    state = hf_state(model.state_dict(), config)
    shared = state["shared.weight"]
    copies = {"encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared.clone()}
    assert set(our_state({**state, **copies}, config)) == set(model.state_dict())
    with pytest.raises(ValueError, match=r"copies of 'shared.weight' differ"):
        our_state({**state, "encoder.embed_tokens.weight": shared + 1}, config)


def test_a_head_that_the_config_does_not_expect_is_refused(config: T5Config, random_model: RandomModel) -> None:
    state = random_model(config).state_dict()
    theirs = hf_state(state, config)
    if config.tie_embeddings:
        state["head.weight"] = theirs["lm_head.weight"] = torch.zeros(64, 16)
    else:
        del state["head.weight"], theirs["lm_head.weight"]
    with pytest.raises(ValueError, match="tie_embeddings is"):
        hf_state(state, config)
    message = "set tie_word_embeddings to false" if config.tie_embeddings else "lacks a head of its own"
    with pytest.raises(ValueError, match=message):
        our_state(theirs, config)
