"""Several models as one: the mean of their logits at every token, or of their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixtura.models.t5 import (
    T5,
    Ensemble,
    T5Config,
    average_weights,
    beam_decode,
    create_model,
    greedy_decode,
    initialize,
)

RandomModel = Callable[..., T5]


@pytest.fixture
def models(config: T5Config, random_model: RandomModel) -> list[T5]:
    """Three, of which the last is deeper."""
    shapes = [config, config, replace(config, num_decoder_layers=config.num_decoder_layers + 1)]
    return [random_model(shape, seed=seed, gain=2.0) for seed, shape in enumerate(shapes)]


def test_each_token_is_the_likeliest_by_the_mean_of_logits(
    models: list[T5], padded_rows: tuple[Tensor, Tensor]
) -> None:
    inputs = padded_rows[0]
    answers = greedy_decode(Ensemble(models), inputs, max_length=9, eos_id=-1)
    with torch.no_grad():
        before = functional.pad(answers[:, :-1], (1, 0))
        mean = torch.stack([model(inputs, before) for model in models]).mean(0)
    assert torch.equal(answers, mean.argmax(-1))
    assert all(not torch.equal(answers, greedy_decode(model, inputs, max_length=9, eos_id=-1)) for model in models)


def test_an_ensemble_of_one_model_is_that_model(models: list[T5], padded_rows: tuple[Tensor, Tensor]) -> None:
    inputs = padded_rows[0]
    for beams in (1, 3):
        alone = beam_decode(models[0], inputs, max_length=7, beams=beams)
        assert torch.equal(beam_decode(Ensemble(models[:1] * 2), inputs, max_length=7, beams=beams), alone)


def test_beams_of_an_ensemble_do_not_depend_on_company(models: list[T5], padded_rows: tuple[Tensor, Tensor]) -> None:
    inputs, ensemble = padded_rows[0], Ensemble(models)
    together = beam_decode(ensemble, inputs, max_length=8, beams=3)
    for row, tokens in enumerate(inputs):
        alone = beam_decode(ensemble, tokens[tokens != 0][None], max_length=8, beams=3)[0]
        assert functional.pad(alone, (0, together.shape[1] - len(alone))).tolist() == together[row].tolist()


def test_other_architectures_may_be_in_one_ensemble(config: T5Config, padded_rows: tuple[Tensor, Tensor]) -> None:
    models = [create_model(config), create_model(replace(config, architecture="lm"))]
    for model in models:
        initialize(model, 0)
    inputs, segments = padded_rows[0], (padded_rows[0] != 0).int()
    with torch.no_grad():
        _, logits = Ensemble(models).start_decoding(inputs, segments, 1)
        expected = [model.start_decoding(inputs, segments, 1)[1] for model in models]
    torch.testing.assert_close(logits, (expected[0] + expected[1]) / 2)


def test_models_of_other_vocabularies_are_no_ensemble(config: T5Config) -> None:
    with pytest.raises(ValueError, match=r"these have \[64, 128\] rows"):
        Ensemble([create_model(config), create_model(replace(config, vocab_size=128))])


def test_weights_are_averaged(models: list[T5]) -> None:
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models[:2]]
    average_weights(models[0], [models[1]])
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(value, (before[0][name] + before[1][name]) / 2)
    assert all(torch.equal(value, before[1][name]) for name, value in models[1].state_dict().items())
    with pytest.raises(ValueError, match="of one shape"):
        average_weights(models[0], [models[2]])
