"""Text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixtura.platform.data.vocabulary import EOS_ID
from mixtura.platform.evaluation.evaluator import batches_by_length, padded
from mixtura.platform.orchestration.assemble import load_model
from mixtura.platform.orchestration.evaluate import greedy

_BATCH_TOKENS = 8192


def answers(checkpoint: Path, texts: Sequence[str], decode_length: int) -> list[str]:
    """A checkpoint's greedy answer to each text."""
    model, vocabulary = load_model(checkpoint)
    decode = greedy(model, decode_length)
    ids = [np.array([*tokens, EOS_ID], np.int32) for tokens in vocabulary.encode_batch(texts).to_lists()]
    result = [""] * len(ids)
    for batch in batches_by_length([len(row) for row in ids], _BATCH_TOKENS):
        for place, answer in zip(batch, decode(padded([ids[at] for at in batch])), strict=True):
            result[place] = vocabulary.decode(answer)
    return result
