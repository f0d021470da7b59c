"""A directory of Hugging Face's, read without opening what could hold code.

    config.json                                        the architecture
    model.safetensors                                  the weights; or
    model.safetensors.index.json and its shards        the same in pieces; or
    flax_model.msgpack (or shards with an index)       the same from flax, whose matrices are transposed
    spiece.model                                       the vocabulary

A directory that has only `pytorch_model.bin` holds a pickle. It is refused with the command that turns it into
safetensors; run that where a file that runs code on being opened can do no harm.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mixtura.models.t5.convert import config_from_hf
from mixtura.models.t5.msgpack_file import flat, read_tree
from mixtura.models.t5.stored import ForeignModel, StoredTensor, matched

CONFIG, VOCABULARY = "config.json", "spiece.model"
_SAFETENSORS, _FLAX = "model.safetensors", "flax_model.msgpack"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_directory(path: Path) -> ForeignModel:
    """The model in a directory. Raises ValueError that says what is missing, wrong or refused."""
    said = read_config(path)
    config, stored = config_from_hf(said), tensors_of(path)
    if said.get("tie_word_embeddings", True) and not config.tie_embeddings and "shared.weight" in stored:
        # Transformers 5 says so of every head, and writes one that has the embedding's values only once.
        stored.setdefault("lm_head.weight", stored["shared.weight"])
    vocabulary = path / VOCABULARY
    return ForeignModel(config, matched(stored, config), vocabulary if vocabulary.is_file() else None)


def read_config(path: Path) -> dict[str, Any]:
    """What config.json says."""
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(f"{path} is no model: it has no {CONFIG}")
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no settings, but {type(values).__name__}")
    return values


def weight_files(names: Iterable[str]) -> list[str]:
    """Of the names of a directory's files, those that its weights are read from, the indexes among them.

    >>> weight_files(["config.json", "flax_model.msgpack", "model.safetensors", "pytorch_model.bin"])
    ['model.safetensors']
    >>> weight_files(["model.safetensors.index.json", "model-00001-of-00001.safetensors"])
    ['model.safetensors.index.json', 'model-00001-of-00001.safetensors']
    >>> weight_files(["pytorch_model.bin", "tf_model.h5"])
    []
    """
    present = set(names)
    for stem, suffix in (_SAFETENSORS.split("."), _FLAX.split(".")):
        whole, index = f"{stem}.{suffix}", f"{stem}.{suffix}.index.json"
        if index in present and whole not in present:
            shards = (name for name in present if name.startswith(f"{stem}-") and name.endswith(f".{suffix}"))
            return [index, *sorted(shards)]
        if whole in present:
            return [whole]
    return []


def tensors_of(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a directory by Hugging Face's names."""
    files = weight_files(file.name for file in path.iterdir())
    if not files:
        raise ValueError(_without_weights(path))
    if files[0].endswith(".index.json"):
        files = _shards(path, files[0])
    if files[0].endswith(".safetensors"):
        return {name: tensor for file in files for name, tensor in _of_safetensors(path / file).items()}
    return {name: tensor for file in files for name, tensor in of_flax(read_tree(path / file)).items()}


def _shards(path: Path, index: str) -> list[str]:
    try:
        files = sorted({str(file) for file in json.loads((path / index).read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path / index} is no index of shards: {error}") from None
    suffix = Path(index.removesuffix(".index.json")).suffix
    for file in files:
        if Path(file).name != file or not file.endswith(suffix):
            raise ValueError(f"{path / index} names {file!r}, which is no shard of this directory")
    missing = [file for file in files if not (path / file).is_file()]
    if missing or not files:
        raise ValueError(f"{path / index} names {len(files)} shards, and {', '.join(missing) or 'none'} are not there")
    return files


def _of_safetensors(file: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(file, framework="pt")
        return {
            name: StoredTensor(tuple(opened.get_slice(name).get_shape()), partial(opened.get_tensor, name))
            for name in opened.keys()  # noqa: SIM118  it is no mapping
        }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def of_flax(tree: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """A flax model's tree by Hugging Face's names: its kernels are [inputs, outputs], everything else is as it is.

    `encoder/block/0/layer/0/SelfAttention/q/kernel` is `encoder.block.0.layer.0.SelfAttention.q.weight`, transposed.
    """
    tree = tree.get("params", tree)
    if not isinstance(tree, dict):
        raise ValueError("the flax file has no tree of parameters")
    found = {}
    for path, leaf in flat(tree):
        if not isinstance(leaf, StoredTensor):
            raise ValueError(f"the flax file has {type(leaf).__name__} at {path}, where an array should be")
        *names, kind = path.split("/")
        found[".".join([*names, "weight"])] = leaf.transposed() if kind == "kernel" else leaf
    return found


def _without_weights(path: Path) -> str:
    pickles = [name for name in _PICKLES if (path / name).exists()]
    if not pickles:
        names = ", ".join(sorted(file.name for file in path.iterdir())[:8])
        return f"{path} has no weights: looked for {_SAFETENSORS} and {_FLAX}, found {names}"
    return only_a_pickle(str(path), f"its weights are in {pickles[0]}")


def only_a_pickle(path: str, found: str) -> str:
    """Why a directory is refused, and the command that converts it elsewhere."""
    script = (
        "import glob, sys, torch; from safetensors.torch import save_file; d = sys.argv[1]; "
        "w = {k: v.clone().contiguous() for f in sorted(glob.glob(d + '/pytorch_model*.bin')) "
        "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}; "
        "save_file(w, d + '/model.safetensors', {'format': 'pt'})"
    )
    return (
        f"{path} cannot be used: {found}, a pickle, and nothing is unpickled here. Convert it once, in a place that "
        "holds nothing of value (a container without a network), and use the directory then:\n"
        f"  python -c {shlex.quote(script)} {shlex.quote(path)}"
    )
