"""Text in, text out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixtura.platform.data.vocabulary import EOS_ID
from mixtura.platform.evaluation.evaluator import batches_by_length, padded
from mixtura.platform.orchestration.ensembles import Answerer, load
from mixtura.platform.orchestration.evaluate import decoding

_BATCH_TOKENS = 8192


def answers(
    chosen: Answerer, texts: Sequence[str], decode_length: int, beams: int = 1, length_penalty: float = 0.6
) -> list[str]:
    """The answer to each text: the greedy one, or the best that beam search finds. `<extra_id_0>` is a sentinel in a
    text as in an answer."""
    model, vocabulary = load(chosen)
    decode = decoding(model, decode_length, beams, length_penalty)
    ids = [np.array([*vocabulary.encode(text, marks=True), EOS_ID], np.int32) for text in texts]
    result = [""] * len(ids)
    for batch in batches_by_length([len(row) for row in ids], max(1, _BATCH_TOKENS // beams)):
        for place, answer in zip(batch, decode(padded([ids[at] for at in batch])), strict=True):
            result[place] = vocabulary.decode(answer)
    return result
