"""A checkpoint of t5x: one msgpack file with parameters, optimizer and step, of which the parameters are read.

    optimizer/target/encoder/layers_0/attention/query/kernel              [d_model, heads x d_kv]
    optimizer/target/decoder/relpos_bias/rel_embedding                    [heads, buckets]

Later versions have no `optimizer/` before each. Kernels multiply from the other side, so they are transposed here; an
attention's may also be three-dimensional ([d_model, heads, d_kv], of `out` [heads, d_kv, d_model]). The architecture
follows from the shapes of the arrays. Nothing in the file says at which distance the last bucket begins, or how much
was dropped: T5's 128 and 0.1. A checkpoint whose arrays lie in folders beside the file (TensorStore) is refused, and so
is the "scalable" T5, which has a relative bias in every layer: it is another model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.convert import hf_name
from mixtura.models.t5.msgpack_file import flat, read_tree
from mixtura.models.t5.stored import ForeignModel, StoredTensor, matched

CHECKPOINT = "checkpoint"
"""What t5x calls the file in a checkpoint's folder."""

_TARGET = "target/"
_ENDS = {
    "token_embedder/embedding": "embedding.weight",
    "decoder/logits_dense/kernel": "head.weight",
    "encoder/encoder_norm/scale": "encoder.final_norm.scale",
    "decoder/decoder_norm/scale": "decoder.final_norm.scale",
    "encoder/relpos_bias/rel_embedding": "encoder.relative_bias.weight",
    "decoder/relpos_bias/rel_embedding": "decoder.relative_bias.weight",
}
_IN_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(\w+)/(?:(\w+)/kernel|scale)")
_SUBLAYERS = {
    ("encoder", "attention"): "self_attention",
    ("encoder", "pre_attention_layer_norm"): "self_attention_norm",
    ("decoder", "self_attention"): "self_attention",
    ("decoder", "pre_self_attention_layer_norm"): "self_attention_norm",
    ("decoder", "encoder_decoder_attention"): "cross_attention",
    ("decoder", "pre_cross_attention_layer_norm"): "cross_attention_norm",
    **{(stack, "mlp"): "feed_forward" for stack in ("encoder", "decoder")},
    **{(stack, "pre_mlp_layer_norm"): "feed_forward_norm" for stack in ("encoder", "decoder")},
}
_PROJECTIONS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "o",
    "wi": "wi",
    "wi_0": "wi_0",
    "wi_1": "wi_1",
    "wo": "wo",
}


def is_t5x_checkpoint(path: Path) -> bool:
    """Whether a file may be one: they begin with a msgpack map, as no other file does that is read here."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(1) in {bytes([first]) for first in (*range(0x81, 0x90), 0xDE, 0xDF)}


def our_name_of_t5x(path: str) -> str:
    """What we call a parameter.

    >>> our_name_of_t5x("decoder/layers_3/encoder_decoder_attention/query/kernel")
    'decoder.layers.3.cross_attention.q.weight'
    """
    if path in _ENDS:
        return _ENDS[path]
    found = _IN_LAYER.fullmatch(path)
    if found:
        stack, layer, part, projection = found.groups()
        sublayer = _SUBLAYERS.get((stack, part))
        if sublayer is not None and projection is None and sublayer.endswith("_norm"):
            return f"{stack}.layers.{layer}.{sublayer}.scale"
        if sublayer is not None and projection in _PROJECTIONS:
            return f"{stack}.layers.{layer}.{sublayer}.{_PROJECTIONS[projection]}.weight"
    raise ValueError(f"'{path}' is no parameter of the T5 of t5x's examples; is this another model?")


def read_t5x(path: Path) -> ForeignModel:
    """The model in a checkpoint file. Raises ValueError that says what is missing, wrong or refused."""
    leaves = {name.removeprefix("optimizer/"): leaf for name, leaf in flat(read_tree(path))}
    parameters = {name.removeprefix(_TARGET): leaf for name, leaf in leaves.items() if name.startswith(_TARGET)}
    if not parameters:
        raise ValueError(f"it is no checkpoint of t5x: it has no parameters below '{_TARGET}'")
    tensors = {name: leaf for name, leaf in parameters.items() if isinstance(leaf, StoredTensor)}
    if elsewhere := sorted(parameters.keys() - tensors.keys()):
        raise ValueError(
            f"the values of '{elsewhere[0]}' are not in the file but in folders beside it (TensorStore): "
            "load it with t5x, save it with transformers, and take that directory"
        )
    stored = {our_name_of_t5x(name): _oriented(name, tensor) for name, tensor in tensors.items()}
    config = _config_of(stored)
    return ForeignModel(config, matched({hf_name(name): tensor for name, tensor in stored.items()}, config), None)


def _oriented(name: str, tensor: StoredTensor) -> StoredTensor:
    """A parameter in our orientation, as a matrix."""
    kind = name.rpartition("/")[2]
    if len(tensor.shape) == 3 and kind == "kernel":
        first, middle, last = tensor.shape
        tensor = tensor.reshaped((first * middle, last) if "/out/" in name else (first, middle * last))
    return tensor.transposed() if kind in ("kernel", "rel_embedding") else tensor


def _config_of(stored: Mapping[str, StoredTensor]) -> T5Config:
    """The architecture by the shapes; what is missing is told when names are compared."""
    needed = ("embedding.weight", "encoder.relative_bias.weight", "encoder.layers.0.self_attention.q.weight")
    for name in needed:
        if name not in stored:
            raise ValueError(f"the checkpoint has no '{name}': it is of another model")
    vocabulary, d_model = stored["embedding.weight"].shape
    buckets, heads = stored["encoder.relative_bias.weight"].shape
    gated = "encoder.layers.0.feed_forward.wi_0.weight" in stored
    first = stored.get(f"encoder.layers.0.feed_forward.{'wi_0' if gated else 'wi'}.weight")
    return T5Config(
        vocab_size=vocabulary,
        d_model=d_model,
        d_kv=stored["encoder.layers.0.self_attention.q.weight"].shape[0] // heads,
        d_ff=first.shape[0] if first is not None else 1,
        num_heads=heads,
        num_layers=_layers(stored, "encoder"),
        num_decoder_layers=_layers(stored, "decoder"),
        relative_attention_num_buckets=buckets,
        feed_forward="gated-gelu" if gated else "relu",
        tie_embeddings="head.weight" not in stored,
    )


def _layers(stored: Mapping[str, StoredTensor], stack: str) -> int:
    return len({name.split(".")[2] for name in stored if name.startswith(f"{stack}.layers.")})
