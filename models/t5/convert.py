"""The way to and from Hugging Face: names of parameters, `config.json`, and what `model.safetensors` holds.

Weights have the same orientation on both sides, so only names change. What transformers has a class for (two stacks,
also such as share their weights) is written under its names, so that it loads without a conversion; a stack that is
alone, and adapters, keep our names and a `config.json` that transformers refuses.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mixtura.models.t5.config import FEED_FORWARD_KINDS, T5Config

OWN_KEY = "mixtura"
"""The key of `config.json` under which we keep what transformers has no word for."""

OWN_MODEL_TYPE = "mixtura_t5"
"""The `model_type` of models that transformers has no class for."""

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

UNREAD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""Written by some old versions, never read by any."""


def hf_name(name: str) -> str:
    """What Hugging Face calls one parameter of two stacks.

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


def is_hf_model(config: T5Config) -> bool:
    """Whether transformers has a class that computes the same: not for one stack, and not with adapters."""
    return config.architecture in {"encoder_decoder", "shared"} and config.adapter_size is None


def hf_names(name: str, config: T5Config) -> tuple[str, ...]:
    """The names under which a parameter is written.

    Stacks with the same weights are two in transformers, and each of them has to find its own: the decoder's
    parameters, which are ours, come first. A model that transformers has no class for keeps our names.

    >>> shared = T5Config(32, 8, 4, 16, 2, num_layers=1, num_decoder_layers=1, architecture="shared")
    >>> hf_names("decoder.final_norm.scale", shared)
    ('decoder.final_layer_norm.weight', 'encoder.final_layer_norm.weight')
    """
    if not is_hf_model(config):
        return (name,)
    first = hf_name(name)
    stack, _, rest = name.partition(".")
    if config.architecture == "shared" and stack == "decoder" and ".cross_attention" not in rest:
        return first, hf_name(f"encoder.{rest}")
    return (first,)


def hf_state(state: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """Our state under the names of `model.safetensors`.

    `shared.weight` stands for all that is tied to it: transformers fills the copies of the two stacks from it, and the
    head of a tied model. The head of an untied model is kept apart there because both are present and differ.
    """
    _refuse_other_head("head.weight" in state, config)
    return {theirs: tensor for name, tensor in state.items() for theirs in hf_names(name, config)}


def our_state(hf_state: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """The inverse of `hf_state`; what a checkpoint has more than once must be equal, and is taken once."""
    chosen = {
        ours: [hf_state[name] for name in names] for ours, names in names_to_read(hf_state.keys(), config).items()
    }
    for ours, (first, *others) in chosen.items():
        if not all(torch.equal(first, other) for other in others):
            raise ValueError(copies_differ(ours, config))
    if not config.tie_embeddings:
        _refuse_other_head("head.weight" in chosen, config)
    return {ours: tensors[0] for ours, tensors in chosen.items()}


def _refuse_other_head(present: bool, config: T5Config) -> None:
    if present == config.tie_embeddings:
        has = "has" if present else "lacks"
        raise ValueError(
            f"tie_embeddings is {config.tie_embeddings}, but the state {has} a head of its own; one of the two is wrong"
        )


def names_to_read(present: Collection[str], config: T5Config) -> dict[str, list[str]]:
    """For each of our names the names in a file that hold its values, all of which have to be equal.

    >>> tied = T5Config(32, 8, 4, 16, 2, num_layers=1, num_decoder_layers=1)
    >>> names_to_read(["encoder.embed_tokens.weight", "shared.weight"], tied)
    {'embedding.weight': ['shared.weight', 'encoder.embed_tokens.weight']}

    Raises ValueError for a name of another model.
    """
    if not is_hf_model(config):
        return {name: [name] for name in present}
    copies = _COPIES_OF_EMBEDDING + (("lm_head.weight",) if config.tie_embeddings else ())
    names: dict[str, list[str]] = {}
    for name in sorted(present, key=lambda name: (name in copies, name.startswith("encoder."))):
        if name in UNREAD:
            continue
        ours = "embedding.weight" if name in copies else our_name(name)
        if config.architecture == "shared" and ours.startswith("encoder."):
            ours = f"decoder.{ours.removeprefix('encoder.')}"
        names.setdefault(ours, []).append(name)
    return names


def copies_differ(name: str, config: T5Config) -> str:
    """What to say where a file has one of our parameters twice and the values differ."""
    if name != "embedding.weight":
        return (
            f"the encoder's and the decoder's copy of '{name}' differ, but config.json says that the stacks share "
            f"their weights: take {OWN_KEY!r} out of it to read them as two"
        )
    head = " and the head; for a head of its own set tie_word_embeddings to false" if config.tie_embeddings else ""
    return f"copies of 'shared.weight' differ, but this architecture has one embedding for both stacks{head}"


def hf_config(config: T5Config) -> dict[str, Any]:
    """The content of `config.json` for `T5ForConditionalGeneration.from_pretrained`.

    `tie_word_embeddings: false` makes transformers 4 keep a head apart. Transformers 5 forces it back to true and only
    leaves the logits unscaled; there the head stays apart because `model.safetensors` holds one that differs.

    A model that transformers has no class for gets a `feed_forward_proj` that every version of it refuses: an unknown
    `model_type` alone only makes it warn, and go on with random weights.
    """
    if not is_hf_model(config):
        return {
            "architectures": [_own_class(config)],
            "model_type": OWN_MODEL_TYPE,
            "feed_forward_proj": "not-in-transformers",
            OWN_KEY: asdict(config),
        }
    own = {"architecture": config.architecture, "dropout_over_length": config.dropout_over_length}
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
        OWN_KEY: own,
    }


def _own_class(config: T5Config) -> str:
    """A name for people: what is in the folder."""
    kind = {"encoder_decoder": "T5", "shared": "SharedT5", "prefix_lm": "T5PrefixLM", "lm": "T5LM"}
    return f"Mixtura{kind[config.architecture]}" + ("" if config.adapter_size is None else "WithAdapters")


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

# The same for mT5, where it differs.
_MT5_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
)

# Where another value means another architecture; one that is missing or null means these.
_REQUIRED: Mapping[str, Any] = MappingProxyType(
    {"is_encoder_decoder": True, "pad_token_id": 0, "decoder_start_token_id": 0}
)


def config_from_hf(hf: Mapping[str, Any]) -> T5Config:
    """The architecture that a `config.json` describes: T5 1.0 and 1.1, mT5, and what `hf_config` wrote.

    >>> config = T5Config(32, 8, 4, 16, 2, num_layers=1, num_decoder_layers=3)
    >>> config_from_hf(hf_config(config)) == config
    True
    """
    model_type = hf.get("model_type")
    own = hf.get(OWN_KEY, {})
    if model_type == OWN_MODEL_TYPE:
        return _own_config(own)
    if model_type not in ("t5", "mt5"):
        raise ValueError(f"config.json has model_type = {model_type!r}, but a T5 here needs 't5' or 'mt5'")
    for key, required in _REQUIRED.items():
        if hf.get(key) not in (None, required):
            raise ValueError(f"config.json has {key} = {hf[key]!r}, but a T5 here needs {required!r}")
    multilingual = model_type == "mt5"
    kind = hf.get("feed_forward_proj", "gated-gelu" if multilingual else "relu")
    if kind not in FEED_FORWARD_KINDS:
        raise ValueError(
            f"config.json has feed_forward_proj = {kind!r}; known are {' and '.join(map(repr, FEED_FORWARD_KINDS))}"
        )
    defaults = {**_HF_DEFAULTS, **(_MT5_DEFAULTS if multilingual else {})}
    values = {key: hf.get(key, default) for key, default in defaults.items()}
    decoder_layers = hf.get("num_decoder_layers")
    # What an mT5 says of its head is not so: none was ever tied, and transformers 5 writes that all are.
    tied = not multilingual and hf.get("tie_word_embeddings", True) and hf.get("scale_decoder_outputs", True)
    return _own_config(
        {
            **values,
            **{key: own[key] for key in ("architecture", "dropout_over_length") if key in own},
            "num_decoder_layers": values["num_layers"] if decoder_layers is None else decoder_layers,
            "feed_forward": kind,
            # Transformers 5 writes an untied model as "tied, but unscaled".
            "tie_embeddings": bool(tied),
        }
    )


def _own_config(values: Mapping[str, Any]) -> T5Config:
    try:
        return T5Config(**values)
    except TypeError as error:
        raise ValueError(f"config.json is not one that can be read here: {error}") from None
