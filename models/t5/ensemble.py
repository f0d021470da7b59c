"""Several models that answer as one: their logits are averaged, or their weights are.

The paper averages the logits of four models before the softmax (section 3.6). Its code averages probabilities by
default, which is not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mixtura.models.t5.model import TextToText
from mixtura.models.t5.stack import DecoderCache


class Cache(Protocol):
    """What is kept between the steps of decoding a batch; see `DecoderCache`."""

    def select(self, rows: Tensor) -> Any:
        """The cache of these rows (int64, in any order, repeats allowed)."""

    def follow(self, parents: Tensor) -> None:
        """Give every row what its parent has seen, in place."""


class Answering(Protocol):
    """What decoding needs of a model, or of several."""

    @property
    def device(self) -> torch.device:
        """Where it wants its inputs."""

    def start_decoding(self, inputs: Tensor, segment_ids: Tensor, max_length: int) -> tuple[Any, Tensor]:
        """A cache with what is known of inputs [batch, source length], and the logits [batch, vocab_size] of the first
        of up to `max_length` tokens that answer them."""

    def decode_next(self, tokens: Tensor, cache: Any) -> Tensor:
        """Logits after one more token per row: tokens [batch] -> float32 [batch, vocab_size]; the cache grows by it."""

    def read_next(self, tokens: Tensor, cache: Any) -> Tensor:
        """Logits after each of several more tokens: tokens [batch, count] -> float32 [batch, count, vocab_size]; the
        cache grows by them."""


@dataclass
class EnsembleCache:
    """The caches of all models, for the same rows."""

    caches: list[DecoderCache]

    def select(self, rows: Tensor) -> EnsembleCache:
        """The cache of these rows (int64, in any order, repeats allowed)."""
        return EnsembleCache([cache.select(rows) for cache in self.caches])

    def follow(self, parents: Tensor) -> None:
        """Give every row what its parent has seen, in place."""
        for cache in self.caches:
            cache.follow(parents)


class Ensemble:
    """Models of one vocabulary whose logits are averaged at every token. Their shapes may differ."""

    def __init__(self, models: Sequence[TextToText]) -> None:
        rows = {model.config.vocab_size for model in models}
        if len(rows) != 1:
            raise ValueError(f"an ensemble's models have one vocabulary; these have {sorted(rows)} rows")
        self.models = tuple(models)

    @property
    def device(self) -> torch.device:
        """Where all models are."""
        return self.models[0].device

    def to(self, *, device: str, dtype: torch.dtype) -> Ensemble:
        """All models, moved as `nn.Module.to` does."""
        return Ensemble([model.to(device=device, dtype=dtype) for model in self.models])

    def start_decoding(self, inputs: Tensor, segment_ids: Tensor, max_length: int) -> tuple[EnsembleCache, Tensor]:
        """As a model's."""
        started = [model.start_decoding(inputs, segment_ids, max_length) for model in self.models]
        return EnsembleCache([cache for cache, _ in started]), _mean([logits for _, logits in started])

    def decode_next(self, tokens: Tensor, cache: EnsembleCache) -> Tensor:
        """As a model's."""
        pairs = zip(self.models, cache.caches, strict=True)
        return _mean([model.decode_next(tokens, own) for model, own in pairs])

    def read_next(self, tokens: Tensor, cache: EnsembleCache) -> Tensor:
        """As a model's."""
        pairs = zip(self.models, cache.caches, strict=True)
        return _mean([model.read_next(tokens, own) for model, own in pairs])


def _mean(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(logits)).mean(0)


@torch.no_grad()
def average_weights(into: TextToText, others: Sequence[TextToText]) -> None:
    """Set each parameter to the mean of its own value and the others', summed in float64.

    Models of one run are near enough to each other for this; of models that were trained apart nothing useful comes.
    """
    for other in others:
        if other.config != into.config:
            raise ValueError(f"weights are averaged of models of one shape; found {into.config} and {other.config}")
    rest = [dict(other.named_parameters()) for other in others]
    for name, parameter in into.named_parameters():
        total = parameter.double()
        for parameters in rest:
            total += parameters[name].double()
        parameter.copy_(total / (1 + len(rest)))
