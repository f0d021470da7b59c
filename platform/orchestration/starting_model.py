"""`model.from`: beginning with the weights of another model, and with its shape and its vocabulary.

    model.from: google-t5/t5-small      ->  model.d_model=512 ... model.embedding_rows=32128
                                            model.resolved=google-t5/t5-small@df1b051c... df1b051c...
                                            its spiece.model, copied to the run's caches

A recipe that says something else about the shape or the vocabulary is refused with both values; dropout, adapters and
whatever else is no shape may be chosen anew. What was found is kept in the run's configuration, and the same command
goes on with it, whatever `RUN@last` or a branch of the hub means by then. Once the run has a checkpoint of its own, the
source is not needed any more. The optimizer begins anew, and so does the stream; `run.from` goes on with both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from mixtura.platform.config import Config, ModelSection, validated
from mixtura.platform.data.vocabulary import ROWS_MULTIPLE, Vocabulary
from mixtura.platform.errors import CheckpointError, ConfigError, RequestError
from mixtura.platform.files import exclusive_lock, xxh3_128
from mixtura.platform.filesystems import Found, digest
from mixtura.platform.orchestration.assemble import model_config, read_model, take_weights
from mixtura.platform.orchestration.hub import HubName, hub_folder, parse_hub_name
from mixtura.platform.orchestration.select import place_of
from mixtura.platform.training.checkpoint import MANIFEST, list_checkpoints, verify
from mixtura.platform.workspace import Run, Workspace

if TYPE_CHECKING:
    from mixtura.models.t5 import T5Config, TextToText
    from mixtura.models.t5.stored import ForeignModel

_CHOSEN_ANEW = {"dropout_rate", "dropout_over_length", "adapter_size"}
"""What is no shape of the weights that are taken."""


@dataclass(frozen=True)
class StartingModel:
    """A model to begin with."""

    place: str
    """An absolute path, or a name at the hub with its commit: the same model whenever it is asked for."""
    digest: str
    """Of its files; a commit stands for its own."""
    config: T5Config
    vocabulary: Path | None


def settled(config: Config, space: Workspace, run: Run) -> Config:
    """The configuration with everything that a starting model brings; the same one where there is none.

    Raises RequestError where the recipe says something else than the model, or where the model is not any more what
    `model.resolved` says.
    """
    if config.model.start is None:
        return config
    before = _begun(config, run)
    if before is not None and list_checkpoints(run.checkpoints):
        brought = {name: value for name, value in before if getattr(config.model, name) is None}
    else:
        start = _found(space, config.model, before)
        brought = {**_brought(config, start), "resolved": f"{start.place} {start.digest}"}
        asked, given = str(config.model.start), config.vocabulary.path
        path = None if given is None else Path(given)
        chosen_vocabulary(asked, start.vocabulary, start.config.vocab_size, path, "vocabulary.path")
    values = config.to_dict()
    values["model"] |= {name: value for name, value in brought.items() if name != "start"}
    return validated(values, where=f"the recipe with the numbers of {config.model.start}")


def starting_vocabulary(config: Config, space: Workspace) -> Path:
    """The vocabulary of what a run begins with, as a copy that all nodes can read: of its starting model, if it is a
    settled configuration, or of the checkpoint of `run.from`."""
    if config.vocabulary.path is not None:
        return Path(config.vocabulary.path)
    if config.run.fork is not None:
        return vocabulary_of(space, place_of(space, config.run.fork))
    place = _resolved(config.model)[0]
    hub = _hub_name(place)
    return vocabulary_of(space, Path(place) if hub is None else hub_folder(hub, weights=False))


def vocabulary_of(space: Workspace, checkpoint: Path | HubName) -> Path:
    """The vocabulary of a checkpoint of ours, as a copy that stays when the checkpoint goes."""
    from mixtura.models.t5.hugging_face import VOCABULARY

    source = checkpoint / VOCABULARY if isinstance(checkpoint, Path) else None
    if source is None or not source.is_file():
        raise RequestError(f"{checkpoint} has no vocabulary (spiece.model) to go on with")
    return _copied(source, space)


def _copied(source: Path, space: Workspace) -> Path:
    path = space.caches / f"vocabulary-{xxh3_128(source)}" / "spiece.model"
    with exclusive_lock(path.with_name(".lock"), "the vocabulary is being copied", wait=True):
        if not path.is_file() or xxh3_128(path) != xxh3_128(source):
            partial = path.with_name(".spiece.model.partial")
            shutil.copyfile(source, partial)
            partial.replace(path)
    return path


def load_starting_weights(model: TextToText, config: Config) -> None:
    """Copy the starting model's weights into a new model; adapters that it does not have keep their first values."""
    found = starting_model(config)
    without = [name for name in take_weights(model, found.weights) if ".adapter" not in name]
    if without:
        raise CheckpointError(
            f"{config.model.start} has no weights for {len(without)} parameters, for example {without[0]!r}"
        )


def starting_model(config: Config) -> ForeignModel:
    """The model that a settled configuration begins with, downloaded if need be; its weights are not read yet."""
    place = _resolved(config.model)[0]
    hub = _hub_name(place)
    return read_model(Path(place) if hub is None else hub_folder(hub, weights=True))


def _begun(config: Config, run: Run) -> ModelSection | None:
    """What a run of the same `model.from` has in its configuration, where there is one."""
    before = run.config().model if run.exists() else None
    return before if before is not None and before.start == config.model.start and before.resolved else None


def _resolved(section: ModelSection) -> tuple[str, str]:
    """Place and digest."""
    place, space, digest_text = (section.resolved or "").rpartition(" ")
    if not space:
        raise ConfigError(
            f"model.resolved is {section.resolved!r}, which says no place and digest: leave it out, it is filled in"
        )
    return place, digest_text


def _hub_name(place: str) -> HubName | None:
    return None if place.startswith("/") else parse_hub_name(place)


def _found(space: Workspace, asked: ModelSection, before: ModelSection | None) -> StartingModel:
    """The model that `model.from` means: the one at the place where it was before, as long as there is one."""
    if asked.resolved is not None:
        place, expected = _resolved(asked)
        start = _at(_hub_name(place) or Path(place))
        if start.digest != expected:
            raise RequestError(
                f"model.resolved says that {place} has the digest {expected}, and what is there has {start.digest}: "
                "put the model back, or leave model.resolved out to begin with what is there"
            )
        return start
    if before is not None:
        place, _ = _resolved(before)
        hub = _hub_name(place)
        if hub is not None or Path(place).exists():
            return _at(hub or Path(place))
    return _at(place_of(space, str(asked.start)))


def _at(place: Path | HubName) -> StartingModel:
    """The model at a place: what it is, and its digest. Of the hub only what describes it is downloaded."""
    from mixtura.models.t5.convert import config_from_hf
    from mixtura.models.t5.hugging_face import VOCABULARY, read_config

    if isinstance(place, HubName):
        folder = hub_folder(place, weights=False)
        commit, vocabulary = folder.name, folder / VOCABULARY
        try:
            config = config_from_hf(read_config(folder))
        except ValueError as error:
            raise CheckpointError(f"{place} at the hub is no T5 that can be read: {error}") from error
        return StartingModel(
            str(replace(place, revision=commit)), commit, config, vocabulary if vocabulary.is_file() else None
        )
    if (place / MANIFEST).is_file():
        verify(place)
    found = read_model(place)
    return StartingModel(str(place), _digest(place), found.config, found.vocabulary)


def _digest(path: Path) -> str:
    """Of a checkpoint of ours its manifest's, which covers all files; of others the files that a model is made of."""
    if (path / MANIFEST).is_file():
        return f"xxh3-128:{xxh3_128(path / MANIFEST)}"
    state = xxhash.xxh3_128()
    for file in [path] if path.is_file() else _files(path):
        stat = file.stat()
        state.update(f"{file.name}\0{digest(Found(str(file), stat.st_size, str(stat.st_mtime_ns)))}\0".encode())
    return f"xxh3-128:{state.hexdigest()}"


def _files(folder: Path) -> Iterator[Path]:
    from mixtura.models.t5.hugging_face import CONFIG, VOCABULARY, weight_files

    names = [CONFIG, VOCABULARY, *weight_files(file.name for file in folder.iterdir())]
    yield from (folder / name for name in names if (folder / name).is_file())


def _brought(config: Config, start: StartingModel) -> dict[str, Any]:
    """The model's numbers as keys of a recipe. Raises RequestError where the recipe has others."""
    from mixtura.models.t5 import SIZES

    section, asked = config.model, config.model.start
    theirs = {**asdict(start.config), "embedding_rows": start.config.vocab_size}
    keys = [name for name in type(section).model_fields if name in theirs]
    size = SIZES.get(section.size or "")
    contradictions = []
    for name in keys:
        given = getattr(section, name)
        if given is None and size is not None and name != "embedding_rows":
            given = getattr(size, name)
        may_differ = name in _CHOSEN_ANEW and not (name == "adapter_size" and theirs[name] is not None)
        if given is not None and given != theirs[name] and not may_differ:
            contradictions.append(f"  model.{name} is {given!r} in the recipe, {theirs[name]!r} in {asked}")
    if contradictions:
        by_size = f" (model.size={section.size})" if section.size else ""
        raise RequestError(
            f"model.from brings the shape of its model, and the recipe{by_size} says something else:\n"
            + "\n".join(contradictions)
            + "\nLeave these keys out, or begin with another model"
        )
    brought = {name: theirs[name] for name in keys if name != "dropout_over_length" and getattr(section, name) is None}
    _refuse_what_recipes_cannot_say(config, start, brought)
    return brought


def _refuse_what_recipes_cannot_say(config: Config, start: StartingModel, brought: dict[str, Any]) -> None:
    section = config.model.model_copy(update=brought)
    ours, theirs = asdict(model_config(section, ROWS_MULTIPLE)), asdict(start.config)
    others = [name for name in theirs if ours[name] != theirs[name] and name not in _CHOSEN_ANEW]
    if others:
        name = others[0]
        raise RequestError(f"{config.model.start} has {name} = {theirs[name]!r}, and models here have {ours[name]!r}")


def chosen_vocabulary(asked: str, own: Path | None, rows: int, given: Path | None, key: str) -> Path:
    """The vocabulary of a model whose embedding has so many rows: its own, or the one that is given as `key`.

    Raises RequestError where there is none, where the two are not the same, and where it does not fit the embedding.
    """
    if given is not None and not given.is_file():
        raise RequestError(f"{key} is '{given}', but there is no such file")
    if own is not None and given is not None and xxh3_128(own) != xxh3_128(given):
        raise RequestError(
            f"{key} is {given} ({xxh3_128(given)}), but {asked} was trained with another vocabulary, {own} "
            f"({xxh3_128(own)}): leave {key} out"
        )
    path = own or given
    if path is None:
        raise RequestError(f"{asked} has no vocabulary (spiece.model): give the one that it was trained with as {key}")
    vocabulary = Vocabulary(path)
    if vocabulary.size > rows:
        raise RequestError(
            f"{path} has {vocabulary.size:,} ids, but the embedding of {asked} only {rows:,} rows: it is the "
            "vocabulary of another model"
        )
    return path
