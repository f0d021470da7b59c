"""What one worker of a run keeps in memory, part by part, before there is a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mixtura.platform.config import Config
from mixtura.platform.data.features import row_lengths
from mixtura.platform.data.vocabulary import ROWS_MULTIPLE, Vocabulary
from mixtura.platform.orchestration import assemble
from mixtura.platform.training.deepspeed_settings import (
    StageAndPrecision,
    deepspeed_settings,
    effective_stage,
)
from mixtura.platform.training.footprint import Weights, state_bytes

if TYPE_CHECKING:
    from mixtura.models.t5 import T5Config

_WIDTH = {"fp32": 4, "bf16": 2}
STAGES = (0, 1, 2, 3)
_LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's own number, where a recipe passes none through."""
_OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on one worker."""

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    """Kept by the forward pass of a microbatch for its backward pass."""
    bias: int
    """Position bias and mask of the attentions, and what their gradients take."""
    logits: int
    """The chunk of logits that the loss has at a time, and the gradients that it makes of it."""
    working: int
    """What the backward pass makes and drops again: an estimate."""
    update: int
    """What the optimizer's update makes and drops again, when activations are gone."""

    @property
    def total(self) -> int:
        """The most at any time of a step."""
        # The loss is over when the first layer's backward pass begins.
        backward = self.buffers + self.activations + self.bias + max(self.logits, self.working)
        return self.parameters + self.gradients + self.optimizer + max(backward, self.update)


@dataclass(frozen=True)
class Setting:
    """The settings that decide what fits."""

    stage: int
    workers: int
    microbatch: int
    activation_checkpointing: bool
    offload: bool = False
    """Whether the optimizer's part is in the machine's own memory."""


@dataclass(frozen=True)
class Planned:
    """A run as far as memory is concerned: its model, its rows, how it computes."""

    config: Config
    model: T5Config
    encoder_length: int
    decoder_length: int

    @classmethod
    def of(cls, config: Config) -> Planned:
        """What a recipe means, without reading any data."""
        encoder, decoder = lengths(config)
        return cls(config, assemble.model_config(config.model, embedding_rows(config)), encoder, decoder)

    @property
    def weights(self) -> Weights:
        """The shapes of the model's parameters."""
        return weights_of(self.model)

    def setting(self, workers: int) -> Setting:
        """What the recipe says."""
        training = self.config.training
        return Setting(
            stage=effective_stage(training.zero_stage, training.precision).stage,
            workers=workers,
            microbatch=min(training.microbatch_size, rows_of_worker(self.config, workers)),
            activation_checkpointing=self.config.model.activation_checkpointing,
            offload="offload_optimizer" in training.deepspeed.get("zero_optimization", {}),
        )

    def memory(self, setting: Setting, *, on_gpu: bool) -> Memory:
        """One worker's memory with a setting."""
        from mixtura.models.t5.footprint import Microbatch, kept_bytes

        training, optimizer = self.config.training, self.config.optimizer
        weights = self.weights
        zero = deepspeed_settings(
            StageAndPrecision(setting.stage, training.precision),
            num_parameters=weights.trained_elements + weights.frozen_elements,
            passthrough=training.deepspeed,
        )["zero_optimization"]
        states = state_bytes(
            weights,
            stage=setting.stage,
            workers=setting.workers,
            precision=training.precision,
            optimizer=optimizer.name,
            accumulating=setting.microbatch < rows_of_worker(self.config, setting.workers),
            offload=setting.offload,
            bucket_elements=int(zero["reduce_bucket_size"]),
            live_elements=int(zero.get("stage3_max_live_parameters", _LIVE_ELEMENTS)),
        )
        kept = kept_bytes(
            self.model,
            Microbatch(setting.microbatch, self.encoder_length, self.decoder_length),
            width=_WIDTH[training.precision],
            attention=self.config.model.attention,
            activation_checkpointing=setting.activation_checkpointing,
            on_gpu=on_gpu,
        )
        return Memory(
            parameters=states.parameters,
            gradients=states.gradients,
            optimizer=states.optimizer,
            buffers=states.buffers,
            activations=kept.activations,
            bias=kept.bias,
            logits=kept.head,
            working=kept.working,
            update=states.update,
        )


def embedding_rows(config: Config) -> int:
    """Rows of the embedding: of the vocabulary that a recipe names, or of the one that would be trained."""
    path = config.vocabulary.path
    if path is not None and Path(path).is_file():
        return Vocabulary(path).embedding_rows
    return -(-config.vocabulary.size // ROWS_MULTIPLE) * ROWS_MULTIPLE


def lengths(config: Config) -> tuple[int, int]:
    """Positions of a row, of encoder and decoder; a single stack has them all in the second."""
    data = config.data
    decoder = data.decoder_row if isinstance(data.decoder_row, int) else data.targets_length
    found = row_lengths(config.features, data.inputs_length, decoder)
    return found.get("encoder", 0), found["decoder"]


@lru_cache(maxsize=8)
def weights_of(model: T5Config) -> Weights:
    """The shapes of a model's parameters, from a model without memory."""
    import torch

    from mixtura.models.t5 import create_model

    with torch.device("meta"):
        parameters = dict(create_model(model).named_parameters())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    trained = {name for name, value in parameters.items() if value.requires_grad}
    return Weights(
        {name: shape for name, shape in shapes.items() if name in trained},
        {name: shape for name, shape in shapes.items() if name not in trained},
    )


def rows_of_worker(config: Config, workers: int) -> int:
    """Rows of a step on the worker that has most of them: whole lanes."""
    rows, lanes = config.training.global_batch_size, lanes_for(config, workers)
    return math.ceil(lanes / workers) * (rows // lanes)


def lanes_for(config: Config, workers: int) -> int:
    """The recipe's lanes, or the fewest that as many workers can share."""
    rows = config.training.global_batch_size
    if workers <= config.data.lanes:
        return config.data.lanes
    return next((lanes for lanes in range(workers, rows + 1) if rows % lanes == 0), rows)


@dataclass(frozen=True)
class Saving:
    """A change of settings, and how many bytes less a worker has at the same moment of a step."""

    override: str
    saved: int
    remark: str
    """What it costs."""


def savings(config: Config, workers: int, *, on_gpu: bool) -> list[Saving]:
    """What would make room on each worker: a smaller microbatch, activation checkpointing, ZeRO, offloading.

    Only what saves anything is listed, the largest saving first.
    """
    planned = Planned.of(config)
    now = planned.setting(workers)
    before = planned.memory(now, on_gpu=on_gpu).total
    half = max(1, now.microbatch // 2)
    choices = [
        (f"training.microbatch_size={half}", replace(now, microbatch=half), "the same result"),
        (
            "model.activation_checkpointing=true",
            replace(now, activation_checkpointing=True),
            "the same result, a third more work",
        ),
        *(
            (f"training.zero_stage={stage}", replace(now, stage=stage), _COST_OF_STAGE[stage])
            for stage in STAGES
            if stage > now.stage
        ),
    ]
    if on_gpu:
        choices.append(
            (
                "training.deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}",
                replace(now, stage=max(now.stage, 1), offload=True),
                "the optimizer's part in the machine's own memory, updated by its CPUs",
            )
        )
    found = [
        Saving(override, before - planned.memory(setting, on_gpu=on_gpu).total, remark)
        for override, setting, remark in choices
    ]
    return sorted((one for one in found if one.saved > 0), key=lambda one: -one.saved)


_COST_OF_STAGE = {
    1: "the same result and traffic",
    2: "the same result and traffic",
    3: "the same result, half more traffic: weights are gathered layer by layer",
}
