"""`mixtura checkpoints export` and `import`: a folder for others, and a folder of ours from what others made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_hub import write_model
from safetensors.torch import load_file, save_file

from mixtura.models.t5 import T5Config, create_model, initialize
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.files import xxh3_128
from mixtura.platform.orchestration.assemble import checkpoint_format
from mixtura.platform.training.checkpoint_writer import CheckpointWriter
from mixtura.platform.training.snapshot import FragmentState, Snapshot
from mixtura.platform.workspace import Run

from .asking import Answer, Ask

SHAPE = T5Config(640, 16, 8, 32, 2, num_layers=1, num_decoder_layers=2)


@pytest.fixture
def source(tmp_path: Path, tiny_vocabulary: Path) -> Path:
    return write_model(tmp_path / "source", SHAPE, tiny_vocabulary)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def digests(folder: Path) -> dict[str, str]:
    return {file.name: xxh3_128(file) for file in folder.iterdir()}


def write_checkpoint(root: Path, config: T5Config, vocabulary: Path) -> Path:
    """The folder of base@300, as training saves it."""
    run = Run(root / "base")
    run.path.mkdir(parents=True)
    run.set_status("done", recipe="quickstart", attempts=1)
    model = create_model(config)
    initialize(model, 1)
    fragments = [
        FragmentState(name, tuple(one.shape), 0, {kind: one.detach().flatten() for kind in ("master", "second_moment")})
        for name, one in model.named_parameters()
    ]
    writer = CheckpointWriter(run.checkpoints, 0, 1, checkpoint_format(config, Vocabulary(vocabulary)))
    writer.save(300, Snapshot(fragments, {}, 300), {})
    writer.wait()
    return run.checkpoints / "step-000300"


def assert_refused(answer: Answer, code: int, *parts: str) -> None:
    assert answer.code == code, answer
    assert answer.message.startswith("error: ")
    for part in parts:
        assert part in answer.message


@pytest.mark.parametrize("architecture", ["encoder_decoder", "shared"])
def test_an_export_has_what_transformers_needs_and_nothing_else_and_may_be_asked_for_again(
    ask: Ask, tmp_path: Path, tiny_vocabulary: Path, architecture: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    config = replace(SHAPE, num_decoder_layers=1, architecture=architecture)
    saved, out = write_checkpoint(tmp_path / "runs", config, tiny_vocabulary), tmp_path / "out"
    command = ("checkpoints", "export", "base@300", str(out), "--root", str(tmp_path / "runs"))
    answer = ask(*command)
    assert answer.code == 0, answer
    assert f"{out} was written: " in answer.output
    assert "optimizer" in {path.name for path in saved.iterdir()}
    names = {"config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == names
    assert all(torch.equal(one, load_file(out / "model.safetensors")[name]) for name, one in weights(saved).items())
    _, report = transformers.T5ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert transformers.AutoTokenizer.from_pretrained(out)("a name").input_ids[-1] == 1

    before = digests(out)
    again = json.loads(ask(*command, "--json").output)
    assert again["was_there"]
    assert again["path"] == str(out)
    assert again["parameters"] == sum(one.numel() for one in create_model(config).parameters())
    assert again["config"]["architecture"] == architecture
    assert set(again["files"]) == names
    assert digests(out) == before
    assert not list(tmp_path.glob(".*"))


def test_an_export_into_a_folder_of_something_else_is_refused_and_touches_nothing(
    ask: Ask, tmp_path: Path, tiny_vocabulary: Path
) -> None:
    write_checkpoint(tmp_path / "runs", SHAPE, tiny_vocabulary)
    out = tmp_path / "out"
    command = ("checkpoints", "export", "base@300", str(out), "--root", str(tmp_path / "runs"))
    out.write_text("a letter")
    assert_refused(ask(*command), 2, f"{out} is a file")
    out.unlink()
    out.mkdir()
    (out / "letter.txt").write_text("a letter")
    assert_refused(ask(*command), 2, f"{out} is there already", "remove the folder, or give another one")
    assert [path.name for path in out.iterdir()] == ["letter.txt"]
    (out / "letter.txt").unlink()
    assert ask(*command).code == 0
    file = out / "model.safetensors"
    changed = {**load_file(file), "decoder.final_layer_norm.weight": torch.zeros(16)}
    save_file(changed, file, {"format": "pt"})
    before = digests(out)
    assert_refused(ask(*command), 2, "its model.safetensors is not what would be written")
    assert digests(out) == before
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_export_left_does_no_harm(ask: Ask, tmp_path: Path, tiny_vocabulary: Path) -> None:
    write_checkpoint(tmp_path / "runs", SHAPE, tiny_vocabulary)
    out = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial/model.safetensors").write_bytes(b"half")
    assert ask("checkpoints", "export", "base@300", str(out), "--root", str(tmp_path / "runs")).code == 0
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change", [{"architecture": "lm"}, {"adapter_size": 4}])
def test_what_transformers_has_no_class_for_is_not_exported(
    ask: Ask, tmp_path: Path, tiny_vocabulary: Path, change: dict[str, Any]
) -> None:
    config = replace(SHAPE, num_decoder_layers=1, **change)
    write_checkpoint(tmp_path / "runs", config, tiny_vocabulary)
    command = ("checkpoints", "export", "base@300", str(tmp_path / "out"), "--root", str(tmp_path / "runs"))
    assert_refused(ask(*command), 2, "for which transformers has no class")


def test_a_damaged_checkpoint_is_not_exported(ask: Ask, tmp_path: Path, tiny_vocabulary: Path) -> None:
    saved = write_checkpoint(tmp_path / "runs", SHAPE, tiny_vocabulary)
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(data))
    command = ("checkpoints", "export", "base@300", str(tmp_path / "out"), "--root", str(tmp_path / "runs"))
    assert_refused(ask(*command), 1, "the bytes of model.safetensors changed")
    assert not (tmp_path / "out").exists()


def test_an_import_is_a_folder_that_answers_and_that_transformers_reads(ask: Ask, tmp_path: Path, source: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "ours"
    halves = {name: one.bfloat16() for name, one in weights(source).items()}
    save_file(halves, source / "model.safetensors", {"format": "pt"})
    answer = ask("checkpoints", "import", str(source), str(out))
    assert answer.code == 0, answer
    assert f"mixtura predict {out}" in answer.output
    assert f"model.from={out}" in answer.output
    assert weights(out).keys() == halves.keys()
    assert all(torch.equal(one, halves[name].float()) for name, one in weights(out).items())
    _, report = transformers.T5ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    said = json.loads(ask("predict", str(out), "a name <extra_id_0>", "--decode-length", "4", "--json").output)
    assert said["input"] == "a name <extra_id_0>"


def test_a_vocabulary_is_asked_for_where_there_is_none_and_has_to_be_the_model_s(
    ask: Ask, tmp_path: Path, source: Path, tiny_vocabulary: Path
) -> None:
    (source / "spiece.model").unlink()
    command = ("checkpoints", "import", str(source), str(tmp_path / "ours"))
    assert_refused(ask(*command), 2, f"{source} has no vocabulary (spiece.model)", "as --vocabulary")
    nowhere = str(tmp_path / "nowhere.model")
    assert_refused(ask(*command, "--vocabulary", nowhere), 2, f"--vocabulary is '{nowhere}', but there is no such file")
    assert ask(*command, "--vocabulary", str(tiny_vocabulary)).code == 0
    assert digests(tmp_path / "ours")["spiece.model"] == xxh3_128(tiny_vocabulary)
    assert_refused(ask("predict", str(source), "a text"), 1, "has no vocabulary", "mixtura checkpoints import")


def test_a_checkpoint_of_t5x_is_imported(ask: Ask, tmp_path: Path, shared: Path) -> None:
    file = shared / "data/t5_checkpoints/t5x_tiny/test_t5_tiny.checkpoint_0"
    spiece = shared / "data/vocab/t5/spiece.model"
    if not (file.is_file() and spiece.is_file()):
        pytest.skip("the tiny checkpoint of t5x or T5's vocabulary is not here")
    folder = tmp_path / "checkpoint_0"
    folder.mkdir()
    shutil.copyfile(file, folder / "checkpoint")
    for number, place in enumerate((file, folder)):
        out = tmp_path / f"ours-{number}"
        answer = ask("checkpoints", "import", str(place), str(out), "--vocabulary", str(spiece), "--json")
        assert answer.code == 0, answer
        assert json.loads(answer.output)["config"]["vocab_size"] == 32128
        assert ask("predict", str(out), "The <extra_id_0> walks", "--decode-length", "3").code == 0


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [
        ("./nowhere", 2, "is a path by its beginning, but nothing is there"),
        ("nobody@last", 2, "no run 'nobody'"),
        ("source", 1, "a pickle, and nothing is unpickled here"),
    ],
)
@pytest.mark.usefixtures("source")
def test_a_source_that_is_none_is_told(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source/model.safetensors").rename(tmp_path / "source/pytorch_model.bin")
    assert_refused(ask("checkpoints", "import", name, "./ours"), code, part)
    assert not (tmp_path / "ours").exists()
