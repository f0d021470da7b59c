"""Trees of arrays as flax writes them: msgpack (msgpack.org, its specification), read in place.

    map    {"encoder": {"block": {"0": ...}}}        a tree of maps with text keys
    ext 1  (shape, dtype name, bytes)                an array, in row-major order; ext 3 is a single number
    map    {"__msgpack_chunked_array__": true, "shape": {"0": ...}, "chunks": {"0": ext 1, ...}}
                                                     an array of more than 2^30 bytes, cut into flat pieces

The file is mapped into memory and only walked over: an array's bytes are touched when it is read. Nothing in the format
names code, and a file that is not what it should be ends in an error that says where.
"""

from __future__ import annotations

import math
import mmap
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.models.t5.stored import StoredTensor

_CHUNKED = "__msgpack_chunked_array__"
_DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64)
}
_DEEPEST = 64

# First byte: (kind, bytes of the length that follows).
_SIZED = {
    first + step: (kind, least << step)
    for first, kind, least, count in (
        (0xC4, "bytes", 1, 3),
        (0xC7, "ext", 1, 3),
        (0xD9, "text", 1, 3),
        (0xDC, "array", 2, 2),
        (0xDE, "map", 2, 2),
    )
    for step in range(count)
}
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {first: f">{code}" for first, code in enumerate("fdBHIQbhiq", start=0xCA)}


def read_tree(path: Path) -> dict[str, Any]:
    """The tree of a file, with a `StoredTensor` for each array.

    Raises ValueError where the file is not such a tree, or ends early.
    """
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise ValueError(f"{path.name} is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    walk = _Walk(data)
    try:
        tree = walk.value()
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is cut short or no msgpack, at byte {walk.at:,}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path.name} has, at byte {walk.at:,}, {error}") from None
    if not isinstance(tree, dict) or walk.at != len(data):
        raise ValueError(f"{path.name} holds no tree of arrays: found {type(tree).__name__} of {walk.at:,} bytes")
    return tree


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree by their path.

    >>> list(flat({"encoder": {"norm": 1}, "step": 2}))
    [('encoder/norm', 1), ('step', 2)]
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


class _Walk:
    """A place in the bytes, which moves on as values are read."""

    def __init__(self, data: mmap.mmap | bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def value(self, depth: int = 0) -> Any:
        """The value that begins here; arrays (ext) become `StoredTensor`."""
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} maps inside each other")
        first = self.data[self.at]
        kind, size = self.head()
        match kind:
            case "map":
                pairs = [(self.value(depth + 1), self.value(depth + 1)) for _ in range(self._counted(size))]
                tree = {key: one for key, one in pairs if isinstance(key, str)}
                return _joined(tree) if _CHUNKED in tree else tree
            case "array":
                return [self.value(depth + 1) for _ in range(self._counted(size))]
            case "text":
                return bytes(self._take(size)).decode()
            case "bytes":
                return bytes(self._take(size))
            case "ext":
                return self._extension(size)
        return _CONSTANTS.get(first, size)

    def head(self) -> tuple[str, Any]:
        """The kind of the value here and its size (of a number: its value); the place is then behind both."""
        first = self._take(1)[0]
        if first in _SIZED:
            kind, width = _SIZED[first]
            return kind, int.from_bytes(self._take(width), "big")
        if first in _FIXED_EXT:
            return "ext", _FIXED_EXT[first]
        if first in _NUMBERS:
            code = _NUMBERS[first]
            return "number", struct.unpack(code, self._take(struct.calcsize(code)))[0]
        if first in _CONSTANTS:
            return "constant", 0
        for kind, low, mask in (("map", 0x80, 0x0F), ("array", 0x90, 0x0F), ("text", 0xA0, 0x1F)):
            if low <= first <= low + mask:
                return kind, first & mask
        if first <= 0x7F or first >= 0xE0:
            return "number", first if first <= 0x7F else first - 256
        raise ValueError(f"{first:#x}, with which no value of msgpack begins")

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise IndexError(f"{count:,} bytes are announced, and {len(self.data) - self.at:,} are left")
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def _counted(self, count: int) -> int:
        """A number of values that can still be there: each takes a byte at least."""
        if count > len(self.data) - self.at:
            raise IndexError(f"{count:,} values are announced, and {len(self.data) - self.at:,} bytes are left")
        return count

    def _extension(self, size: int) -> Any:
        code = self._take(1)[0]
        end = self.at + size
        if end > len(self.data):
            raise IndexError(f"{size:,} bytes are announced, and {len(self.data) - self.at:,} are left")
        if code not in (1, 3):
            self.at = end
            return None
        if self.head() != ("array", 3):
            raise ValueError("an array that is not (shape, dtype, bytes)")
        shape, name = self._shape(), self._dtype()
        stored = self._stored(shape, name, *self.head())
        self.at = end
        return stored

    def _shape(self) -> tuple[int, ...]:
        kind, count = self.head()
        sizes = [self.head() for _ in range(self._counted(count))] if kind == "array" else []
        if kind != "array" or not all(one == "number" and isinstance(size, int) and size >= 0 for one, size in sizes):
            raise ValueError("an array whose shape is no list of sizes")
        return tuple(size for _, size in sizes)

    def _dtype(self) -> str:
        kind, size = self.head()
        name = bytes(self._take(size)).decode() if kind in ("bytes", "text") else kind
        if name not in _DTYPES:
            raise ValueError(f"an array of {name}; known are {', '.join(_DTYPES)}")
        return name

    def _stored(self, shape: tuple[int, ...], name: str, kind: str, length: int) -> StoredTensor:
        dtype, count = _DTYPES[name], math.prod(shape)
        if kind not in ("bytes", "text") or length != count * dtype.itemsize:
            raise ValueError(f"an array {list(shape)} of {name} in {length:,} bytes")
        data, offset = self.data, self.at

        def read() -> Tensor:
            if not count:
                return torch.empty(shape, dtype=dtype)
            with warnings.catch_warnings():  # that the file may not be written to: whoever changes weights copies them
                warnings.simplefilter("ignore", UserWarning)
                return torch.frombuffer(data, dtype=dtype, count=count, offset=offset).reshape(shape)

        return StoredTensor(shape, read)


def _joined(tree: dict[str, Any]) -> StoredTensor:
    """An array from its flat pieces."""
    shape, pieces = (_in_order(tree.get(name)) for name in ("shape", "chunks"))
    whole = all(isinstance(size, int) and size >= 0 for size in shape)
    if not whole or sum(math.prod(piece.shape) for piece in pieces if isinstance(piece, StoredTensor)) != math.prod(
        shape
    ):
        raise ValueError(f"an array {shape} whose pieces do not make it up")
    return StoredTensor(tuple(shape), lambda: torch.cat([piece.read().flatten() for piece in pieces]).reshape(shape))


def _in_order(values: Any) -> list[Any]:
    """The values of {"0": ..., "1": ...}."""
    found = values if isinstance(values, dict) else {}
    return [found[str(place)] for place in range(len(found)) if str(place) in found]
