"""`model.from`: what a run takes over of another model, what it refuses, and that it goes on without its source."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from model_hub import COMMIT, REPOSITORY, ModelHub, write_model
from object_store import Store, serve
from safetensors.torch import load_file, save_file

from mixtura.models.t5 import T5Config, create_model
from mixtura.platform.config import Config
from mixtura.platform.errors import CheckpointError, MixturaError, RequestError
from mixtura.platform.orchestration.ensembles import answerer
from mixtura.platform.orchestration.ensembles import load as loaded
from mixtura.platform.orchestration.predict import answers
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.training.checkpoint import list_checkpoints, read_state
from mixtura.platform.workspace import Run, workspace

RECIPE = """
mixture: {tasks: [python_docs_returns]}
data: {inputs_length: 48, targets_length: 24, block_size: 32, lanes: 6, segment_rows: 1}
schedule: {name: constant, factor: 0.01}
training: {steps: 4, global_batch_size: 12, microbatch_size: 6}
checkpoints: {every: 2}
evaluation: {examples: 2, decode_length: 8, when: after, test: false}
executor: {kind: inline}
"""
STILL = ("schedule.factor=1e-30", "training.steps=1", "evaluation.test=false")
"""A rate that changes no weight."""

SHAPE = T5Config(640, 32, 8, 64, 4, num_layers=2, num_decoder_layers=1, feed_forward="gated-gelu", tie_embeddings=False)


@dataclass
class Lines(SilentReporter):
    """Keeps the lines that a person would see."""

    lines: list[str] = field(default_factory=list)

    def line(self, text: str = "") -> None:
        self.lines.append(text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], notes: str = "") -> None:
        self.lines += [title, notes]


@pytest.fixture
def source(tmp_path: Path, tiny_vocabulary: Path) -> Path:
    """A model of T5 1.1's kind, of an odd shape."""
    return write_model(tmp_path / "t5-odd", SHAPE, tiny_vocabulary)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return str(tmp_path / "mine.yaml")


Load = Callable[..., Config]
Train = Callable[..., list[str]]


@pytest.fixture
def load(recipe: str, new_workspace: Path) -> Load:
    """The configuration with everything that the starting model brings."""
    return lambda name, *given: load_recipe(recipe, [f"run.root={new_workspace}", f"run.name={name}", *given])


@pytest.fixture
def train(recipe: str, load: Load) -> Train:
    """Trains under a name, as the command does; returns what was said."""

    def run(name: str, *given: str) -> list[str]:
        said = Lines()
        assert train_recipe(recipe, load(name, *given), said)
        return said.lines

    return run


def last(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1].path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# ---- what it brings --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_brings_weights_shape_and_vocabulary_and_what_comes_out_is_such_a_folder(
    source: Path, train: Train, new_workspace: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    train("still", f"model.from={source}", *STILL)
    run = Run(new_workspace / "still")
    section = run.config().model
    assert (section.d_model, section.num_layers, section.num_decoder_layers) == (32, 2, 1)
    assert (section.feed_forward, section.tie_embeddings, section.embedding_rows) == ("gated-gelu", False, 640)
    assert section.resolved is not None
    assert section.resolved.startswith(f"{source} xxh3-128:")
    saved = last(run.path)
    assert (saved / "spiece.model").read_bytes() == (source / "spiece.model").read_bytes()
    assert_same(weights(saved), weights(source))
    theirs, report = transformers.T5ForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not any(report.values())
    tokens = torch.randint(2, 600, (2, 9))
    expected = transformers.T5ForConditionalGeneration.from_pretrained(source)(tokens, decoder_input_ids=tokens).logits
    assert torch.equal(theirs(tokens, decoder_input_ids=tokens).logits, expected)


@pytest.mark.slow
def test_a_checkpoint_of_a_run_and_an_alias_bring_weights_and_no_optimizer(
    source: Path, train: Train, load: Load, new_workspace: Path
) -> None:
    train("first", f"model.from={source}")
    train("second", "model.from=first@2", *STILL)
    two = new_workspace / "first/checkpoints/step-000002"
    assert_same(weights(last(new_workspace / "second")), weights(two))
    assert read_state(last(new_workspace / "second"))["optimizer_step"] == 1

    alias = load("third", "model.from=models:/first@champion").model.resolved
    assert alias is not None
    assert Path(alias.partition(" ")[0]).parent == new_workspace / "first/checkpoints"

    newest = load("third", "model.from=first@last").model.resolved
    train("third", "model.from=first@last", *STILL)
    train("first", f"model.from={source}", "training.steps=6")
    train("third", "model.from=first@last", *STILL, "training.steps=2")
    assert newest is not None
    assert newest.startswith(f"{two.with_name('step-000004')} ")
    assert Run(new_workspace / "third").config().model.resolved == newest, "it goes on with what it began with"


@pytest.mark.slow
def test_adapters_begin_anew_in_a_model_that_has_none_and_alone_change_beside_the_norms(
    source: Path, train: Train, new_workspace: Path
) -> None:
    train("adapted", f"model.from={source}", "model.adapter_size=4", "training.steps=2")
    found, before = weights(last(new_workspace / "adapted")), create_model(SHAPE).state_dict()
    added = found.keys() - before.keys()
    assert added
    assert all(".adapter" in name for name in added)
    (theirs,) = [tensor for name, tensor in weights(source).items() if name == "shared.weight"]
    assert torch.equal(found["embedding.weight"], theirs)


@pytest.mark.slow
def test_a_checkpoint_of_t5x_is_trained_on_with_the_vocabulary_that_is_given(
    shared: Path, train: Train, new_workspace: Path
) -> None:
    file = shared / "data/t5_checkpoints/t5x_tiny/test_t5_tiny.checkpoint_0"
    spiece = shared / "data/vocab/t5/spiece.model"
    if not (file.is_file() and spiece.is_file()):
        pytest.skip("the tiny checkpoint of t5x or T5's vocabulary is not here")
    given = (f"model.from={file}", "model.dropout_rate=0")
    with pytest.raises(RequestError, match="has no vocabulary .* as vocabulary.path"):
        train("t5x", *given)
    train("t5x", *given, f"vocabulary.path={spiece}", *STILL)
    found = weights(last(new_workspace / "t5x"))
    assert found["lm_head.weight"].shape == (32128, 8)
    assert Run(new_workspace / "t5x").config().model.d_kv == 3


@pytest.fixture
def hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A hub with the model, for this process, whose client has read its settings already."""
    from huggingface_hub import constants

    with serve(ModelHub, {file.name: file.read_bytes() for file in source.iterdir()}) as store:
        endpoint = f"http://127.0.0.1:{store.port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "".join(template[1:]))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield store


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_a_model_of_the_hub_is_pinned_to_its_commit(source: Path, train: Train, new_workspace: Path) -> None:
    train("hub", f"model.from={REPOSITORY}", *STILL)
    run = Run(new_workspace / "hub")
    assert run.config().model.resolved == f"{REPOSITORY}@{COMMIT} {COMMIT}"
    assert_same(weights(last(run.path)), weights(source))


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model.d_model=64"], r"model.d_model is 64 in the recipe, 32 in .*t5-odd\n"),
        (
            ["model.size=small"],
            r"\(model.size=small\) says something else:\n.*model.d_model is 512 in the recipe, 32 in",
        ),
        (["model.tie_embeddings=true", "model.num_layers=3"], r"num_layers is 3 .*\n.*tie_embeddings is True"),
        (["model.embedding_rows=768"], "embedding_rows is 768 in the recipe, 640"),
        (["model.architecture=lm"], "architecture is 'lm' in the recipe, 'encoder_decoder'"),
        (["run.from=first@last"], "give one of them"),
        (
            ["vocabulary.path=/nowhere/spiece.model"],
            "vocabulary.path is '/nowhere/spiece.model', but there is no such file",
        ),
        (["model.resolved=t5-odd"], "says no place and digest"),
    ],
)
def test_a_recipe_that_says_something_else_is_refused_before_any_work(
    source: Path, load: Load, new_workspace: Path, given: list[str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        load("bad", f"model.from={source}", *given)
    assert [path.name for path in new_workspace.iterdir()] == ["caches"]


def test_another_vocabulary_none_and_one_too_large_are_refused(
    source: Path, load: Load, tiny_vocabulary: Path, tmp_path: Path
) -> None:
    from mixtura.platform.data.vocabulary import train_vocabulary

    other = tmp_path / "other.model"
    train_vocabulary([f"other words {number} and more of them" for number in range(50)], other, 130)
    with pytest.raises(RequestError, match="was trained with another vocabulary"):
        load("bad", f"model.from={source}", f"vocabulary.path={other}")
    same = f"vocabulary.path={tiny_vocabulary}"
    assert load("good", f"model.from={source}", same).vocabulary.path == str(tiny_vocabulary)
    (source / "spiece.model").unlink()
    with pytest.raises(RequestError, match="has no vocabulary"):
        load("bad", f"model.from={source}")
    small = write_model(
        tmp_path / "small", T5Config(512, 16, 8, 16, 2, num_layers=1, num_decoder_layers=1), tiny_vocabulary
    )
    with pytest.raises(RequestError, match="has 600 ids, but the embedding .* only 512 rows"):
        load("bad", f"model.from={small}")


def test_what_is_no_model_is_refused(source: Path, load: Load, tmp_path: Path) -> None:
    cases: list[tuple[str, type[MixturaError], str]] = [
        ("./nowhere", RequestError, "nothing is there"),
        ("nobody@last", RequestError, "no run 'nobody'"),
        (str(tmp_path / "mine.yaml"), CheckpointError, "is no model: give a folder with config.json"),
        (str(tmp_path), CheckpointError, "it has no config.json"),
    ]
    for start, error, message in cases:
        with pytest.raises(error, match=message):
            load("bad", f"model.from={start}")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"a pickle, and nothing is unpickled here(.|\n)*python -c"):
        load("bad", f"model.from={source}")


def test_other_numbers_than_recipes_have_words_for_are_refused(
    load: Load, tiny_vocabulary: Path, tmp_path: Path
) -> None:
    config = T5Config(640, 16, 8, 16, 2, num_layers=1, num_decoder_layers=1, relative_attention_num_buckets=16)
    folder = write_model(tmp_path / "buckets", config, tiny_vocabulary)
    with pytest.raises(RequestError, match="relative_attention_num_buckets = 16, and models here have 32"):
        load("bad", f"model.from={folder}")


def test_dropout_may_be_chosen_anew(source: Path, load: Load) -> None:
    assert load("mine", f"model.from={source}").model.dropout_rate == 0.1
    assert load("mine", f"model.from={source}", "model.dropout_rate=0").model.dropout_rate == 0


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_goes_on_without_its_source_once_it_has_a_checkpoint(
    source: Path, train: Train, new_workspace: Path, steps_of: Callable[[Path], dict[int, Any]]
) -> None:
    start = f"model.from={source}"
    train("whole", start)
    train("orphan", start, "training.steps=2")
    before = Run(new_workspace / "orphan").config()
    shutil.rmtree(source)
    train("orphan", start)
    assert steps_of(new_workspace / "orphan") == steps_of(new_workspace / "whole")
    after = Run(new_workspace / "orphan").config()
    assert after.model == before.model
    with pytest.raises(MixturaError, match="model.d_ff"):
        train("orphan", start, "model.d_ff=128", "training.steps=5")


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew_with_other_settings_or_another_model(
    source: Path, tiny_vocabulary: Path, recipe: str, load: Load, train: Train, new_workspace: Path
) -> None:
    """As after a run that failed or was killed before it saved: nothing of it is worth a new name."""
    start = f"model.from={source}"
    run = Run(new_workspace / "again")
    assert run.begin(recipe, load("again", start)) == 1
    run.events.mkdir()
    (run.events / "train-0001-0.jsonl").write_text("")
    (run.path / "stream.json").write_text("{}")
    said = train("again", start, "schedule.factor=0.02", "training.steps=2")
    assert "run 'again' was begun with other settings and has no checkpoint yet: it begins anew" in said
    assert run.facts()["attempts"] == 1
    assert not (run.events / "train-0001-0.jsonl").exists()
    with pytest.raises(MixturaError, match=r"schedule.factor \(mathematics\): 0.02 -> 0.03"):
        train("again", start, "schedule.factor=0.03")

    other = Run(new_workspace / "other")
    other.begin(recipe, load("other", start))
    shutil.rmtree(source)
    write_model(source, SHAPE, tiny_vocabulary, seed=2)
    assert any("begins anew" in line for line in train("other", start, *STILL))
    assert_same(weights(last(other.path)), weights(source))


def test_a_configuration_that_says_which_model_it_was_is_held_to_it(
    source: Path, tiny_vocabulary: Path, load: Load, tmp_path: Path
) -> None:
    start = f"model.from={source}"
    found = load("mine", start).model.resolved
    assert load("mine", start, f"model.resolved={found}").model.resolved == found
    shutil.rmtree(source)
    write_model(source, SHAPE, tiny_vocabulary, seed=2)
    with pytest.raises(RequestError, match="put the model back, or leave model.resolved out"):
        load("mine", start, f"model.resolved={found}")


# ---- answering -------------------------------------------------------------------------------------------------------


def test_any_folder_of_hugging_face_answers_and_sentinels_go_in_and_come_out(
    source: Path, tmp_path: Path, tiny_vocabulary: Path
) -> None:
    """A model whose head says after anything what its encoder saw last before EOS."""
    from mixtura.platform.data.vocabulary import Vocabulary

    sentinel = Vocabulary(tiny_vocabulary).sentinel(7)
    tensors = weights(source)
    tensors = {name: torch.zeros_like(tensor) if "norm" not in name else tensor for name, tensor in tensors.items()}
    tensors["decoder.final_layer_norm.weight"] = torch.ones(32)
    tensors["shared.weight"][:, 0] = 1
    tensors["lm_head.weight"][sentinel, 0] = 1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (answer,) = answers(*loaded(answerer(workspace(str(tmp_path)), str(source))), ["a <extra_id_0> b"], 3)
    assert answer.text == "<extra_id_7> <extra_id_7> <extra_id_7>"
