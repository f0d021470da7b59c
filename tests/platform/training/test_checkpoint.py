"""What a checkpoint promises: exact values, a readable format, and that changed bytes are never trusted."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from mixtura.platform.errors import CheckpointError, CorruptCheckpointError
from mixtura.platform.training import checkpoint, tensor_files
from mixtura.platform.training.checkpoint import CheckpointFormat, CheckpointInfo
from mixtura.platform.training.checkpoint_writer import CheckpointWriter
from mixtura.platform.training.snapshot import FragmentState, Snapshot

SHAPES = {"embedding.weight": (10, 7), "encoder.wi.weight": (6, 5), "norm.scale": (7,), "scalar": ()}
NAMES = {
    "embedding.weight": ("shared.weight",),
    "encoder.wi.weight": ("wi.weight",),
    "norm.scale": ("norm",),
    "scalar": ("s",),
}
FORMAT = CheckpointFormat(hf_config={"model_type": "t5"}, hf_names=NAMES)


def values_of(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {kind: torch.randn(shape, generator=generator) for kind in ("master", "exp_avg")}
        for name, shape in SHAPES.items()
    }


def snapshots(values: dict[str, dict[str, torch.Tensor]], cuts: list[float], step: int = 7) -> list[Snapshot]:
    """The values cut, as one flat vector, at the given shares: cuts go through parameters and rows as they fall."""
    total = sum(next(iter(tensors.values())).numel() for tensors in values.values())
    edges = [0, *(int(cut * total) for cut in cuts), total]
    ranks = [Snapshot([], {}, step) for _ in edges[1:]]
    offset = 0
    for name, tensors in values.items():
        shape = tuple(tensors["master"].shape)
        numel = tensors["master"].numel()
        for rank, (low, high) in zip(ranks, itertools.pairwise(edges), strict=True):
            begin, end = max(low - offset, 0), min(high - offset, numel)
            if begin < end:
                flat = {kind: tensor.reshape(-1)[begin:end].clone() for kind, tensor in tensors.items()}
                rank.fragments.append(FragmentState(name, shape, begin, flat))
        offset += numel
    for rank in ranks:
        rank.replicated = {"embedding.weight/row": torch.arange(10.0), "embedding.weight/column": torch.arange(7.0)}
    return ranks


def save(directory: Path, step: int, ranks: list[Snapshot], checkpoint_format: CheckpointFormat = FORMAT) -> Path:
    writers = [CheckpointWriter(directory, rank, len(ranks), checkpoint_format) for rank in range(len(ranks))]
    for writer, snapshot in zip(writers, ranks, strict=True):
        writer.save(step, snapshot, {"lanes": {str(writer.rank): [step, 3]}, "config_hash": "abc"})
    for writer in reversed(writers):
        writer.wait()
    return directory / checkpoint.folder_name(step)


@pytest.mark.parametrize("cuts", [[], [0.5], [0.13, 0.71], [0.0, 0.001, 0.999]])
def test_fragments_cut_anywhere_come_back_exactly(tmp_path: Path, cuts: list[float]) -> None:
    values = values_of(seed=1)
    path = save(tmp_path, 100, snapshots(values, cuts))
    checkpoint.verify(path)
    weights, optimizer = checkpoint.read_weights(path, NAMES), checkpoint.read_optimizer(path)
    for name, tensors in values.items():
        torch.testing.assert_close(weights[name], tensors["master"], rtol=0, atol=0)
        torch.testing.assert_close(optimizer[name]["exp_avg"], tensors["exp_avg"], rtol=0, atol=0)
    torch.testing.assert_close(optimizer["embedding.weight"]["row"], torch.arange(10.0))
    torch.testing.assert_close(optimizer["embedding.weight"]["column"], torch.arange(7.0))


def test_the_number_of_ranks_leaves_no_trace_in_the_files(tmp_path: Path) -> None:
    values = values_of(seed=2)
    one, three = save(tmp_path / "1", 5, snapshots(values, [])), save(tmp_path / "3", 5, snapshots(values, [0.3, 0.4]))
    for name in ("model.safetensors", "optimizer/optimizer.safetensors", "config.json"):
        assert (one / name).read_bytes() == (three / name).read_bytes()
    assert not (three / "parts").exists()


def test_ranks_that_all_hold_everything_are_written_once(tmp_path: Path) -> None:
    values = values_of(seed=3)
    path = save(tmp_path, 1, [snapshots(values, [])[0], snapshots(values, [])[0]])
    torch.testing.assert_close(checkpoint.read_weights(path, NAMES)["norm.scale"], values["norm.scale"]["master"])


def test_state_is_merged_over_ranks_and_carries_the_steps(tmp_path: Path) -> None:
    state = checkpoint.read_state(save(tmp_path, 100, snapshots(values_of(4), [0.5], step=99)))
    assert state == {
        "format_version": 1,
        "step": 100,
        "optimizer_step": 99,
        "lanes": {"0": [100, 3], "1": [100, 3]},
        "config_hash": "abc",
    }


def test_large_models_are_cut_into_shards_with_an_index(tmp_path: Path) -> None:
    values = values_of(seed=5)
    small = CheckpointFormat(hf_config={}, hf_names=NAMES, max_shard_bytes=150)
    path = save(tmp_path, 1, snapshots(values, [0.4]), small)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {name for names in NAMES.values() for name in names}
    assert {*index["weight_map"].values()} == {file.name for file in path.glob("model-*.safetensors")}
    assert index["metadata"]["total_size"] == 4 * (70 + 30 + 7 + 1)
    torch.testing.assert_close(
        checkpoint.read_weights(path, NAMES)["embedding.weight"], values["embedding.weight"]["master"]
    )
    checkpoint.verify(path)


def test_any_changed_byte_is_refused_with_the_file_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1, snapshots(values_of(6), [0.5]))
    chance = random.Random(0)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"manifest.json", "state.json", "config.json", "model.safetensors"}
    for file in files:
        original = file.read_bytes()
        for position in chance.sample(range(len(original)), 8):
            changed = bytearray(original)
            changed[position] ^= 1 << chance.randrange(8)
            file.write_bytes(changed)
            if file.name == "manifest.json" and bytes([original[position]]).isspace():
                continue
            with pytest.raises(CorruptCheckpointError, match=file.name):
                checkpoint.verify(path)
        file.write_bytes(original)
    checkpoint.verify(path)


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, snapshots(values_of(step), []))
    weights = tmp_path / "step-000030" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    (tmp_path / "step-000020" / "state.json").unlink()
    info, skipped = checkpoint.latest_verified(tmp_path)
    assert info is not None
    assert info.step == 10
    assert [skip.info.step for skip in skipped] == [30, 20]
    assert "model.safetensors" in skipped[0].reason
    assert "committed was" in skipped[0].reason
    assert "state.json is missing" in skipped[1].reason


def test_a_parameter_with_two_names_is_written_under_both_and_read_by_the_first(tmp_path: Path) -> None:
    values = values_of(seed=7)
    twice = {**NAMES, "encoder.wi.weight": ("encoder.wi.weight", "decoder.wi.weight")}
    path = save(tmp_path, 1, snapshots(values, [0.5]), CheckpointFormat(hf_config={}, hf_names=twice))
    checkpoint.verify(path)
    for name in twice["encoder.wi.weight"]:
        read = checkpoint.read_weights(path, {"ours": (name,)})["ours"]
        torch.testing.assert_close(read, values["encoder.wi.weight"]["master"], rtol=0, atol=0)
    both = checkpoint.read_weights(path, {"ours": ("encoder.wi.weight", "is not looked for")})
    assert list(both) == ["ours"]


def test_a_tensor_is_read_when_it_is_looked_up_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    values = values_of(seed=8)
    path = save(tmp_path, 1, snapshots(values, []))
    read: list[str] = []
    opened = safetensors.safe_open

    class Counted:
        def __init__(self, *given: object, **named: object) -> None:
            self.file = opened(*given, **named)
            self.keys = self.file.keys

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Counted)
    weights, optimizer = checkpoint.read_weights(path, NAMES), checkpoint.read_optimizer(path)
    assert read == []
    assert len(weights) == 4
    torch.testing.assert_close(weights["norm.scale"], values["norm.scale"]["master"])
    torch.testing.assert_close(optimizer["norm.scale"]["exp_avg"], values["norm.scale"]["exp_avg"])
    assert read == ["norm", "norm.scale/exp_avg"]


def test_a_foreign_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the folder beside what the manifest names: as code, or as tensors of the same names."""
    import pickle

    from safetensors.torch import save_file

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    values = values_of(seed=9)
    path = save(tmp_path / "run", 1, snapshots(values, [0.5]))
    for name in ("pytorch_model.bin", "model.pt", "state.pkl", "optimizer/optimizer.pt", "rng_state.pth"):
        (path / name).write_bytes(pickle.dumps(Hostile()))
    save_file({"norm": torch.zeros(7)}, path / "model-99999-of-99999.safetensors")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    info, skipped = checkpoint.latest_verified(tmp_path / "run")
    assert info is not None
    assert not skipped
    read, optimizer = checkpoint.read_weights(info.path, NAMES), checkpoint.read_optimizer(info.path)
    assert checkpoint.read_state(info.path)["step"] == 1
    for name, tensors in values.items():
        torch.testing.assert_close(read[name], tensors["master"], rtol=0, atol=0)
        torch.testing.assert_close(optimizer[name]["exp_avg"], tensors["exp_avg"], rtol=0, atol=0)
    assert not (tmp_path / "owned").exists()


def test_what_has_no_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10, snapshots(values_of(1), []))
    (tmp_path / "step-000020").mkdir()
    (tmp_path / ".step-000030.0.partial" / "parts").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert [info.step for info in checkpoint.list_checkpoints(tmp_path)] == [10]
    assert checkpoint.list_checkpoints(tmp_path / "absent") == []
    with pytest.raises(CheckpointError, match=r"not a committed checkpoint"):
        checkpoint.verify(tmp_path / "step-000020")


def test_leftovers_of_a_crash_are_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / ".step-000030.0.partial" / "parts").mkdir(parents=True)
    (tmp_path / ".step-000010.deleted").mkdir()
    CheckpointWriter(tmp_path, 1, 2, FORMAT)
    assert len(list(tmp_path.iterdir())) == 2
    CheckpointWriter(tmp_path, 0, 2, FORMAT)
    assert list(tmp_path.iterdir()) == []


def test_retention_keeps_the_newest_the_protected_and_one_of_every_so_many_steps() -> None:
    infos = [CheckpointInfo(step, Path(f"step-{step}"), 0.0) for step in (1, 2, 3, 4, 5)]
    assert checkpoint.retain(infos, None) == []
    assert checkpoint.retain(infos, 2, protected=[1]) == [2, 3]
    assert checkpoint.retain(infos, 9) == []
    assert checkpoint.retain(infos, 1, protected=[3], keep_every=2) == [1]
    with pytest.raises(ValueError, match="at least the newest"):
        checkpoint.retain(infos, 0)


def test_deleting_leaves_nothing_behind(tmp_path: Path) -> None:
    save(tmp_path, 10, snapshots(values_of(1), []))
    (info,) = checkpoint.list_checkpoints(tmp_path)
    assert info.size_bytes > 0
    checkpoint.delete_checkpoint(info)
    checkpoint.delete_checkpoint(info)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10, snapshots(values_of(1), []))
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 1 parameters .* 'decoder.weight'"):
        checkpoint.read_weights(path, {"ours": ("decoder.weight",)})


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10, snapshots(values_of(1), []))
    manifest = json.loads((path / "manifest.json").read_text()) | {"format_version": 2}
    del manifest["xxh3_128"]
    manifest["xxh3_128"] = checkpoint.manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="has format 2, this version reads format 1"):
        checkpoint.verify(path)


def test_tensor_files_hold_one_tensor_at_a_time_and_are_read_by_the_library(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    alive: list[str] = []

    def make(name: str, value: float) -> torch.Tensor:
        alive.append(name)
        return torch.full((2, 3), value, dtype=torch.bfloat16)

    entries = [
        tensor_files.TensorEntry(name, (2, 3), torch.bfloat16, lambda name=name, i=i: make(name, i))
        for i, name in enumerate("abc")
    ]
    written = tensor_files.write_tensors(tmp_path / "x.safetensors", entries)
    assert alive == ["a", "b", "c"]
    assert written.size_bytes == (tmp_path / "x.safetensors").stat().st_size
    loaded = load_file(tmp_path / "x.safetensors")
    assert {name: tensor.mean().item() for name, tensor in loaded.items()} == {"a": 0.0, "b": 1.0, "c": 2.0}
    with pytest.raises(ValueError, match="was announced as"):
        tensor_files.write_tensors(
            tmp_path / "y", [tensor_files.TensorEntry("a", (3,), torch.float32, lambda: torch.zeros(2))]
        )


@pytest.mark.slow
def test_a_checkpoint_is_a_hugging_face_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    parameters = dict(model.named_parameters())
    ours = {f"ours.{name}": {"master": tensor.detach().clone()} for name, tensor in parameters.items()}
    checkpoint_format = CheckpointFormat(
        hf_config={**config.to_dict(), "architectures": ["T5ForConditionalGeneration"], "dtype": "float32"},
        hf_names={f"ours.{name}": (name,) for name in parameters},
        json_files={"generation_config.json": model.generation_config.to_dict()},
    )
    path = save(tmp_path, 3, snapshots(ours, [0.33]), checkpoint_format)
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(path).eval()
    ids = torch.arange(2, 12)[None]
    torch.testing.assert_close(
        loaded(input_ids=ids, decoder_input_ids=ids).logits,
        model(input_ids=ids, decoder_input_ids=ids).logits,
        rtol=0,
        atol=0,
    )
