from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.models.t5 import T5, T5Config, create_model
from mixtura.models.t5.stored import ForeignModel
from mixtura.models.t5.t5x import is_t5x_checkpoint, our_name_of_t5x, read_t5x

msgpack = pytest.importorskip("msgpack")

RandomModel = Callable[..., T5]


def t5x_names(config: T5Config) -> list[str]:
    """The parameters of t5x's T5, as its examples call them."""
    names = ["token_embedder/embedding", "decoder/decoder_norm/scale", "encoder/encoder_norm/scale"]
    names += [f"{stack}/relpos_bias/rel_embedding" for stack in ("encoder", "decoder")]
    if not config.tie_embeddings:
        names.append("decoder/logits_dense/kernel")
    wi = ("wi",) if config.feed_forward == "relu" else ("wi_0", "wi_1")
    for stack, layers, attentions in (
        ("encoder", config.num_layers, {"attention": "attention"}),
        (
            "decoder",
            config.num_decoder_layers,
            {"self_attention": "self_attention", "encoder_decoder_attention": "cross_attention"},
        ),
    ):
        for layer in range(layers):
            prefix = f"{stack}/layers_{layer}"
            for attention, of_norm in attentions.items():
                names += [f"{prefix}/{attention}/{one}/kernel" for one in ("query", "key", "value", "out")]
                names.append(f"{prefix}/pre_{of_norm}_layer_norm/scale")
            names += [f"{prefix}/mlp/{one}/kernel" for one in (*wi, "wo")] + [f"{prefix}/pre_mlp_layer_norm/scale"]
    return names


def packed(tensor: torch.Tensor) -> Any:
    data = tensor.contiguous().numpy().tobytes()
    return msgpack.ExtType(1, msgpack.packb((list(tensor.shape), "float32", data)))


def tree_of(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree


def write(path: Path, model: T5, *, heads_apart: bool = False, **more: Any) -> Path:
    """A checkpoint with a model's weights, in t5x's orientation."""
    config, values = model.config, {}
    for name in t5x_names(config):
        tensor = model.get_parameter(our_name_of_t5x(name)).detach()
        if name.endswith(("/kernel", "/rel_embedding")):
            tensor = tensor.T
        if heads_apart and name.endswith(("query/kernel", "key/kernel", "value/kernel")):
            tensor = tensor.reshape(config.d_model, config.num_heads, config.d_kv)
        if heads_apart and name.endswith("out/kernel"):
            tensor = tensor.reshape(config.num_heads, config.d_kv, config.d_model)
        values[f"target/{name}"] = packed(tensor)
    path.write_bytes(msgpack.packb(tree_of({**values, "state/step": 7, **more})))
    return path


def loaded(found: ForeignModel) -> T5:
    model = create_model(found.config)
    model.load_state_dict(dict(found.weights))
    assert isinstance(model, T5)
    return model


@pytest.mark.parametrize("heads_apart", [False, True])
def test_a_checkpoint_becomes_the_model_that_it_was_made_from(
    config: T5Config, random_model: RandomModel, tmp_path: Path, heads_apart: bool
) -> None:
    model = random_model(config)
    path = write(tmp_path / "checkpoint", model, heads_apart=heads_apart)
    assert is_t5x_checkpoint(path)
    found = read_t5x(path)
    assert found.config == replace(config, dropout_rate=0.1)
    assert set(found.weights) == set(model.state_dict())
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in model.state_dict().items())


def test_what_lies_in_folders_beside_the_file_is_refused_with_the_way_out(
    config: T5Config, random_model: RandomModel, tmp_path: Path
) -> None:
    place = {"driver": "zarr", "kvstore": {"driver": "file", "path": "target.encoder.encoder_norm.scale"}}
    path = write(tmp_path / "checkpoint", random_model(config), **{"target/encoder/encoder_norm/scale": place})
    with pytest.raises(ValueError, match=r"in folders beside it \(TensorStore\): load it with t5x"):
        read_t5x(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target/encoder/layers_0/attention/rel_embedding", "no parameter of the T5 of t5x's examples"),
        ("target/decoder/layers_7/mlp/wo/kernel", r"\d+ missing \(decoder\.layers\.\d+"),
    ],
)
def test_other_models_are_refused(
    config: T5Config, random_model: RandomModel, tmp_path: Path, name: str, message: str
) -> None:
    path = write(tmp_path / "checkpoint", random_model(config), **{name: packed(torch.zeros(2, 2))})
    with pytest.raises(ValueError, match=message):
        read_t5x(path)


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(msgpack.packb({"params": {"kernel": 1}}))
    with pytest.raises(ValueError, match="no parameters below 'target/'"):
        read_t5x(path)
    for data in (b"\x80\x04\x95", b"PK\x03\x04", b""):
        path.write_bytes(data)
        assert not is_t5x_checkpoint(path)
    assert not is_t5x_checkpoint(tmp_path)


def test_a_checkpoint_that_t5x_wrote_computes_the_same_in_transformers(shared: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = shared / "data/t5_checkpoints/t5x_tiny/test_t5_tiny.checkpoint_0"
    if not path.is_file():
        pytest.skip("the tiny checkpoint of t5x's own tests is not here")
    found = read_t5x(path)
    assert found.config == T5Config(
        32128, 8, 3, 16, 4, num_layers=2, num_decoder_layers=2, feed_forward="gated-gelu", tie_embeddings=False
    )
    model = loaded(found)
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=8,
        d_kv=3,
        d_ff=16,
        num_heads=4,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(32128, 8))  # the constructor ties it whatever it is told
    theirs.load_state_dict(transformers_state(path))
    tokens = torch.randint(2, 32100, (2, 12)), torch.randint(2, 32100, (2, 9))
    expected = theirs(input_ids=tokens[0], decoder_input_ids=tokens[1]).logits
    torch.testing.assert_close(model(*tokens), expected, rtol=1e-5, atol=1e-5)


def transformers_state(path: Path) -> dict[str, torch.Tensor]:
    """The weights of the file by the names of transformers, found without our reader."""
    target = msgpack.unpackb(path.read_bytes(), strict_map_key=False)["optimizer"]["target"]

    def matrix(*names: str) -> torch.Tensor:
        node = target
        for name in names:
            node = node[name]
        shape, kind, data = msgpack.unpackb(node.data)
        assert kind == "float32"
        return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)

    state = {name: matrix("token_embedder", "embedding") for name in ("shared.weight", "encoder.embed_tokens.weight")}
    state["decoder.embed_tokens.weight"] = state["shared.weight"]
    state["lm_head.weight"] = matrix("decoder", "logits_dense", "kernel").T
    for stack in ("encoder", "decoder"):
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        state[f"{stack}.{bias}"] = matrix(stack, "relpos_bias", "rel_embedding").T
        state[f"{stack}.final_layer_norm.weight"] = matrix(stack, f"{stack}_norm", "scale")
        own = "attention" if stack == "encoder" else "self_attention"
        sublayers = [(own, f"pre_{own}_layer_norm", "SelfAttention")]
        if stack == "decoder":
            sublayers.append(("encoder_decoder_attention", "pre_cross_attention_layer_norm", "EncDecAttention"))
        for layer in range(2):
            block = f"{stack}.block.{layer}.layer"
            for place, (ours, norm, theirs) in enumerate(sublayers):
                for name, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                    kernel = matrix(stack, f"layers_{layer}", ours, name, "kernel")
                    state[f"{block}.{place}.{theirs}.{letter}.weight"] = kernel.T
                state[f"{block}.{place}.layer_norm.weight"] = matrix(stack, f"layers_{layer}", norm, "scale")
            for name in ("wi_0", "wi_1", "wo"):
                kernel = matrix(stack, f"layers_{layer}", "mlp", name, "kernel")
                state[f"{block}.{len(sublayers)}.DenseReluDense.{name}.weight"] = kernel.T
            norm_scale = matrix(stack, f"layers_{layer}", "pre_mlp_layer_norm", "scale")
            state[f"{block}.{len(sublayers)}.layer_norm.weight"] = norm_scale
    return state
