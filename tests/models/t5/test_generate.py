from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixtura.models.t5 import T5, T5Config, beam_decode, decode, greedy_decode, initialize

RandomModel = Callable[..., T5]


def test_each_token_is_the_most_likely_one_and_nothing_follows_the_end(
    config: T5Config, random_model: RandomModel, padded_rows: tuple[Tensor, Tensor]
) -> None:
    model, inputs = random_model(config, gain=2.0), padded_rows[0]
    eos = int(greedy_decode(model, inputs, max_length=12)[0, 5])
    answers = greedy_decode(model, inputs, max_length=12, eos_id=eos)
    likeliest = model(inputs, functional.pad(answers[:, :-1], (1, 0))).argmax(-1)
    ended_before = functional.pad((answers == eos).cumsum(1)[:, :-1], (1, 0)) > 0
    assert ended_before.any()
    assert torch.equal(answers, likeliest.masked_fill(ended_before, 0))


def test_answers_do_not_depend_on_company_or_padding(
    config: T5Config, random_model: RandomModel, padded_rows: tuple[Tensor, Tensor]
) -> None:
    model, inputs = random_model(config, gain=2.0), torch.cat([padded_rows[0], padded_rows[0][2:].repeat(3, 1)])
    eos = int(greedy_decode(model, inputs[2:3], max_length=12)[0, 5])
    together = greedy_decode(model, inputs, max_length=12, eos_id=eos)
    for row, tokens in enumerate(inputs):
        alone = greedy_decode(model, tokens[tokens != 0][None], max_length=12, eos_id=eos)
        assert functional.pad(alone[0], (0, together.shape[1] - alone.shape[1])).tolist() == together[row].tolist()


def test_decoding_stops_when_every_row_has_ended(config: T5Config, random_model: RandomModel) -> None:
    model, inputs = random_model(config), torch.tensor([[5, 6, 1]])
    first = int(greedy_decode(model, inputs, max_length=1)[0, 0])
    assert greedy_decode(model, inputs, max_length=50, eos_id=first).tolist() == [[first]]


def test_packed_rows_and_empty_answers_are_refused(config: T5Config, random_model: RandomModel) -> None:
    model, inputs = random_model(config), torch.tensor([[5, 6, 1]])
    with pytest.raises(ValueError, match="found 2 segments in a row"):
        greedy_decode(model, inputs, torch.tensor([[1, 1, 2]]), max_length=4)
    with pytest.raises(ValueError, match="max_length is 0"):
        greedy_decode(model, inputs, max_length=0)


def test_one_beam_is_greedy(config: T5Config, random_model: RandomModel, padded_rows: tuple[Tensor, Tensor]) -> None:
    model, inputs = random_model(config, gain=2.0), padded_rows[0]
    greedy = greedy_decode(model, inputs, max_length=7)
    assert beam_decode(model, inputs, max_length=7, beams=1).tolist() == greedy.tolist()


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
def test_enough_beams_find_the_best_of_all_answers(
    config: T5Config, random_model: RandomModel, length_penalty: float
) -> None:
    model, eos, length = random_model(replace(config, vocab_size=5), gain=2.0), 1, 3
    inputs = torch.tensor([[2, 3, 1, 0], [4, 4, 2, 1]])
    ended = [[*body, eos] for count in range(length) for body in product([0, 2, 3, 4], repeat=count)]
    for row in range(2):
        scores = {}
        for answer in ended:
            tokens = torch.tensor([answer])
            logits = model(inputs[row : row + 1], functional.pad(tokens[:, :-1], (1, 0)))
            likelihood = logits.log_softmax(-1).gather(-1, tokens[..., None]).sum().item()
            scores[tuple(answer)] = likelihood / ((5 + len(answer)) / 6) ** length_penalty
        best = max(scores, key=lambda answer: scores[answer])
        found = beam_decode(
            model, inputs[row : row + 1], max_length=length, beams=64, length_penalty=length_penalty, eos_id=eos
        )
        assert found[0, : len(best)].tolist() == list(best)


def test_what_beam_search_finds_does_not_depend_on_company_or_padding(
    config: T5Config, random_model: RandomModel, padded_rows: tuple[Tensor, Tensor]
) -> None:
    model, inputs = random_model(config, gain=2.0), padded_rows[0]
    eos = int(greedy_decode(model, inputs, max_length=8)[0, 5])
    together = beam_decode(model, inputs, max_length=40, beams=3, eos_id=eos)
    for row, tokens in enumerate(inputs):
        alone = beam_decode(model, tokens[tokens != 0][None], max_length=40, beams=3, eos_id=eos)
        assert functional.pad(alone[0], (0, together.shape[1] - alone.shape[1])).tolist() == together[row].tolist()


def test_beam_search_ends_at_one_and_a_half_times_the_input_and_ten(
    config: T5Config, random_model: RandomModel
) -> None:
    never = config.vocab_size
    answers = beam_decode(random_model(config), torch.tensor([[5, 6, 7, 1]]), max_length=50, beams=2, eos_id=never)
    assert answers.shape[1] <= 16
    assert beam_decode(random_model(config), torch.tensor([[5, 6, 7, 1]]), max_length=3, beams=2).shape[1] <= 3


@pytest.mark.parametrize("architecture", ["prefix_lm", "lm"])
def test_a_single_stack_answers_as_if_it_read_its_row_anew_for_each_token(config: T5Config, architecture: str) -> None:
    from mixtura.models.t5 import create_model

    model = create_model(replace(config, architecture=architecture))  # type: ignore[arg-type]
    initialize(model, 0)
    inputs = torch.tensor([[5, 6, 7, 8, 1], [9, 1, 0, 0, 0]])
    answers = greedy_decode(model, inputs, max_length=6, eos_id=-1)
    assert answers.shape == (2, 6)
    for row, answer in zip(inputs, answers.tolist(), strict=True):
        known = [0, *row[row != 0].tolist()]
        visible = len(known)  # the inputs, their end, and the position that reads it
        for token in answer:
            features = {
                "decoder_input_tokens": torch.tensor([known]),
                "decoder_segment_ids": torch.ones(1, len(known), dtype=torch.int32),
                "decoder_causal_attention": (torch.arange(len(known)) < visible)[None].int(),
            }
            logits = model(**{name: features[name] for name in model.features})
            assert token == int(logits[0, -1].argmax())
            known.append(token)


@pytest.mark.parametrize("architecture", ["shared", "prefix_lm", "lm"])
def test_every_architecture_finds_the_same_with_and_without_company(config: T5Config, architecture: str) -> None:
    from mixtura.models.t5 import create_model

    layers = replace(config, architecture=architecture, num_decoder_layers=config.num_layers)  # type: ignore[arg-type]
    model = create_model(layers)
    initialize(model, 0)
    inputs = torch.tensor([[5, 6, 7, 8, 1], [9, 1, 0, 0, 0], [7, 7, 1, 0, 0]])
    together = beam_decode(model, inputs, max_length=9, beams=3)
    for row, tokens in enumerate(inputs):
        alone = beam_decode(model, tokens[tokens != 0][None], max_length=9, beams=3)
        assert functional.pad(alone[0], (0, together.shape[1] - alone.shape[1])).tolist() == together[row].tolist()


@pytest.mark.parametrize("beams", [1, 4])
def test_log_probabilities_are_those_of_the_whole_answer(
    config: T5Config, random_model: RandomModel, padded_rows: tuple[Tensor, Tensor], beams: int
) -> None:
    model, inputs = random_model(config, gain=2.0), padded_rows[0].repeat(2, 1)
    eos = int(greedy_decode(model, inputs, max_length=9)[0, 4])
    found = decode(model, inputs, max_length=9, beams=beams, eos_id=eos)
    assert torch.equal(found.ids, beam_decode(model, inputs, max_length=9, beams=beams, eos_id=eos))
    with torch.no_grad():
        likelihoods = model(inputs, functional.pad(found.ids[:, :-1], (1, 0))).log_softmax(-1)
    of_tokens = likelihoods.gather(-1, found.ids[..., None])[..., 0]
    part_of_it = functional.pad((found.ids == eos).cumsum(1)[:, :-1], (1, 0)) == 0
    assert not part_of_it.all()
    torch.testing.assert_close(found.log_probabilities, (of_tokens * part_of_it).sum(1), rtol=1e-4, atol=1e-4)
