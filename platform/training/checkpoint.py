"""Checkpoints on disk: what is committed, whether its bytes are the ones that were written, and how to read it.

    <run>/checkpoints/
      step-000100/               a Hugging Face T5 model, and beside it what is needed to go on
        config.json  model.safetensors (or shards with an index)  spiece.model ...
        optimizer/optimizer.safetensors      "<parameter>/row", "<parameter>/exp_avg", ..., whole parameters
        state.json               step, stream state, counts
        manifest.json            written last: size and xxh3-128 of every file
      .step-000150.0.partial/    being written; after a crash: ignored, and removed at the next start

A folder is a checkpoint if it has its final name and a manifest, and it is whole if every file is what the manifest
says. Nothing is unpickled: tensors are safetensors, everything else is JSON.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtura.platform.errors import CheckpointError, CorruptCheckpointError
from mixtura.platform.files import fsync_directory, xxh3_128

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
MANIFEST, STATE, OPTIMIZER = "manifest.json", "state.json", "optimizer"
_FOLDER = re.compile(r"step-(\d{6,})")
_LEFTOVER = re.compile(r"\.step-\d{6,}\..*(partial|deleted)")


@dataclass(frozen=True)
class CheckpointFormat:
    """What makes a checkpoint of this model a Hugging Face model; handed in, since training knows no model.

    `hf_config` becomes config.json, `hf_names` maps our parameter names to Hugging Face's, `vocabulary_files` are
    copied under the names given, `json_files` (generation_config.json, tokenizer_config.json) are written as given.
    Model files are cut into shards beyond `max_shard_bytes`.

    A parameter is written under each of its names: two where stacks that share their weights have to look like two.
    Reading takes the first.
    """

    hf_config: Mapping[str, Any]
    hf_names: Mapping[str, tuple[str, ...]]
    vocabulary_files: Mapping[str, Path] = field(default_factory=dict)
    json_files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_shard_bytes: int = 5_000_000_000


@dataclass(frozen=True)
class CheckpointInfo:
    """A committed checkpoint: its step, its folder and when it was committed (Unix seconds)."""

    step: int
    path: Path
    created_s: float

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


@dataclass(frozen=True)
class SkippedCheckpoint:
    """A committed checkpoint that cannot be used, and why."""

    info: CheckpointInfo
    reason: str


def folder_name(step: int) -> str:
    """The name of a step's folder; it sorts like the step for the first million steps.

    >>> folder_name(100)
    'step-000100'
    """
    return f"step-{step:06d}"


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """The committed checkpoints of a run, by step. Their bytes are not looked at: see `verify`."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _FOLDER.fullmatch(path.name)
        manifest = path / MANIFEST
        if match and manifest.is_file():
            found.append(CheckpointInfo(int(match[1]), path, manifest.stat().st_mtime))
    return sorted(found, key=lambda info: info.step)


def verify(path: Path) -> None:
    """Read every byte of a checkpoint and compare with its manifest.

    Raises CorruptCheckpointError, which names the first file that differs and both digests.
    """
    for name, expected in read_manifest(path)["files"].items():
        file = path / name
        if not file.is_file():
            raise CorruptCheckpointError(f"checkpoint {path}: {name} is missing")
        found_bytes = file.stat().st_size
        if found_bytes != expected["size_bytes"]:
            raise CorruptCheckpointError(
                f"checkpoint {path}: {name} has {found_bytes} bytes, committed were {expected['size_bytes']}"
            )
        if (found := xxh3_128(file)) != expected["xxh3_128"]:
            raise CorruptCheckpointError(
                f"checkpoint {path}: the bytes of {name} changed: "
                f"their xxh3-128 is {found}, committed was {expected['xxh3_128']}"
            )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, after a check against its own digest."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        expected = manifest.pop("xxh3_128")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a committed checkpoint: it has no {MANIFEST}") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptCheckpointError(f"checkpoint {path}: {MANIFEST} cannot be read: {error}") from error
    if (found := manifest_digest(manifest)) != expected:
        raise CorruptCheckpointError(
            f"checkpoint {path}: the bytes of {MANIFEST} changed: its xxh3-128 is {found}, committed was {expected}"
        )
    if manifest["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format {manifest['format_version']}, this version reads format {FORMAT_VERSION}"
        )
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The xxh3-128 of a manifest without its own digest, in JSON with sorted keys."""
    import xxhash

    return xxhash.xxh3_128(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def latest_verified(directory: Path) -> tuple[CheckpointInfo | None, list[SkippedCheckpoint]]:
    """The newest checkpoint whose every byte is right, and the newer ones that had to be skipped."""
    skipped: list[SkippedCheckpoint] = []
    for info in reversed(list_checkpoints(directory)):
        try:
            verify(info.path)
        except (CheckpointError, OSError) as error:
            skipped.append(SkippedCheckpoint(info, str(error)))
        else:
            return info, skipped
    return None, skipped


def read_state(path: Path) -> dict[str, Any]:
    """The state that was saved: "step", "optimizer_step" and what the caller gave."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: {STATE} cannot be read: {error}") from error
    return state


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """Tensors by name, each read from its file when it is looked up, and not kept.

    Ranks of one node that look up a model's tensors in turn map the same pages, so that together they need the memory
    of the largest tensor and not that of as many models as there are ranks.
    """

    def __init__(self, path: Path, places: Mapping[str, tuple[Any, str]]) -> None:
        self._path, self._places = path, dict(places)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import SafetensorError

        file, key = self._places[name]
        try:
            tensor: torch.Tensor = file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CorruptCheckpointError(f"checkpoint {self._path}: tensor {key!r} cannot be read: {error}") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_weights(path: Path, hf_names: Mapping[str, tuple[str, ...]]) -> LazyTensors:
    """The fp32 weights under our names; `hf_names` maps our names to Hugging Face's, as in `CheckpointFormat`."""
    places = _tensors_of(path, "model")
    first = {name: names[0] for name, names in hf_names.items()}
    missing = sorted(set(first.values()) - places.keys())
    if missing:
        raise CheckpointError(
            f"checkpoint {path} lacks {len(missing)} of the {len(hf_names)} parameters of this model, "
            f"for example {missing[0]!r}: it was saved from another model"
        )
    return LazyTensors(path, {name: places[hf_name] for name, hf_name in first.items()})


def tensor_names(path: Path) -> list[str]:
    """The Hugging Face names of a checkpoint's weights, in order."""
    return sorted(_tensors_of(path, "model"))


def read_optimizer(path: Path) -> dict[str, LazyTensors]:
    """The optimizer's state by parameter, in whole-parameter coordinates.

    For example {"embedding.weight": {"row": ..., "column": ...}, "encoder.norm.scale": {"second_moment": ...}}.
    """
    places: dict[str, dict[str, tuple[Any, str]]] = {}
    for name, place in _tensors_of(path, f"{OPTIMIZER}/").items():
        parameter, _, kind = name.rpartition("/")
        places.setdefault(parameter, {})[kind] = place
    return {parameter: LazyTensors(path, kinds) for parameter, kinds in places.items()}


def _tensors_of(path: Path, prefix: str) -> dict[str, tuple[Any, str]]:
    """The open file and the name there of every tensor of the committed safetensors files that begin so.

    Whatever else lies in the folder is not looked at.
    """
    from safetensors import SafetensorError, safe_open

    places: dict[str, tuple[Any, str]] = {}
    for name in sorted(read_manifest(path)["files"]):
        if name.startswith(prefix) and name.endswith(".safetensors"):
            try:
                file: Any = safe_open(path / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CorruptCheckpointError(f"checkpoint {path}: {name} cannot be read: {error}") from error
            places |= {key: (file, key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    return places


def retain(
    infos: Iterable[CheckpointInfo],
    keep_last: int | None,
    protected: Iterable[int] = (),
    keep_every: int | None = None,
) -> list[int]:
    """The steps that may be deleted: all but the newest `keep_last` (None keeps all), those that `keep_every` divides,
    and the protected ones.

    >>> infos = [CheckpointInfo(step, Path(folder_name(step)), 0.0) for step in (100, 200, 300, 400, 500)]
    >>> retain(infos, keep_last=2, protected=[100])
    [200, 300]
    >>> retain(infos, keep_last=1, keep_every=200)
    [100, 300]
    """
    if keep_last is None:
        return []
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; at least the newest checkpoint is kept: 1 or more")
    kept = set(protected)
    steps = sorted(info.step for info in infos)
    return [step for step in steps[:-keep_last] if step not in kept and (keep_every is None or step % keep_every)]


def delete_checkpoint(info: CheckpointInfo) -> None:
    """Delete a checkpoint. It leaves the list in one rename, so that a crash half-way leaves no half of it listed."""
    doomed = info.path.with_name(f".{info.path.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        info.path.rename(doomed)
    except FileNotFoundError:
        return
    fsync_directory(doomed.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(directory: Path) -> list[str]:
    """Remove what a crash left half-written or half-deleted; returns the names. Only while nothing is being saved."""
    names = sorted(path.name for path in directory.iterdir() if _LEFTOVER.fullmatch(path.name))
    for name in names:
        shutil.rmtree(directory / name, ignore_errors=True)
    return names
