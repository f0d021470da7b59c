"""Models as folders of their own: checkpoints for others, and models of others for here.

    DIR/config.json  generation_config.json
        model.safetensors (or shards with an index), fp32
        spiece.model  tokenizer_config.json

Such a folder is what a checkpoint is, without what a run needs to go on: whatever takes a model here takes it, and so
does `from_pretrained`. It is written beside its place and then gets its name, so that it is whole or not there.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.errors import RequestError
from mixtura.platform.files import disk_full_is_an_answer, fsync_directory, xxh3_128
from mixtura.platform.orchestration.assemble import checkpoint_format, read_model
from mixtura.platform.orchestration.select import model_path
from mixtura.platform.orchestration.starting_model import chosen_vocabulary
from mixtura.platform.training.checkpoint_writer import write_small_files, write_tensor_files
from mixtura.platform.training.tensor_files import TensorEntry
from mixtura.platform.workspace import Workspace

if TYPE_CHECKING:
    from mixtura.models.t5 import T5Config
    from mixtura.models.t5.stored import ForeignModel, StoredWeights
    from mixtura.platform.training.checkpoint import CheckpointFormat


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder that was written, or was there already."""

    path: Path
    config: T5Config
    parameters: int
    was_there: bool

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {file.name: file.stat().st_size for file in sorted(self.path.iterdir())}


def export_checkpoint(space: Workspace, checkpoint: str, directory: Path) -> ModelFolder:
    """Write what transformers needs of a checkpoint, and nothing else.

    Raises RequestError where transformers has no class for the model, or where `directory` holds something else.
    """
    from mixtura.models.t5.convert import is_hf_model

    found = read_model(model_path(space, checkpoint))
    if not is_hf_model(found.config):
        kind = "adapters" if found.config.adapter_size is not None else "a single stack"
        raise RequestError(f"{checkpoint} is a model with {kind}, for which transformers has no class")
    return _written(checkpoint, found, directory, None)


def import_model(space: Workspace, source: str, directory: Path, vocabulary: Path | None) -> ModelFolder:
    """Write a model of others as a folder of ours, with the vocabulary that it was trained with.

    Raises RequestError where the vocabulary is missing or another one, or where `directory` holds something else.
    """
    return _written(source, read_model(model_path(space, source)), directory, vocabulary)


def _written(asked: str, found: ForeignModel, directory: Path, given: Path | None) -> ModelFolder:
    from mixtura.models.t5.stored import shapes_of

    vocabulary = chosen_vocabulary(asked, found.vocabulary, found.config.vocab_size, given, "--vocabulary")
    form, shapes = checkpoint_format(found.config, Vocabulary(vocabulary)), shapes_of(found.config)
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"{directory} is a file: give a folder that is not there yet")
    directory = directory.absolute()
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_full_is_an_answer(directory.parent, "writing a model"):
            partial.mkdir(parents=True)
            write_small_files(partial, form, {})
            was_there = directory.is_dir() and any(directory.iterdir())
            if was_there:
                _refuse_others(partial, directory)
            write_tensor_files(partial, "model", list(_entries(found.weights, shapes, form)), form.max_shard_bytes)
            fsync_directory(partial)
        if was_there:
            _refuse_others(partial, directory)
        else:
            partial.replace(directory)
            fsync_directory(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ModelFolder(directory, found.config, sum(map(math.prod, shapes.values())), was_there)


def _entries(
    weights: StoredWeights, shapes: dict[str, tuple[int, ...]], form: CheckpointFormat
) -> Iterator[TensorEntry]:
    for name, shape in shapes.items():
        read = functools.partial(weights.__getitem__, name)
        yield from (TensorEntry(theirs, shape, torch.float32, read) for theirs in form.hf_names[name])


def _refuse_others(written: Path, directory: Path) -> None:
    """Raise RequestError where a folder that is there lacks a file that was written, or has another one of its name."""
    for file in written.iterdir():
        there = directory / file.name
        if not there.is_file() or xxh3_128(there) != xxh3_128(file):
            raise RequestError(
                f"{directory} is there already, and its {file.name} is not what would be written: remove the "
                "folder, or give another one"
            )
