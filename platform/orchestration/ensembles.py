"""What answers: one model, or several as one.

base@best                               one model, by any name that `mixtura.platform.orchestration.select` knows
ensemble:base@1000,base@2000            their logits averaged at every token, as the paper's ensembles are
average:base@1000,base@2000             one model with the mean of their weights
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.errors import RequestError
from mixtura.platform.files import xxh3_128
from mixtura.platform.orchestration.assemble import load_model, vocabulary_in
from mixtura.platform.orchestration.select import model_path
from mixtura.platform.workspace import Workspace

if TYPE_CHECKING:
    from mixtura.models.t5 import T5, DecoderOnlyT5, Ensemble

_KINDS: tuple[Literal["ensemble", "average"], ...] = ("ensemble", "average")


@dataclass(frozen=True)
class Answerer:
    """Verified folders of models, and how they become one."""

    kind: Literal["one", "ensemble", "average"]
    names: tuple[str, ...]
    paths: tuple[Path, ...]

    @property
    def name(self) -> str:
        """As a person names it."""
        return self._joined(self.names)

    @property
    def spec(self) -> str:
        """The same in one text, of folders alone, which any process on this machine understands."""
        return self._joined(map(str, self.paths))

    def _joined(self, parts: Iterable[str]) -> str:
        return ("" if self.kind == "one" else f"{self.kind}:") + ",".join(parts)

    @classmethod
    def of_spec(cls, text: str) -> Answerer:
        """What `spec` was made of."""
        kind, paths = _taken_apart(text) or ("one", (text,))
        return cls(kind, tuple(paths), tuple(map(Path, paths)))


def answerer(space: Workspace, text: str) -> Answerer:
    """What a person names, each of it downloaded if need be and verified."""
    several = _taken_apart(text)
    if several is None:
        return Answerer("one", (text,), (model_path(space, text),))
    kind, names = several
    if len(names) < 2 or not all(names):
        raise RequestError(f"{text!r}: give two or more checkpoints, as in {kind}:base@1000,base@2000")
    return Answerer(kind, names, tuple(model_path(space, name) for name in names))


def vocabulary_path(chosen: Answerer) -> Path:
    """The SentencePiece model that all of them share; models of other vocabularies are refused."""
    found = [vocabulary_in(path) for path in chosen.paths]
    _refuse_other_vocabularies(chosen.names, found)
    return found[0]


def _taken_apart(text: str) -> tuple[Literal["ensemble", "average"], tuple[str, ...]] | None:
    for kind in _KINDS:
        if text.startswith(f"{kind}:") and not Path(text).exists():
            return kind, tuple(part.strip() for part in text.removeprefix(f"{kind}:").split(","))
    return None


def load(
    chosen: Answerer, precision: str = "fp32", device: str | None = None
) -> tuple[T5 | DecoderOnlyT5 | Ensemble, Vocabulary]:
    """The model and the vocabulary, ready to answer, on a GPU if there is one and no device is named. Models of other
    vocabularies are refused.

    Weights are averaged in fp32, whatever precision the model then answers in.
    """
    import torch

    model, vocabulary = _in_fp32(chosen)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return model.to(device=device, dtype=dtype), vocabulary


def _in_fp32(chosen: Answerer) -> tuple[T5 | DecoderOnlyT5 | Ensemble, Vocabulary]:
    from mixtura.models.t5 import Ensemble, average_weights

    loaded = [load_model(path) for path in chosen.paths]
    models, vocabularies = [model for model, _ in loaded], [vocabulary for _, vocabulary in loaded]
    if chosen.kind == "one":
        return loaded[0]
    _refuse_other_vocabularies(chosen.names, [Path(vocabulary.path) for vocabulary in vocabularies])
    first, *others = models
    if chosen.kind == "ensemble":
        try:
            return Ensemble(models), vocabularies[0]
        except ValueError as error:
            raise RequestError(f"{', '.join(chosen.names)} are no ensemble: {error}") from None
    for name, other in zip(chosen.names[1:], others, strict=True):
        if other.config != first.config:
            raise RequestError(
                f"{chosen.names[0]} and {name} have other shapes, so that their weights have no mean: "
                f"average their logits, with ensemble:{','.join(chosen.names)}"
            )
    average_weights(first, others)
    return first, vocabularies[0]


def _refuse_other_vocabularies(names: Sequence[str], vocabularies: Sequence[Path]) -> None:
    digests = [xxh3_128(path) for path in vocabularies]
    for name, digest in zip(names, digests, strict=True):
        if digest != digests[0]:
            raise RequestError(f"{names[0]} and {name} have different vocabularies: their tokens are not the same")
