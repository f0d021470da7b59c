"""Text in, text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.evaluation.evaluator import Prediction, predict
from mixtura.platform.orchestration.answering import decoding

if TYPE_CHECKING:
    from mixtura.models.t5 import Answering

_BATCH_TOKENS = 8192


def answers(
    model: Answering,
    vocabulary: Vocabulary,
    texts: Sequence[str],
    decode_length: int,
    beams: int = 1,
    length_penalty: float = 0.6,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Prediction]:
    """The answer to each text: the greedy one, or the best that beam search finds. `<extra_id_0>` is a sentinel in a
    text as in an answer. `progress` is told how many are answered."""
    decode = decoding(model, decode_length, beams, length_penalty)
    ids = [np.array([*vocabulary.encode(text, marks=True), EOS_ID], np.int32) for text in texts]
    found: dict[int, Prediction] = {}
    for place, prediction in predict(ids, decode, vocabulary.decode, max(1, _BATCH_TOKENS // beams)):
        found[place] = prediction
        progress(len(found))
    return [found[place] for place in range(len(texts))]
