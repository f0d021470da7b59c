"""From ranks' fragments to whole parameters.

A part is what one rank gives to a checkpoint. Rank 0's stays in memory; the others' lie in a safetensors file with
tensors "<index of the fragment>/<kind>" and a JSON file with the coordinates. Parameters are put together one at a
time, when the file that holds them is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mixtura.platform.errors import CheckpointError
from mixtura.platform.files import write_json_atomically
from mixtura.platform.training.snapshot import Snapshot
from mixtura.platform.training.tensor_files import TensorEntry, write_tensors

MASTER = "master"


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + length` of a flattened parameter, read when they are needed."""

    start: int
    length: int
    read: Callable[[], torch.Tensor]


@dataclass
class WholeTensor:
    """All pieces of one fp32 tensor of a parameter ("master", "exp_avg", ...), over all ranks in their order."""

    shape: tuple[int, ...]
    pieces: list[Piece] = field(default_factory=list)

    def assemble(self, name: str) -> torch.Tensor:
        """The whole tensor. Where pieces overlap the first rank's values are taken; a gap is an error."""
        numel = math.prod(self.shape)
        whole = torch.empty(numel, dtype=torch.float32)
        filled = 0
        for piece in sorted(self.pieces, key=lambda piece: piece.start):
            end = piece.start + piece.length
            if piece.start > filled:
                break
            if end > filled:
                whole[filled:end] = piece.read()[filled - piece.start :]
                filled = end
        if filled != numel:
            raise CheckpointError(f"no rank gave element {filled} of the {numel} of {name!r} {self.shape}")
        return whole.view(self.shape)


@dataclass
class Part:
    """One rank's fragments: (parameter, kind) to its whole shape and pieces; and what all ranks have alike."""

    tensors: dict[tuple[str, str], WholeTensor]
    replicated: dict[str, torch.Tensor]
    state: Mapping[str, Any]


def part_of(snapshot: Snapshot, state: Mapping[str, Any]) -> Part:
    """The part of the rank that assembles: straight from its host copy."""
    tensors: dict[tuple[str, str], WholeTensor] = {}
    for fragment in snapshot.fragments:
        for kind, values in fragment.tensors.items():
            whole = tensors.setdefault((fragment.name, kind), WholeTensor(tuple(fragment.shape)))
            whole.pieces.append(Piece(fragment.start, values.numel(), partial(_same, values)))
    return Part(tensors, snapshot.replicated, state)


def _same(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1)


def save_part(path: Path, snapshot: Snapshot, state: Mapping[str, Any]) -> None:
    """Write a rank's part: the tensors, then the coordinates, whose presence says that the part is whole."""
    entries, coordinates = [], []
    for index, fragment in enumerate(snapshot.fragments):
        entries += [TensorEntry.of(f"{index}/{kind}", values) for kind, values in fragment.tensors.items()]
        place = {"name": fragment.name, "shape": list(fragment.shape), "start": fragment.start}
        coordinates.append(place | {"length": fragment.length, "kinds": [*fragment.tensors]})
    write_tensors(path, entries)
    write_json_atomically(path.with_suffix(".json"), {"fragments": coordinates, "state": state})


def load_part(path: Path) -> Part:
    """A part that another rank wrote; its tensors are mapped, not read, until they are needed."""
    from safetensors import safe_open

    about = json.loads(path.with_suffix(".json").read_bytes())
    file = safe_open(path, framework="pt")
    tensors: dict[tuple[str, str], WholeTensor] = {}
    for index, fragment in enumerate(about["fragments"]):
        for kind in fragment["kinds"]:
            whole = tensors.setdefault((fragment["name"], kind), WholeTensor(tuple(fragment["shape"])))
            read = partial(file.get_tensor, f"{index}/{kind}")
            whole.pieces.append(Piece(fragment["start"], fragment["length"], read))
    return Part(tensors, {}, about["state"])


def entries_of(
    parts: Sequence[Part], hf_names: Mapping[str, tuple[str, ...]]
) -> tuple[list[TensorEntry], list[TensorEntry]]:
    """The model's tensors under all their Hugging Face names, and the optimizer's under "<parameter>/<kind>"."""
    tensors: dict[tuple[str, str], WholeTensor] = {}
    for part in parts:
        for key, whole in part.tensors.items():
            merged = tensors.setdefault(key, WholeTensor(whole.shape))
            if merged.shape != whole.shape:
                shapes = f"{merged.shape} and {whole.shape}"
                raise CheckpointError(f"the ranks disagree about the shape of {key[0]!r}: {shapes}")
            merged.pieces += whole.pieces
    _check_names({name for name, kind in tensors if kind == MASTER}, set(hf_names))
    masters = [(name, whole) for (name, kind), whole in tensors.items() if kind == MASTER]
    weights = [_entry(hf_name, whole) for name, whole in masters for hf_name in hf_names[name]]
    optimizer = [_entry(f"{name}/{kind}", whole) for (name, kind), whole in tensors.items() if kind != MASTER]
    optimizer += [TensorEntry.of(name, values) for name, values in parts[0].replicated.items()]
    return sorted(weights, key=lambda entry: entry.name), sorted(optimizer, key=lambda entry: entry.name)


def _entry(name: str, whole: WholeTensor) -> TensorEntry:
    return TensorEntry(name, whole.shape, torch.float32, partial(whole.assemble, name))


def _check_names(given: set[str], expected: set[str]) -> None:
    if given != expected:
        missing, unknown = sorted(expected - given), sorted(given - expected)
        raise CheckpointError(
            "the snapshot is not of this model: "
            + "; ".join(
                [f"{len(missing)} parameters are missing, for example {missing[0]!r}"] * bool(missing)
                + [f"{len(unknown)} have no Hugging Face name, for example {unknown[0]!r}"] * bool(unknown)
            )
        )
