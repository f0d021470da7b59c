"""The way to and from Hugging Face: names of parameters, `config.json`, and what `model.safetensors` holds.

Weights have the same orientation on both sides, so only names change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mixtura.models.t5.config import FEED_FORWARD_KINDS, T5Config

_WHOLE: Mapping[str, str] = MappingProxyType({"embedding.weight": "shared.weight", "head.weight": "lm_head.weight"})

_OF_STACK: Mapping[str, str] = MappingProxyType(
    {
        "final_norm.scale": "final_layer_norm.weight",
        "relative_bias.weight": "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    }
)

_SUBLAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "encoder": ("self_attention", "feed_forward"),
        "decoder": ("self_attention", "cross_attention", "feed_forward"),
    }
)

_HF_SUBLAYERS: Mapping[str, str] = MappingProxyType(
    {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention", "feed_forward": "DenseReluDense"}
)

_IN_LAYER = re.compile(r"layers\.(\d+)\.(self_attention|cross_attention|feed_forward)(_norm\.scale|\.\w+\.weight)")

_IN_HF_BLOCK = re.compile(r"block\.(\d+)\.layer\.(\d)\.(\w+)(\.\w+)?\.weight")

_COPIES_OF_EMBEDDING = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

# Written by some old versions, never read by any.
_UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def hf_name(name: str) -> str:
    """What Hugging Face calls one of our parameters.

    >>> hf_name("decoder.layers.3.cross_attention.q.weight")
    'decoder.block.3.layer.1.EncDecAttention.q.weight'
    """
    if name in _WHOLE:
        return _WHOLE[name]
    stack, _, rest = name.partition(".")
    if stack in _SUBLAYERS:
        if rest in _OF_STACK:
            return f"{stack}.{_OF_STACK[rest]}"
        found = _IN_LAYER.fullmatch(rest)
        if found and found[2] in _SUBLAYERS[stack]:
            layer, sublayer, tail = found.groups()
            tail = "layer_norm.weight" if tail == "_norm.scale" else _HF_SUBLAYERS[sublayer] + tail
            return f"{stack}.block.{layer}.layer.{_SUBLAYERS[stack].index(sublayer)}.{tail}"
    raise ValueError(f"no parameter of a T5 here is called '{name}'; give a name from `model.named_parameters()`")


def our_name(hf: str) -> str:
    """The inverse of `hf_name`.

    >>> our_name("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")
    'encoder.layers.0.feed_forward.wi_0.weight'
    """
    for names, prefix in ((_WHOLE, ""), (_OF_STACK, "encoder."), (_OF_STACK, "decoder.")):
        for ours, theirs in names.items():
            if hf == prefix + theirs:
                return prefix + ours
    stack, _, rest = hf.partition(".")
    found = _IN_HF_BLOCK.fullmatch(rest)
    if stack in _SUBLAYERS and found and int(found[2]) < len(_SUBLAYERS[stack]):
        sublayer = _SUBLAYERS[stack][int(found[2])]
        if found[3] == "layer_norm" and found[4] is None:
            return f"{stack}.layers.{found[1]}.{sublayer}_norm.scale"
        if found[3] == _HF_SUBLAYERS[sublayer] and found[4] is not None:
            return f"{stack}.layers.{found[1]}.{sublayer}{found[4]}.weight"
    raise ValueError(f"'{hf}' is no parameter of a Hugging Face T5 for conditional generation; is this another model?")


def hf_state(state: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """Our state under Hugging Face's names: what `model.safetensors` has to hold, each tensor once.

    `shared.weight` stands for all that is tied to it: transformers fills the copies of the two stacks from it, and the
    head of a tied model. The head of an untied model is kept apart there because both are present and differ.
    """
    if ("head.weight" in state) == config.tie_embeddings:
        raise ValueError(_head_mismatch("head.weight" in state, config))
    return {hf_name(name): tensor for name, tensor in state.items()}


def our_state(hf_state: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """The inverse of `hf_state`; copies of the embedding in a checkpoint must equal it, and are left out."""
    copies = _COPIES_OF_EMBEDDING + (("lm_head.weight",) if config.tie_embeddings else ())
    state = dict(hf_state)
    for name in (name for name in copies if name in state):
        copy = state.pop(name)
        if not torch.equal(copy, state.setdefault("shared.weight", copy)):
            raise ValueError(
                f"'{name}' differs from 'shared.weight', but this architecture has one embedding for both stacks"
                + (" and the head; set tie_word_embeddings to false" if name == "lm_head.weight" else "")
            )
    state.pop(_UNREAD, None)
    if ("lm_head.weight" in state) == config.tie_embeddings:
        raise ValueError(_head_mismatch("lm_head.weight" in state, config))
    return {our_name(name): tensor for name, tensor in state.items()}


def _head_mismatch(present: bool, config: T5Config) -> str:
    has = "has" if present else "lacks"
    return f"tie_embeddings is {config.tie_embeddings}, but the state {has} a head of its own; one of the two is wrong"


def hf_config(config: T5Config) -> dict[str, Any]:
    """The content of `config.json` for `T5ForConditionalGeneration.from_pretrained`.

    `tie_word_embeddings: false` makes transformers 4 keep a head apart. Transformers 5 forces it back to true and only
    leaves the logits unscaled; there the head stays apart because `model.safetensors` holds one that differs.
    """
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "dropout_rate": config.dropout_rate,
        "feed_forward_proj": config.feed_forward,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "initializer_factor": 1.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "use_cache": True,
    }


# What transformers assumes for a key that config.json leaves out.
_HF_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_heads": 8,
        "num_layers": 6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
    }
)

# Where another value means another architecture; the second of each is what a missing key means.
_REQUIRED: Mapping[str, tuple[Any, Any]] = MappingProxyType(
    {
        "model_type": ("t5", None),
        "is_encoder_decoder": (True, True),
        "pad_token_id": (0, 0),
        "decoder_start_token_id": (0, 0),
    }
)


def config_from_hf(hf: Mapping[str, Any]) -> T5Config:
    """The architecture that a `config.json` describes; anything but T5 1.0 or 1.1 is refused.

    >>> config = T5Config(32, 8, 4, 16, 2, num_layers=1, num_decoder_layers=3)
    >>> config_from_hf(hf_config(config)) == config
    True
    """
    for key, (required, missing) in _REQUIRED.items():
        if hf.get(key, missing) != required:
            raise ValueError(f"config.json has {key} = {hf.get(key)!r}, but a T5 here needs {required!r}")
    kind = hf.get("feed_forward_proj", "relu")
    if kind not in FEED_FORWARD_KINDS:
        raise ValueError(
            f"config.json has feed_forward_proj = {kind!r}; known are {' and '.join(map(repr, FEED_FORWARD_KINDS))}"
        )
    values = {key: hf.get(key, default) for key, default in _HF_DEFAULTS.items()}
    decoder_layers = hf.get("num_decoder_layers")
    return T5Config(
        **values,
        num_decoder_layers=values["num_layers"] if decoder_layers is None else decoder_layers,
        feed_forward=kind,
        # Transformers 5 writes an untied model as "tied, but unscaled".
        tie_embeddings=hf.get("tie_word_embeddings", True) and hf.get("scale_decoder_outputs", True),
    )
