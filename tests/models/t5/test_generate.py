from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixtura.models.t5 import T5, T5Config, greedy_decode

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
