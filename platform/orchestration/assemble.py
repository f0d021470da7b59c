"""From settings to the parts of a run: the model, its checkpoint format, the optimizer, the loop's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mixtura.platform.config import Config, ModelSection
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.training.checkpoint import CheckpointFormat
from mixtura.platform.training.optimizer import OptimizerSettings
from mixtura.platform.training.schedule import Schedule, create_schedule

if TYPE_CHECKING:
    from mixtura.models.t5 import T5, T5Config

_SHAPE = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers")


def model_config(section: ModelSection, embedding_rows: int) -> T5Config:
    """The architecture that a recipe describes, for a vocabulary of so many rows."""
    from mixtura.models.t5 import SIZES, T5Config

    given = {name: value for name, value in section if name not in {"size", "attention"} and value is not None}
    if "num_layers" in given:
        given.setdefault("num_decoder_layers", given["num_layers"])
    try:
        if section.size is not None:
            if section.size not in SIZES:
                raise UnknownNameError("model size", section.size, SIZES)
            return replace(SIZES[section.size], vocab_size=embedding_rows, **given)
        missing = [name for name in _SHAPE if name not in given]
        if missing:
            raise ConfigError(f"model: without a size, {', '.join(missing)} must be given; or set model.size=small")
        return T5Config(vocab_size=embedding_rows, **given)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def build_model(config: T5Config, seed: int, attention: Literal["sdpa", "eager"] = "sdpa") -> T5:
    """A T5 with its first weights, which depend on the seed and the parameters' names alone."""
    from mixtura.models.t5 import T5, initialize

    model = T5(config, attention=attention)
    initialize(model, seed)
    return model


def hf_names(model: T5) -> dict[str, str]:
    """Our parameter names to Hugging Face's."""
    from mixtura.models.t5 import hf_name

    return {name: hf_name(name) for name, _ in model.named_parameters()}


def checkpoint_format(model: T5, vocabulary: Vocabulary) -> CheckpointFormat:
    """What makes a checkpoint of this model a Hugging Face T5."""
    from mixtura.models.t5 import hf_config
    from mixtura.platform.data.vocabulary import tokenizer_config

    return CheckpointFormat(
        hf_config=hf_config(model.config),
        hf_names=hf_names(model),
        vocabulary_files=(vocabulary.path,),
        json_files={"tokenizer_config.json": tokenizer_config(vocabulary)},
    )


def optimizer_settings(config: Config) -> OptimizerSettings:
    """The optimizer of a recipe."""
    section = config.optimizer
    return OptimizerSettings(
        name=section.name, weight_decay=section.weight_decay, clip_gradient_norm=section.clip_gradient_norm
    )


def schedule(config: Config) -> Schedule:
    """The learning rate of a recipe as a function of the step."""
    section = config.schedule
    return create_schedule(section.name, warmup_steps=section.warmup_steps, factor=section.factor)


def load_model(path: Path, attention: Literal["sdpa", "eager"] = "sdpa") -> tuple[T5, Vocabulary]:
    """The model and the vocabulary of a checkpoint, in fp32, ready to answer."""
    import json

    from mixtura.models.t5 import T5, config_from_hf
    from mixtura.platform.errors import CheckpointError
    from mixtura.platform.training.checkpoint import read_weights

    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no config.json")
    try:
        model = T5(config_from_hf(json.loads(config_file.read_text())), attention=attention)
    except ValueError as error:
        raise CheckpointError(f"{config_file} describes no T5 that can be read: {error}") from None
    model.load_state_dict(read_weights(path, hf_names(model)))
    model.eval()
    return model, Vocabulary(path / "spiece.model")
