"""A model as the evaluator takes it: a function from ids to answers, or to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mixtura.platform.data.vocabulary import EOS_ID
from mixtura.platform.evaluation.evaluator import Decode, Decoded, Ids, Score, padded

if TYPE_CHECKING:
    from torch import Tensor

    from mixtura.models.t5 import Answering, Answers


def decoding(model: Answering, decode_length: int, beams: int, length_penalty: float) -> Decode:
    """Decoding with a model, as the evaluator takes it: greedy with one beam."""
    from mixtura.models.t5 import decode

    def answer(inputs: Ids, targets: Ids | None) -> list[Decoded]:
        found = decode(
            model,
            _on_device(model, inputs),
            max_length=decode_length,
            beams=beams,
            length_penalty=length_penalty,
            eos_id=EOS_ID,
            references=None if targets is None else _on_device(model, targets),
        )
        return _decoded(found)

    return answer


def choosing(model: Answering, classes: Sequence[Sequence[int]]) -> Decode:
    """Rank classification with a model: the likeliest of some texts, given by their ids without EOS."""
    from mixtura.models.t5 import choose

    candidates = padded([np.array([*ids, EOS_ID], np.int32) for ids in classes])

    def answer(inputs: Ids, targets: Ids | None) -> list[Decoded]:
        references = None if targets is None else _on_device(model, targets)
        return _decoded(choose(model, _on_device(model, inputs), _on_device(model, candidates), references=references))

    return answer


def scoring(model: Answering) -> Score:
    """Log-probabilities of targets by a model."""
    from mixtura.models.t5 import score

    def likelihoods(inputs: Ids, targets: Ids) -> list[float]:
        found: list[float] = score(model, _on_device(model, inputs), _on_device(model, targets)).tolist()
        return found

    return likelihoods


def _on_device(model: Answering, ids: Ids) -> Tensor:
    import torch

    return torch.from_numpy(ids).long().to(model.device)


def _decoded(found: Answers) -> list[Decoded]:
    right = [None] * len(found.ids) if found.of_references is None else found.of_references.tolist()
    return list(map(Decoded, found.ids.tolist(), found.log_probabilities.tolist(), right))
