"""From settings to the parts of a run: the model, its checkpoint format, the optimizer, the loop's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixtura.platform.config import Config, ModelSection
from mixtura.platform.data.vocabulary import EOS_ID, PAD_ID, ROWS_MULTIPLE, Vocabulary
from mixtura.platform.errors import CheckpointError, ConfigError, UnknownNameError
from mixtura.platform.training.checkpoint import CheckpointFormat
from mixtura.platform.training.optimizer import OptimizerSettings
from mixtura.platform.training.schedule import Schedule, create_schedule

if TYPE_CHECKING:
    from torch import Tensor

    from mixtura.models.t5 import T5, DecoderOnlyT5, T5Config, TextToText
    from mixtura.models.t5.stored import ForeignModel

_SHAPE = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers")
_NOT_OF_T5 = {"start", "resolved", "size", "embedding_rows", "attention", "compile", "activation_checkpointing"}


def model_config(section: ModelSection, embedding_rows: int) -> T5Config:
    """The architecture that a recipe describes, for a vocabulary of so many rows.

    A recipe that begins with another model's weights has that model's numbers in it: see `starting_model`.
    """
    from mixtura.models.t5 import SIZES, T5Config

    given = {name: value for name, value in section if name not in _NOT_OF_T5 and value is not None}
    rows = section.embedding_rows or embedding_rows
    if section.start is None and rows <= embedding_rows - ROWS_MULTIPLE:
        raise ConfigError(f"model.embedding_rows is {rows}, but the vocabulary needs {embedding_rows}: leave it out")
    if "num_layers" in given:
        given.setdefault("num_decoder_layers", given["num_layers"])
    try:
        if section.size is not None:
            if section.size not in SIZES:
                raise UnknownNameError("model size", section.size, SIZES)
            return replace(SIZES[section.size], vocab_size=rows, **given)
        missing = [name for name in _SHAPE if name not in given]
        if missing:
            raise ConfigError(
                f"model: without a size, {', '.join(missing)} must be given; or set model.size=small, or model.from"
            )
        return T5Config(vocab_size=rows, **given)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def build_model(config: T5Config, seed: int, section: ModelSection) -> TextToText:
    """A model with its first weights, which depend on the seed and the parameters' names alone, computed as a recipe's
    model section says."""
    import torch

    from mixtura.models.t5 import create_model, initialize

    if section.attention == "flex" and not torch.cuda.is_available():
        raise ConfigError("model.attention is flex, which needs a GPU to train on, and there is none here: use sdpa")
    model = create_model(
        config,
        attention=section.attention,
        compile=section.compile,
        activation_checkpointing=section.activation_checkpointing,
    )
    initialize(model, seed)
    return model


def hf_names(model: TextToText) -> dict[str, tuple[str, ...]]:
    """Our parameter names to those in the files."""
    from mixtura.models.t5.convert import hf_names as names_of

    return {name: names_of(name, model.config) for name, _ in model.named_parameters()}


def checkpoint_format(config: T5Config, vocabulary: Vocabulary | None) -> CheckpointFormat:
    """What makes a checkpoint of such a model one that others can read."""
    from mixtura.models.t5 import hf_config
    from mixtura.models.t5.convert import hf_names as names_of
    from mixtura.models.t5.convert import is_hf_model
    from mixtura.models.t5.stored import shapes_of
    from mixtura.platform.data.vocabulary import tokenizer_config

    documents: dict[str, dict[str, Any]] = {}
    if is_hf_model(config):
        documents["generation_config.json"] = {
            "decoder_start_token_id": PAD_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        }
    if vocabulary is not None:
        documents["tokenizer_config.json"] = tokenizer_config(vocabulary)
    return CheckpointFormat(
        hf_config=hf_config(config),
        hf_names={name: names_of(name, config) for name in shapes_of(config)},
        vocabulary_files={} if vocabulary is None else {"spiece.model": vocabulary.path},
        json_files=documents,
    )


def optimizer_settings(config: Config) -> OptimizerSettings:
    """The optimizer of a recipe."""
    section = config.optimizer
    return OptimizerSettings(
        name=section.name,
        weight_decay=section.weight_decay,
        clip_gradient_norm=section.clip_gradient_norm,
        beta1=section.beta1,
        beta2=section.beta2,
        epsilon=section.epsilon,
    )


def schedule(config: Config) -> Schedule:
    """The learning rate of a recipe as a function of the step."""
    section = config.schedule
    return create_schedule(
        section.name,
        warmup_steps=section.warmup_steps,
        factor=section.factor,
        steps=section.steps,
        final_factor=section.final_factor,
        cut=section.cut,
        ratio=section.ratio,
    )


def frozen_at(model: TextToText, unfreeze_every: int | None) -> Callable[[int], frozenset[str]]:
    """What gradual unfreezing leaves as it is at a step, counted from 0 (section 3.5.1): in the first episode of
    `unfreeze_every` steps all layers but the top one of every stack, in the next one layer less, ..."""
    if unfreeze_every is None:
        return lambda _: frozenset()
    _, *layers = model.unfreezing_order

    def frozen(step: int) -> frozenset[str]:
        return frozenset().union(*layers[1 + step // unfreeze_every :])

    return frozen


def load_model(path: Path, attention: Literal["sdpa", "eager"] = "sdpa") -> tuple[T5 | DecoderOnlyT5, Vocabulary]:
    """The model and the vocabulary of a folder, one of ours or any Hugging Face T5, in fp32, ready to answer."""
    from mixtura.models.t5 import create_model

    found = read_model(path)
    vocabulary = _vocabulary_of(path, found)
    model = create_model(found.config, attention=attention)
    take_weights(model, found.weights)
    model.eval()
    return model, Vocabulary(vocabulary)


def vocabulary_in(path: Path) -> Path:
    """The SentencePiece model of a model's folder."""
    return _vocabulary_of(path, read_model(path))


def _vocabulary_of(path: Path, found: ForeignModel) -> Path:
    if found.vocabulary is None:
        raise CheckpointError(
            f"{path} has no vocabulary (spiece.model): put the one it was trained with there, or import it with "
            "`mixtura checkpoints import SOURCE DIR --vocabulary FILE`"
        )
    return found.vocabulary


def read_model(path: Path) -> ForeignModel:
    """A model in a folder of ours, of Hugging Face's or of t5x, or in a file of t5x; its weights are not read yet."""
    from mixtura.models.t5.hugging_face import CONFIG, read_directory
    from mixtura.models.t5.t5x import CHECKPOINT, is_t5x_checkpoint, read_t5x

    inside = path / CHECKPOINT
    of_t5x = path if not path.is_dir() or (path / CONFIG).exists() or not inside.exists() else inside
    try:
        if is_t5x_checkpoint(of_t5x):
            return read_t5x(of_t5x)
        if path.is_dir():
            return read_directory(path)
    except ValueError as error:
        raise CheckpointError(f"{path} holds no T5 that can be read: {error}") from error
    raise CheckpointError(f"{path} is no model: give a folder with config.json, or a checkpoint file of t5x")


def take_weights(model: TextToText, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy weights into a model, one after the other; returns the parameters that have none and stay as they are."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in weights:
            parameters[name].copy_(weights[name])
    return sorted(parameters.keys() - set(weights))
