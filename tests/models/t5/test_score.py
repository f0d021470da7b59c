"""How likely given answers are: what a teacher-forced forward pass says, and the choice among candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixtura.models.t5 import Ensemble, T5Config, TextToText, choose, decode, score

RandomModel = Callable[..., TextToText]
INPUTS = torch.tensor([[5, 9, 30, 7, 1], [8, 1, 0, 0, 0], [3, 3, 12, 1, 0]])
REFERENCES = torch.tensor([[6, 7, 8, 1], [40, 1, 0, 0], [1, 0, 0, 0]])


def forced(model: TextToText, inputs: Tensor, answer: Tensor) -> float:
    """The log-probability of one answer [length] to one row of inputs [1, length], from the forward pass."""
    before = functional.pad(answer[None, :-1], (1, 0))
    with torch.no_grad():
        if "encoder_input_tokens" in model.features:
            logits = model(inputs, before)[0]
        else:
            row = torch.cat([functional.pad(inputs, (1, 0)), answer[None, :-1]], dim=1)
            prefix = torch.zeros_like(row)
            prefix[:, : inputs.shape[1] + 1] = 1
            more = {"decoder_causal_attention": prefix} if "decoder_causal_attention" in model.features else {}
            logits = model(row, torch.ones_like(row), **more)[0, inputs.shape[1] :]
    return float(logits.log_softmax(-1).gather(1, answer[:, None]).sum())


@pytest.fixture(params=["encoder_decoder", "shared", "prefix_lm", "lm"])
def model(request: pytest.FixtureRequest, config: T5Config, random_model: RandomModel) -> TextToText:
    shape = replace(config, architecture=request.param, num_decoder_layers=config.num_layers)
    return random_model(shape, gain=2.0)


def test_given_answers_are_as_likely_as_a_forward_pass_says(model: TextToText) -> None:
    found = score(model, INPUTS, REFERENCES)
    for row, answer in enumerate(REFERENCES):
        alone = forced(model, INPUTS[row][INPUTS[row] != 0][None], answer[answer != 0])
        assert float(found[row]) == pytest.approx(alone, abs=2e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_references_change_no_answer_and_are_scored_as_alone(model: TextToText, beams: int) -> None:
    plain = decode(model, INPUTS, max_length=3, beams=beams)
    beside = decode(model, INPUTS, max_length=3, beams=beams, references=REFERENCES)
    assert torch.equal(plain.ids, beside.ids)
    assert torch.equal(plain.log_probabilities, beside.log_probabilities)
    assert plain.of_references is None
    torch.testing.assert_close(beside.of_references, score(model, INPUTS, REFERENCES))


def test_an_answer_of_its_own_is_as_likely_as_decoding_said(model: TextToText) -> None:
    answers = decode(model, INPUTS, max_length=6, eos_id=-1)
    rows = (answers.ids != 0).all(1)  # a random model may say padding in the middle
    assert rows.any()
    found = score(model, INPUTS, answers.ids)
    torch.testing.assert_close(found[rows], answers.log_probabilities[rows], atol=1e-4, rtol=1e-4)


def test_the_likeliest_candidate_is_chosen(model: TextToText) -> None:
    candidates = torch.tensor([[17, 1, 0], [4, 9, 1], [22, 1, 0], [17, 18, 1]])
    found = choose(model, INPUTS, candidates, references=REFERENCES)
    for row, tokens in enumerate(INPUTS):
        likelihoods = [forced(model, tokens[tokens != 0][None], one[one != 0]) for one in candidates]
        best = max(range(len(candidates)), key=likelihoods.__getitem__)
        assert torch.equal(found.ids[row], candidates[best])
        assert float(found.log_probabilities[row]) == pytest.approx(likelihoods[best], abs=2e-4)
    torch.testing.assert_close(found.of_references, score(model, INPUTS, REFERENCES))


def test_many_long_answers_are_scored_in_parts_as_at_once(model: TextToText, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(model, INPUTS, REFERENCES)
    monkeypatch.setattr("mixtura.models.t5.generate._LOGITS_AT_ONCE", 1)
    torch.testing.assert_close(score(model, INPUTS, REFERENCES), whole)


def test_inputs_may_be_empty_where_a_language_model_begins_alone(config: T5Config, random_model: RandomModel) -> None:
    model = random_model(replace(config, architecture="lm", num_decoder_layers=config.num_layers), gain=2.0)
    found = score(model, torch.zeros(3, 1, dtype=torch.int64), REFERENCES)
    for row, answer in enumerate(REFERENCES):
        own = answer[answer != 0]
        with torch.no_grad():
            logits = model(functional.pad(own[None, :-1], (1, 0)), torch.ones(1, len(own), dtype=torch.int32))[0]
        assert float(found[row]) == pytest.approx(float(logits.log_softmax(-1).gather(1, own[:, None]).sum()), abs=2e-4)


def test_an_ensemble_scores_by_the_mean_of_logits(config: T5Config, random_model: RandomModel) -> None:
    models = [random_model(config, seed=seed, gain=2.0) for seed in range(2)]
    found = score(Ensemble(models), INPUTS[:1], REFERENCES[:1])
    before = functional.pad(REFERENCES[:1, :-1], (1, 0))
    with torch.no_grad():
        mean = torch.stack([model(INPUTS[:1], before) for model in models]).mean(0)
    expected = mean.log_softmax(-1).gather(-1, REFERENCES[:1, :, None]).sum()
    assert float(found[0]) == pytest.approx(float(expected), abs=2e-4)
