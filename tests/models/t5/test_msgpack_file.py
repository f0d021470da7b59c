from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mixtura.models.t5.msgpack_file import flat, read_tree
from mixtura.models.t5.stored import StoredTensor

msgpack = pytest.importorskip("msgpack")


def array(tensor: torch.Tensor, name: str | None = None, code: int = 1) -> Any:
    """An array as flax packs it."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    name = name or str(tensor.dtype).removeprefix("torch.")
    return msgpack.ExtType(code, msgpack.packb((list(tensor.shape), name, data)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flax_model.msgpack"


def test_a_tree_comes_back(file: Path) -> None:
    tensors = {
        "float32": torch.randn(3, 5),
        "bfloat16": torch.randn(4).bfloat16(),
        "float16": torch.randn(2, 2, 2).half(),
        "float64": torch.randn(1).double(),
        "int32": torch.arange(70_000, dtype=torch.int32),
        "int64": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    plain: dict[str, Any] = {
        "numbers": [0, -1, -32, 127, 128, -129, 300, -300, 70_000, -70_000, 1 << 40, -(1 << 40), 0.5],
        "constants": [None, True, False],
        "texts": ["é" * length for length in (3, 40, 300, 70_000)],
        "bytes": [bytes(length) for length in (3, 300, 70_000)],
        "map": {str(number): number for number in range(70_000)},
    }
    packed = {"deep": {"er": {name: array(tensor) for name, tensor in tensors.items()}}, "plain": plain}
    file.write_bytes(msgpack.packb(packed))
    found = read_tree(file)
    assert found["plain"] == plain
    for name, tensor in tensors.items():
        stored = found["deep"]["er"][name]
        assert stored.shape == tensor.shape
        torch.testing.assert_close(stored.read(), tensor, rtol=0, atol=0)


def test_a_number_with_a_precision_of_its_own_and_values_of_other_kinds_are_read(file: Path) -> None:
    file.write_bytes(
        msgpack.packb({"step": array(torch.tensor(3, dtype=torch.int32), code=3), "other": msgpack.ExtType(2, b"x")})
    )
    found = read_tree(file)
    assert found["step"].read().item() == 3
    assert found["other"] is None


def test_an_array_in_pieces_is_put_together(file: Path) -> None:
    whole = torch.randn(6, 7)
    pieces = {str(number): array(piece) for number, piece in enumerate(whole.flatten().split(10))}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 6, "1": 7}, "chunks": pieces}
    file.write_bytes(msgpack.packb({"kernel": chunked}))
    stored = read_tree(file)["kernel"]
    assert isinstance(stored, StoredTensor)
    assert stored.shape == (6, 7)
    assert torch.equal(stored.read(), whole)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (array(torch.zeros(3), name="complex64"), "an array of complex64; known are float32"),
        (array(torch.zeros(3), name="float64"), r"an array \[3\] of float64 in 12 bytes"),
        (msgpack.ExtType(1, msgpack.packb([[-1, -3], "float32", bytes(12)])), "no list of sizes"),
        (msgpack.ExtType(1, msgpack.packb([[3], "float32"])), "not \\(shape, dtype, bytes\\)"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 6}, "chunks": {"0": array(torch.zeros(5))}}, "make it up"),
        ({"__msgpack_chunked_array__": True}, "make it up"),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(file: Path, value: Any, message: str) -> None:
    file.write_bytes(msgpack.packb({"kernel": value}))
    with pytest.raises(ValueError, match=f"flax_model.msgpack has, at byte .*{message}"):
        read_tree(file)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04", msgpack.packb([1]), msgpack.packb({"a": 1}) + b"\x00", b"\xdf\xff\xff\xff\xff", b"\x81" * 99],
)
def test_what_is_no_tree_is_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"flax_model\.msgpack"):
        read_tree(file)


def test_damage_anywhere_is_an_error_or_another_tree(file: Path) -> None:
    """Never another exception, and never much memory: lengths are announced before their bytes."""
    data = msgpack.packb({"a": {"kernel": array(torch.randn(4, 3)), "n": [1, 2.5, None]}, "step": 3, "t": "text" * 20})
    chance = random.Random(0)
    for number in range(len(data) + 600):
        damaged = bytearray(data)
        if number < len(data):
            damaged = damaged[:number]
        else:
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(len(data))] = chance.randrange(256)
        file.write_bytes(bytes(damaged))
        try:
            found = read_tree(file)
        except ValueError:
            continue
        for _, leaf in flat(found):
            if isinstance(leaf, StoredTensor):
                assert leaf.read().shape == leaf.shape
