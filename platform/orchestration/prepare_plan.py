"""How much of each task is prepared, and when: whole before training, its first shards only, or while it is trained on.

supervised task                                   whole, before training: draws come from all of its shards
unsupervised, held to its first tokens            its first shards, before training
unsupervised, many shards, its size known         while it is trained on, in the order of its first epoch
any other unsupervised task                       whole, before training
"""

from __future__ import annotations

from dataclasses import dataclass

from mixtura.platform.config import Config
from mixtura.platform.data.cache import TokenCache
from mixtura.platform.data.mixture import ONE
from mixtura.platform.data.pieces import make_pieces
from mixtura.platform.data.stream_spec import StreamSpec, StreamTask
from mixtura.platform.data.task import Task
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.mixture import known_sizes, objective_of
from mixtura.platform.orchestration.tasks import tasks_of


@dataclass(frozen=True)
class Needed:
    """How much of a task's text is needed, from its first shard on: so many tokens, or else so many pieces."""

    tokens: int | None
    pieces: int | None
    length: int
    """of a piece"""
    chunks: str
    concatenates: bool

    def missing_tokens(self, cache: TokenCache, shards: int) -> int:
        """About how many tokens more than those of its first `shards` shards; 0 or less where they are enough."""
        if self.tokens is not None:
            return self.tokens - sum(int(cache.entry(shard)["tokens"]) for shard in range(shards))
        assert self.pieces is not None, "tokens or pieces are needed"
        pieces = make_pieces(cache, self.length, chunks=self.chunks, concatenates=self.concatenates)
        return (self.pieces - sum(pieces.count(shard) for shard in range(shards))) * self.length


def needed_of(config: Config, task: Task, vocabulary: Vocabulary) -> Needed | None:
    """What is needed of an unsupervised task that is held to its first tokens or examples; None where all of it is."""
    if task.kind != "unsupervised" or not _is_held(config, task) or config.data.drop_overlap is not None:
        return None
    own = config.mixture.tasks[task.name]
    spec = _stream_of(config, task.name, vocabulary.sentinel(0), vocabulary.size)
    objective = spec.objective_of(spec.tasks[0])
    assert objective is not None, "unsupervised text has an objective"
    length = spec.piece_length(spec.tasks[0])
    return Needed(own.first_tokens, own.first_examples, length, config.data.chunks, objective.concatenates)


def needed_of_held_out(config: Config, task: Task, vocabulary: Vocabulary) -> Needed:
    """What is needed of a task's held-out text: as many pieces as losses are measured on."""
    spec = _stream_of(config, task.name, vocabulary.sentinel(0), vocabulary.size)
    objective = spec.objective_of(spec.tasks[0])
    assert objective is not None, "unsupervised text has an objective"
    length, pieces = spec.piece_length(spec.tasks[0]), config.evaluation.text_pieces
    return Needed(None, pieces, length, config.data.chunks, objective.concatenates)


def refuse_unfit_lengths(config: Config) -> None:
    """Raise ConfigError where the examples of an unsupervised task would not fit into the recipe's lengths."""
    for name, task in tasks_of(config).items():
        if task.trained and task.kind == "unsupervised":
            try:
                _stream_of(config, name, config.vocabulary.size - 1, config.vocabulary.size)
            except ConfigError as error:
                raise ConfigError(f"task {name!r}: {error}") from None


def _stream_of(config: Config, name: str, first_sentinel: int, vocabulary_size: int) -> StreamSpec:
    """A stream of one unsupervised task, as far as its lengths go, which is checked when it is made."""
    kind, parameters = objective_of(config, name)
    data = config.data
    return StreamSpec(
        seed=0,
        tasks=(StreamTask(name, "", ONE, kind, parameters),),
        block_size=1,
        lanes=1,
        global_batch_size=1,
        inputs_length=data.inputs_length,
        targets_length=data.targets_length,
        packing=data.packing,
        eos_id=EOS_ID,
        first_sentinel=first_sentinel,
        vocabulary_size=vocabulary_size,
        decoder_row=data.decoder_row if isinstance(data.decoder_row, int) else None,
        features=config.features,
    )


def whole_because(config: Config, task: Task) -> str | None:
    """Why a task must be prepared whole before it is trained on; None where it need not be.

    Whatever asks for the number of its examples has to wait for the last of its shards.
    """
    mixture, own = config.mixture, config.mixture.tasks[task.name]
    if task.kind != "unsupervised":
        return "a supervised task is drawn from all of its shards"
    if config.data.drop_overlap is not None:
        return "data.drop_overlap looks through all of its text"
    if mixture.rates == "unimax":
        return "rates: unimax needs the number of its examples"
    if own.repeats is not None or mixture.repeats is not None:
        key = "mixture.repeats" if own.repeats is None else f"mixture.tasks.{task.name}.repeats"
        return f"{key} counts passes over its examples"
    if mixture.rates not in {"equal", "fixed"} and own.rate is None and task.name not in known_sizes(config):
        return f"its rate is made from the number of its examples: give mixture.tasks.{task.name}.size, or a rate"
    return None


def prepared_later(config: Config, task: Task) -> bool:
    """Whether training may begin before a task is prepared: not where its first draws need all of its shards anyway."""
    if config.data.prepare == "before_training" or _is_held(config, task) or whole_because(config, task) is not None:
        return False
    return len(task.shards("train")) > config.data.window_shards


def _is_held(config: Config, task: Task) -> bool:
    own = config.mixture.tasks[task.name]
    return own.first_tokens is not None or own.first_examples is not None


def refuse_waiting_in_vain(config: Config) -> None:
    """Raise ConfigError, with the reason, where `prepare: while_training` asks for what cannot be done for a task."""
    if config.data.prepare != "while_training":
        return
    for name, task in tasks_of(config).items():
        if not task.trained or task.kind != "unsupervised" or _is_held(config, task):
            continue
        if reason := whole_because(config, task):
            raise ConfigError(
                f"data.prepare is while_training, but task {name!r} must be prepared whole first: {reason}; "
                "or set data.prepare=auto"
            )
