from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mixtura.models.t5 import T5, T5Config
from mixtura.models.t5.dropout import Dropout, add_dropped, drop, words
from mixtura.platform import random_bits

KEYS = torch.tensor([3, -(2**63), 2**63 - 1, 0, -1])


def masks(keys: Tensor, rate: float, sites: int = 20, indices: int = 2000) -> Dropout:
    return Dropout.of_rows(keys, rate, sites=sites, indices=indices)


def test_words_are_those_of_the_platforms_generator() -> None:
    counters = torch.arange(1000)
    ours = words(KEYS[:, None], counters).numpy().view(np.uint64)
    assert np.array_equal(ours, random_bits.bits(KEYS.numpy().view(np.uint64)[:, None], counters.numpy()))


def test_masks_never_change() -> None:
    assert masks(torch.tensor([1, 2]), 0.5).kept(site=3, count=8).int().tolist() == [
        [1, 0, 1, 0, 0, 1, 0, 1],
        [1, 1, 1, 0, 1, 0, 1, 1],
    ]


def test_a_row_has_its_mask_in_any_company_length_and_dtype() -> None:
    together = masks(KEYS, 0.3)
    for row in range(len(KEYS)):
        alone = masks(KEYS[row : row + 1], 0.3)
        assert torch.equal(together.channels(4, 40, 9, torch.float32)[row], alone.channels(4, 40, 9, torch.float32)[0])
        longer = alone.value_rows(4, 3, 50, torch.bfloat16)[0, :, :20] > 0
        assert torch.equal(together.value_rows(4, 3, 20, torch.float32)[row] > 0, longer)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_dropped_share_is_the_rate_and_the_mean_is_kept(rate: float) -> None:
    dropout = masks(torch.arange(200), rate)
    mask = dropout.channels(1, 2000, 9, torch.float64)
    five_sigma = 5 * (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs((mask == 0).double().mean().item() - rate) < five_sigma
    assert abs(mask.mean().item() - 1.0) < five_sigma / (1 - rate)
    assert set(mask.unique().tolist()) == {0.0, 1 / (1 - rate)}


def test_masks_of_other_rows_sites_and_indices_are_independent() -> None:
    dropout = masks(torch.arange(50), 0.5)
    bits = torch.stack([dropout.kept(site, 400) for site in range(20)]).double() - 0.5  # [sites, rows, indices]
    five_sigma = 5 * 0.25 / (19 * 50 * 400) ** 0.5
    for shifted, plain in ((bits[1:], bits[:-1]), (bits[:, 1:], bits[:, :-1]), (bits[..., 1:], bits[..., :-1])):
        assert abs((shifted * plain).mean().item()) < five_sigma
    assert (bits.mean(dim=2).abs() < 5 * 0.5 / 400**0.5).all()
    assert (bits.mean(dim=1).abs() < 5 * 0.5 / 50**0.5).all()


def test_a_part_of_the_sites_is_numbered_anew() -> None:
    dropout = masks(KEYS, 0.5)
    assert torch.equal(dropout.part(7, 3).kept(2, 50), dropout.kept(9, 50))
    with pytest.raises(IndexError):
        dropout.part(7, 3).kept(3, 50)


def test_no_keys_mean_no_dropout() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(drop(x, 0, None), x)
    assert torch.equal(add_dropped(x, x, 0, None), 2 * x)


def test_adding_what_is_dropped_is_the_sum() -> None:
    x, y, dropout = torch.randn(5, 3, 4), torch.randn(5, 3, 4), masks(KEYS, 0.5)
    torch.testing.assert_close(add_dropped(x, y, 7, dropout), x + drop(y, 7, dropout))


def test_logits_with_dropout_do_not_depend_on_microbatch_or_padding(
    config: T5Config, random_model: Callable[..., T5], padded_rows: tuple[Tensor, Tensor]
) -> None:
    model, (inputs, targets) = random_model(config), padded_rows
    keys = KEYS[:3]
    together = model(inputs, targets, dropout_keys=keys)
    assert (together - model(inputs, targets)).abs().max() > 0.1
    for row in range(3):
        alone = model(inputs[row : row + 1], targets[row : row + 1], dropout_keys=keys[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    cut = model(inputs[2:, :9], targets[2:, :133], dropout_keys=keys[2:])
    torch.testing.assert_close(cut[0], together[2, :133], rtol=1e-5, atol=1e-5)


def test_a_rate_of_zero_ignores_the_keys(random_model: Callable[..., T5]) -> None:
    config = T5Config(64, 8, 4, 16, 2, num_layers=1, num_decoder_layers=1, dropout_rate=0.0)
    model, tokens = random_model(config), torch.tensor([[5, 6, 1]])
    assert torch.equal(model(tokens, tokens, dropout_keys=KEYS[:1]), model(tokens, tokens))
