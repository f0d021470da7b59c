"""Turning inputs into answers, one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from mixtura.models.t5.model import PAD_ID, T5, DecoderCache


@torch.no_grad()
def greedy_decode(
    model: T5,
    encoder_input_tokens: Tensor,
    encoder_segment_ids: Tensor | None = None,
    *,
    max_length: int,
    eos_id: int = 1,
) -> Tensor:
    """The most likely token at every step, until `eos_id` or `max_length` tokens.

    Inputs are [batch, source length], one example per row (packed rows are refused). The answer is int64
    [batch, length]: each row ends with `eos_id` if it came, and is padded with 0; `length` is that of the longest.
    """
    segments = (encoder_input_tokens != PAD_ID).to(torch.int32) if encoder_segment_ids is None else encoder_segment_ids
    if int(segments.max()) > 1:
        raise ValueError(f"found {int(segments.max())} segments in a row; decoding takes one example per row, unpacked")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; give at least 1 token")
    cache = model.start_decoding(model.encode(encoder_input_tokens, segments), segments, max_length)
    batch = encoder_input_tokens.shape[0]
    answers = torch.full((batch, max_length), PAD_ID, dtype=torch.int64, device=encoder_input_tokens.device)
    length = _fill(model, cache, answers, eos_id)
    return answers[:, :length]


def _fill(model: T5, cache: DecoderCache, answers: Tensor, eos_id: int) -> int:
    """Writes the answers in place; returns the length of the longest."""
    batch, max_length = answers.shape
    rows = torch.arange(batch, device=answers.device)
    running = torch.ones_like(rows, dtype=torch.bool)
    tokens = torch.full_like(rows, PAD_ID)
    for position in range(max_length):
        tokens = model.decode_next(tokens, cache).argmax(-1)
        answers[rows, position] = torch.where(running, tokens, PAD_ID)
        running = running & (tokens != eos_id)
        left = int(running.sum())
        if left == 0:
            return position + 1
        # Ended rows leave once they are half of the batch: what is copied then stays below what is saved.
        if 2 * left <= len(rows):
            kept = running.nonzero()[:, 0]
            rows, running, tokens, cache = rows[kept], running[kept], tokens[kept], cache.select(kept)
    return max_length
