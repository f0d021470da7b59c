"""Tensors to files, one tensor in memory at a time.

The format is safetensors: eight bytes with the header's length (little-endian), a JSON header that gives every tensor's
dtype, shape and place, then the tensors' bytes without gaps. The library writes a whole dictionary at once; a model
that fills half of the host's memory needs a writer that asks for each tensor only when its turn comes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that will be written under `name`; `make` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @staticmethod
    def of(name: str, tensor: torch.Tensor) -> TensorEntry:
        """An entry for a tensor that is already there."""
        return TensorEntry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


@dataclass(frozen=True)
class WrittenFile:
    """What a manifest says of a file."""

    size_bytes: int
    xxh3_128: str


def write_synced(path: Path, chunks: Iterable[bytes | memoryview]) -> WrittenFile:
    """Write a new file, make it survive a crash of the machine, and return the size and digest of what was written."""
    digest, size_bytes = xxhash.xxh3_128(), 0
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return WrittenFile(size_bytes, digest.hexdigest())


def write_tensors(path: Path, entries: Sequence[TensorEntry]) -> WrittenFile:
    """Write a safetensors file that any reader of the format opens, holding one tensor at a time."""
    return write_synced(path, _chunks(entries))


def _chunks(entries: Sequence[TensorEntry]) -> Iterator[bytes | memoryview]:
    yield _header(entries)
    for entry in entries:
        tensor = entry.make()
        if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
            raise ValueError(
                f"tensor {entry.name!r} was announced as {entry.dtype} {entry.shape}, "
                f"but {tensor.dtype} {tuple(tensor.shape)} came"
            )
        yield _bytes_of(tensor)


def _header(entries: Sequence[TensorEntry]) -> bytes:
    # transformers asks for this metadata before it believes that the tensors are torch's.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        end = begin + entry.size_bytes
        header[entry.name] = {"dtype": _DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format keeps the values aligned
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def split_by_size(entries: Sequence[TensorEntry], max_bytes: int) -> list[list[TensorEntry]]:
    """Cut a list of entries, in order, into files of at most `max_bytes`; a larger tensor gets a file of its own.

    >>> entries = [TensorEntry.of(name, torch.zeros(2)) for name in "abc"]
    >>> [[entry.name for entry in file] for file in split_by_size(entries, max_bytes=16)]
    [['a', 'b'], ['c']]
    """
    files: list[list[TensorEntry]] = [[]]
    size_bytes = 0
    for entry in entries:
        if files[-1] and size_bytes + entry.size_bytes > max_bytes:
            files.append([])
            size_bytes = 0
        files[-1].append(entry)
        size_bytes += entry.size_bytes
    return files


def shard_names(stem: str, count: int) -> list[str]:
    """File names as Hugging Face writes them: one plain name, or numbered shards.

    >>> shard_names("model", 1), shard_names("model", 2)
    (['model.safetensors'], ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'])
    """
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
