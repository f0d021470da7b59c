"""Directories that transformers wrote, read without it; what it refuses or computes otherwise would show here."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixtura.models.t5 import T5, create_model
from mixtura.models.t5.hugging_face import read_directory, weight_files

transformers = pytest.importorskip("transformers")
msgpack = pytest.importorskip("msgpack")

SHAPE = dict(vocab_size=64, d_model=16, d_kv=6, d_ff=24, num_heads=3, num_layers=3, num_decoder_layers=2)  # noqa: C408
GATED = {**SHAPE, "feed_forward_proj": "gated-gelu"}

RELEASED = {
    # What config.json of the released models says, which were saved by versions before 5.
    "t5": {"tie_word_embeddings": None, "scale_decoder_outputs": None},
    "t5 1.1": {"tie_word_embeddings": False, "scale_decoder_outputs": None},
    "mt5": {"tie_word_embeddings": False, "scale_decoder_outputs": None},
}

Make = Callable[..., Any]


def made(kind: str) -> Any:
    """A model of transformers with random weights: norm scales and biases too, and a head of its own unless tied."""
    family = "MT5" if kind == "mt5" else "T5"
    config = getattr(transformers, f"{family}Config")(
        **(SHAPE if kind == "t5" else GATED), tie_word_embeddings=kind == "t5", decoder_start_token_id=0
    )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    if kind in RELEASED and kind != "t5":
        model.lm_head.weight = torch.nn.Parameter(torch.randn(64, 16))
    return model


def saved(model: Any, folder: Path, kind: str, **options: Any) -> Path:
    """The directory of a model; of one that was released, with the words of its time in config.json."""
    model.save_pretrained(folder, **options)
    for key, value in RELEASED.get(kind, {}).items():
        change_config(folder, key, value)
    return folder


def change_config(folder: Path, key: str, value: Any) -> None:
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), key: value}
    file.write_text(json.dumps({name: one for name, one in values.items() if one is not None}))


def read(folder: Path) -> T5:
    found = read_directory(folder)
    model = create_model(found.config)
    model.load_state_dict(dict(found.weights))
    assert isinstance(model, T5)
    return model


def assert_same_logits(ours: T5, theirs: Any) -> None:
    inputs, targets = torch.randint(2, 64, (3, 40)), torch.randint(2, 64, (3, 30))
    expected = theirs(input_ids=inputs, decoder_input_ids=targets).logits
    torch.testing.assert_close(ours(inputs, targets), expected, rtol=1e-5, atol=1e-5)


def flax_tree(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What flax would save for a state of transformers: its kernels are [inputs, outputs], the rest is the same."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, last, _ = name.split(".")
        leaf = (
            "weight" if "norm" in last else "embedding" if last in ("shared", "relative_attention_bias") else "kernel"
        )
        node = tree
        for part in (*path, last):
            node = node.setdefault(part, {})
        node[leaf] = packed(tensor.T if leaf == "kernel" else tensor)
    return tree


def packed(tensor: torch.Tensor) -> Any:
    name, data = str(tensor.dtype).removeprefix("torch."), tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return msgpack.ExtType(1, msgpack.packb((list(tensor.shape), name, data)))


def as_flax(folder: Path) -> None:
    """Replace a directory's safetensors by flax's file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "flax_model.msgpack").write_bytes(msgpack.packb(flax_tree(tensors)))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("kind", [*RELEASED, "made untied by transformers 5"])
@pytest.mark.parametrize("form", ["safetensors", "shards", "flax"])
def test_a_model_of_transformers_computes_the_same_here(kind: str, form: str, tmp_path: Path) -> None:
    theirs = made(kind)
    saved(theirs, tmp_path, kind, **({"max_shard_size": "5KB"} if form == "shards" else {}))
    if form == "flax":
        as_flax(tmp_path)
    files = weight_files(file.name for file in tmp_path.iterdir())
    assert (len(files) > 3) == (form == "shards")
    assert_same_logits(read(tmp_path), theirs)


def test_a_released_model_computes_the_same_as_transformers_makes_of_its_directory(tmp_path: Path) -> None:
    """As in a directory from the hub, in bfloat16, where all copies of the embedding are written."""
    theirs = made("t5 1.1").bfloat16()
    saved(theirs, tmp_path, "t5 1.1")
    tensors = load_file(tmp_path / "model.safetensors")
    copies = {f"{stack}.embed_tokens.weight": tensors["shared.weight"].clone() for stack in ("encoder", "decoder")}
    save_file({**tensors, **copies}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_logits(read(tmp_path), loaded)


def test_flax_in_shards_and_in_bfloat16_is_read(tmp_path: Path) -> None:
    theirs = made("t5")
    saved(theirs, tmp_path, "t5")
    tensors = {name: one.bfloat16() for name, one in load_file(tmp_path / "model.safetensors").items()}
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"flax_model-00001-of-00002.msgpack": names[:20], "flax_model-00002-of-00002.msgpack": names[20:]}
    for file, own in shards.items():
        (tmp_path / file).write_bytes(msgpack.packb(flax_tree({name: tensors[name] for name in own})))
    index = {name.replace(".", "/"): file for file, own in shards.items() for name in own}
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    theirs.load_state_dict({name: one.float() for name, one in tensors.items()}, strict=False)
    assert_same_logits(read(tmp_path), theirs)


def test_the_vocabulary_is_found_beside_the_weights(tmp_path: Path) -> None:
    saved(made("t5"), tmp_path, "t5")
    assert read_directory(tmp_path).vocabulary is None
    (tmp_path / "spiece.model").write_bytes(b"")
    assert read_directory(tmp_path).vocabulary == tmp_path / "spiece.model"


class Opened:
    """Would leave a mark if it were unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_is_never_opened_and_the_command_in_its_refusal_converts_it(tmp_path: Path) -> None:
    theirs = made("t5")
    folder = saved(theirs, tmp_path / "it's a model", "t5")
    (folder / "model.safetensors").unlink()
    torch.save(Opened(tmp_path / "mark"), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"its weights are in pytorch_model\.bin, a pickle") as refused:
        read_directory(folder)
    assert not (tmp_path / "mark").exists()

    state = theirs.state_dict()  # its tied tensors share their memory, as those of a real file do
    torch.save(state, folder / "pytorch_model.bin")
    program, option, script, path = shlex.split(str(refused.value).splitlines()[-1])
    assert (program, option, path) == ("python", "-c", str(folder))
    subprocess.run([sys.executable, option, script, path], check=True, timeout=120)
    assert_same_logits(read(folder), theirs)


def test_safetensors_are_taken_where_a_pickle_lies_beside_them(tmp_path: Path) -> None:
    theirs = made("t5")
    saved(theirs, tmp_path, "t5")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04not opened")
    assert_same_logits(read(tmp_path), theirs)


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        del tensors[name]
        save_file(tensors, file, {"format": "pt"})

    return change


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({**load_file(file), name: tensor}, file, {"format": "pt"})

    return change


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def indexed(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        values = {"weight_map": {str(number): name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no model: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no settings, but list"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no weights: looked for model.safetensors"),
        (without("lm_head.weight"), r"1 missing \(head.weight\)"),
        (
            without("encoder.block.0.layer.0.layer_norm.weight"),
            r"1 missing \(encoder.layers.0.self_attention_norm.scale\)",
        ),
        (with_tensor("qa_outputs.weight", torch.zeros(2, 16)), "'qa_outputs.weight' is no parameter"),
        (with_tensor("shared.weight", torch.zeros(65, 16)), r"shared.weight \[65, 16\] instead of \[64, 16\]"),
        (with_tensor("encoder.embed_tokens.weight", torch.zeros(64, 16)), "copies of 'shared.weight' differ"),
        (with_tensor("encoder.block.7.layer.0.layer_norm.weight", torch.zeros(16)), "1 not of this model"),
        (cut_short, "model.safetensors cannot be read"),
        (indexed(), "names 0 shards"),
        (indexed("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors are not there"),
        (indexed("../model.safetensors"), "is no shard of this directory"),
        (indexed("pytorch_model.bin"), "is no shard of this directory"),
        (lambda folder: change_config(folder, "num_layers", 2), "not of this model"),
        (lambda folder: change_config(folder, "model_type", "umt5"), "model_type = 'umt5'"),
    ],
)
def test_a_directory_that_is_not_what_it_says_is_refused(
    change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    saved(made("t5 1.1"), tmp_path, "t5 1.1")
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_directory(tmp_path)


def test_quantised_weights_are_refused_by_name(tmp_path: Path) -> None:
    saved(made("t5"), tmp_path, "t5")
    name = "decoder.final_layer_norm.weight"
    with_tensor(name, torch.zeros(16, dtype=torch.int8))(tmp_path)
    with pytest.raises(ValueError, match=r"'decoder.final_norm.scale' are torch.int8: quantised models"):
        read(tmp_path)
