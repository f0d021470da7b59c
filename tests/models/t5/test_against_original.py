"""Toy models of the original code: parameters, ids, logits, loss and greedy answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixtura.models.t5 import T5, T5Config, beam_decode, greedy_decode, our_state


def our_tensors(row: dict[str, Any], config: T5Config) -> dict[str, Tensor]:
    """The original's parameters: kernels are input x output there, bias tables heads x buckets."""
    state = {}
    for name, values in row["params"].items():
        hf = re.sub(r"(block|layer)_0*(\d+)", r"\1.\2", name).replace("/", ".")
        hf = hf.replace("rms_norm.scale", "layer_norm.weight" if ".layer." in hf else "final_layer_norm.weight")
        hf = hf.replace("shared.embedding", "shared.weight").replace("decoder.logits", "lm_head")
        hf = hf.removesuffix(".kernel").removesuffix(".weight") + ".weight"
        tensor = torch.tensor(values)
        state[hf] = tensor.T.contiguous() if tensor.ndim == 2 and hf != "shared.weight" else tensor
    return our_state(state, config)


@pytest.fixture(params=["v1_0", "v1_1"])
def toy(request: pytest.FixtureRequest, shared: Path) -> tuple[T5, dict[str, Any]]:
    lines = (shared / "golden" / "tiny_models.jsonl").read_text().splitlines()
    (row,) = (row for row in map(json.loads, lines) if row["variant"] == request.param)
    shape = row["config"]
    config = T5Config(
        vocab_size=shape["vocab"],
        d_model=shape["d_model"],
        d_kv=shape["d_kv"],
        d_ff=shape["d_ff"],
        num_heads=shape["num_heads"],
        num_layers=shape["num_layers"],
        num_decoder_layers=shape["num_layers"],
        feed_forward="relu" if request.param == "v1_0" else "gated-gelu",
        tie_embeddings=request.param == "v1_0",
    )
    model = T5(config)
    model.load_state_dict(our_tensors(row, config))
    return model, row


def test_logits_and_loss_are_those_of_the_original(toy: tuple[T5, dict[str, Any]]) -> None:
    model, row = toy
    inputs, targets = torch.tensor(row["ids"]["inputs"]), torch.tensor(row["ids"]["targets"])
    real = targets != 0
    shifted = functional.pad(targets[:, :-1], (1, 0))
    logits = model(inputs, shifted, encoder_segment_ids=(inputs != 0).int(), decoder_segment_ids=real.int())
    torch.testing.assert_close(logits[real], torch.tensor(row["logits"])[real], rtol=1e-5, atol=1e-5)
    log_z = logits.logsumexp(-1)
    cross_entropy = log_z - logits.gather(-1, targets[..., None])[..., 0]
    # The original divides by the whole array of targets, padding included.
    loss = ((cross_entropy + 1e-4 * log_z.square()) * real).sum() / targets.numel()
    assert loss.item() == pytest.approx(row["loss"], rel=1e-5)


def test_greedy_answers_are_those_of_the_original(toy: tuple[T5, dict[str, Any]]) -> None:
    model, row = toy
    greedy = [decoded for decoded in row["decoded"] if decoded["options"]["beam_size"] == 1]
    assert greedy
    for decoded in greedy:
        answers = greedy_decode(model, torch.tensor(row["ids"]["inputs"]), max_length=decoded["max_decode_length"])
        assert [until_end(answer) for answer in answers.tolist()] == [until_end(answer) for answer in decoded["ids"]]


def test_beam_search_finds_the_answers_of_the_original(toy: tuple[T5, dict[str, Any]]) -> None:
    model, row = toy
    searched = [decoded for decoded in row["decoded"] if decoded["options"]["beam_size"] > 1]
    assert len(searched) == 4
    for decoded in searched:
        answers = beam_decode(
            model,
            torch.tensor(row["ids"]["inputs"]),
            max_length=decoded["max_decode_length"],
            beams=decoded["options"]["beam_size"],
            length_penalty=decoded["options"]["alpha"],
        )
        assert [until_end(answer) for answer in answers.tolist()] == [until_end(answer) for answer in decoded["ids"]]


def until_end(answer: list[int]) -> list[int]:
    return answer[: answer.index(1) + 1] if 1 in answer else answer
