"""From settings to the parts of a run."""

from __future__ import annotations

import pytest

from mixtura.models.t5 import T5Config, create_model
from mixtura.platform.config import Config, ModelSection, OptimizerSection, ScheduleSection
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.assemble import build_model, frozen_at, optimizer_settings, schedule
from mixtura.platform.training.optimizer import OptimizerSettings

TOY = T5Config(64, 8, 4, 16, 2, num_layers=3, num_decoder_layers=3)


def layers_in(names: frozenset[str]) -> set[str]:
    return {".".join(name.split(".")[:3]) for name in names}


def test_one_layer_more_is_trained_with_every_episode() -> None:
    frozen = frozen_at(create_model(TOY), unfreeze_every=10)
    assert (
        layers_in(frozen(0))
        == layers_in(frozen(9))
        == {f"{stack}.layers.{layer}" for stack in ("encoder", "decoder") for layer in (0, 1)}
    )
    assert layers_in(frozen(10)) == {"encoder.layers.0", "decoder.layers.0"}
    assert frozen(20) == frozen(1000) == frozenset()


def test_without_unfreezing_all_is_trained_at_once() -> None:
    assert frozen_at(create_model(TOY), unfreeze_every=None)(0) == frozenset()


def test_an_attention_that_needs_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"model\.attention is flex, which needs a GPU .* use sdpa"):
        build_model(TOY, 0, ModelSection(attention="flex"))


def test_every_number_of_an_optimizer_and_of_a_schedule_arrives() -> None:
    numbers = {"weight_decay": 0.1, "clip_gradient_norm": 2.0, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}
    config = Config.model_construct(
        optimizer=OptimizerSection(name="adamw_rms", **numbers),
        schedule=ScheduleSection(name="cosine", warmup_steps=2, factor=0.3, steps=10, final_factor=0.1),
    )
    assert optimizer_settings(config) == OptimizerSettings("adamw_rms", **numbers)
    assert [schedule(config)(step) for step in (0, 6, 10)] == pytest.approx([0.15, 0.2, 0.1])
    triangle = ScheduleSection(name="slanted_triangular", factor=0.1, steps=10, cut=0.3, ratio=10.0)
    config = Config.model_construct(schedule=triangle)
    assert [schedule(config)(step) for step in (0, 3, 10)] == pytest.approx([0.01, 0.1, 0.01])
