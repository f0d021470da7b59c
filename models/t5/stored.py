"""Tensors in files of others: what they are called and how large they are is known at once, values when asked for.

A model of 11 billion parameters is then never in memory twice: whoever takes its tensors one after the other needs
room for the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.convert import copies_differ, names_to_read
from mixtura.models.t5.model import create_model

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape, and a function that reads it in the file's own precision."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def transposed(self) -> StoredTensor:
        """The matrix with its axes swapped: flax multiplies from the other side."""
        return StoredTensor(self.shape[::-1], lambda: self.read().T)

    def reshaped(self, shape: tuple[int, ...]) -> StoredTensor:
        """The same values, row by row, in another shape."""
        return StoredTensor(shape, lambda: self.read().reshape(shape))


class StoredWeights(Mapping[str, Tensor]):
    """A model's weights under our names, each read and made float32 when it is looked up, and not kept."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._stored[name].read()
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"the weights of '{name}' are {tensor.dtype}: quantised models cannot be read")
        return tensor.float().contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


@dataclass(frozen=True)
class ForeignModel:
    """A model as somebody else wrote it."""

    config: T5Config
    weights: StoredWeights
    vocabulary: Path | None
    """Its `spiece.model`, where there is one."""


def shapes_of(config: T5Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, without the memory of one."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in create_model(config).named_parameters()}


def matched(stored: Mapping[str, StoredTensor], config: T5Config) -> StoredWeights:
    """The weights of a model by our names, from tensors by Hugging Face's (or by ours, where that has none).

    Raises ValueError with all that is wrong: tensors that are missing, of another model, or of another shape.
    """
    names, expected = names_to_read(stored.keys(), config), shapes_of(config)
    problems = [
        *_listed("missing", sorted(expected.keys() - names.keys())),
        *_listed("not of this model", sorted(names.keys() - expected.keys())),
        *_listed(
            "of another shape",
            [
                f"{theirs} {list(stored[theirs].shape)} instead of {list(expected[ours])}"
                for ours, copies in names.items()
                for theirs in copies
                if ours in expected and stored[theirs].shape != expected[ours]
            ],
        ),
    ]
    if problems:
        raise ValueError(f"the tensors do not fit config.json: {'; '.join(problems)}")
    for ours, (first, *others) in names.items():
        if not all(torch.equal(stored[first].read(), stored[other].read()) for other in others):
            raise ValueError(copies_differ(ours, config))
    return StoredWeights({ours: stored[first] for ours, (first, *_) in names.items()})


def _listed(what: str, names: list[str], most: int = 3) -> list[str]:
    """
    >>> _listed("missing", ["a", "b", "c", "d"])
    ['4 missing (a, b, c, ...)']
    """
    shown = ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
    return [f"{len(names)} {what} ({shown})"] if names else []
