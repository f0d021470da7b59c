"""What a mixture stream is a function of: plain values, stored with a run and sent to whoever builds its blocks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtura.platform.data.features import CONVERTERS, converter, row_lengths
from mixtura.platform.data.mixture import ONE
from mixtura.platform.data.objectives import Objective, make_objective
from mixtura.platform.data.packing import PACKINGS
from mixtura.platform.data.permutation import shard_order
from mixtura.platform.data.pieces import CHUNKS
from mixtura.platform.data.schedule import RateChange
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.filesystems import last_name
from mixtura.platform.random_bits import key

STREAM_VERSION = 2
"""Part of every key: a stream of another version has other batches."""

DRAWS = ("exact", "sampled")


def order_key(seed: int, task: str) -> int:
    """The key of the order in which a task's examples are visited."""
    return key("stream", STREAM_VERSION, seed, "order", task)


def first_epoch_shards(seed: int, task: str, count: int) -> list[int]:
    """The shards of a task in the order in which its first epoch visits them, `window_shards` at a time."""
    shards: list[int] = shard_order(order_key(seed, task), 0, count).tolist()
    return shards


def phase(seed: int, task: str) -> int:
    """Where a task's clock begins, in 2^-64 draws of its own."""
    return key("stream", STREAM_VERSION, seed, "phase", task)


@dataclass(frozen=True)
class StreamTask:
    """One task of a stream. Its keys come from the seed and its name, so tasks beside it do not matter."""

    name: str
    cache: str
    """place of its token cache; not part of the stream's identity but for its last part, which has the cache's key"""
    rate_bits: int
    """integer rate at the start; those of all tasks sum to 2^64"""
    objective: str | None = None
    """how an unsupervised task becomes inputs and targets; None for a supervised one"""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """of the objective"""
    split: str = "train"
    around_answer: bool = False
    """whether inputs that are too long are cut around their targets, see `answer_window`, rather than at their end"""
    first_examples: int | None = None
    """the task is held to so many examples, in the order of its shards"""
    first_tokens: int | None = None
    """the task is held to so many tokens, likewise"""
    overlap: str | None = None
    """place of the ranges of its text that overlap with evaluation examples; pieces that touch one are left out"""


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides the batches of a run."""

    seed: int
    tasks: tuple[StreamTask, ...]
    block_size: int
    """draws per block"""
    lanes: int
    """divides global_batch_size; the most ranks there can be"""
    global_batch_size: int
    """rows per step over all ranks"""
    inputs_length: int
    """most tokens of an example's inputs with EOS, and encoder positions of a row"""
    targets_length: int
    """most tokens of an example's targets with EOS, and decoder positions of a row unless `decoder_row` says another"""
    packing: str
    eos_id: int
    first_sentinel: int
    vocabulary_size: int
    window_shards: int = 8
    """shards read side by side in one part of an epoch"""
    segment_rows: int = 16
    """neighbouring rows that are visited together"""
    decoder_row: int | None = None
    """decoder positions of a packed row"""
    features: str = "encoder_decoder"
    """what rows are made for, see `features.CONVERTERS`"""
    loss_on: str | None = None
    """`targets` or `all` of a row of one stack; what is usual for its features if None"""
    chunks: str = "contiguous"
    """how unsupervised text is cut into pieces, see `pieces`"""
    draws: str = "exact"
    """`exact`, or `sampled` as the original"""
    changes: tuple[RateChange, ...] = ()
    """blocks from which on the tasks have other rates"""
    version: int = STREAM_VERSION

    def __post_init__(self) -> None:
        self._check_numbers()
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ConfigError(f"a task may be in a stream once; found {', '.join(names)}")
        if sum(task.rate_bits for task in self.tasks) != ONE:
            raise ConfigError("the integer rates of a stream must sum to 2^64: make them with integer_rates")
        for name, value, known in (
            ("packing", self.packing, PACKINGS),
            ("way to cut text", self.chunks, CHUNKS),
            ("way to draw", self.draws, DRAWS),
            ("kind of features", self.features, CONVERTERS),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        if self.changes and self.draws == "sampled":
            raise ConfigError(
                "rates change where a task was drawn as often as it may be, which is known before the start for exact "
                "draws only: set data.draws=exact, or mixture.repeats=null"
            )
        for task in self.tasks:
            self.objective_of(task)

    def _check_numbers(self) -> None:
        if self.version != STREAM_VERSION:
            raise ConfigError(
                f"this stream is of version {self.version}, this program makes version {STREAM_VERSION}: "
                "use the program that made it, or start another run"
            )
        positive = ("block_size", "lanes", "global_batch_size", "window_shards", "segment_rows")
        for name, least in {**dict.fromkeys(positive, 1), "inputs_length": 2, "targets_length": 2}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.global_batch_size % self.lanes:
            raise ConfigError(
                f"lanes is {self.lanes}, which does not divide global_batch_size {self.global_batch_size}: "
                "every lane gives the same number of rows to a batch; change one of them"
            )
        if self.decoder_row is not None and (self.joined or self.packing == "none" or self.decoder_row < 2):
            raise ConfigError(
                f"decoder_row is {self.decoder_row}: it is for packed rows of an encoder and a decoder, and at least 2"
            )
        for name in ("eos_id", "first_sentinel"):
            if not 0 < getattr(self, name) < self.vocabulary_size:
                raise ConfigError(f"{name} is {getattr(self, name)}, outside a vocabulary of {self.vocabulary_size}")

    @property
    def end(self) -> int | None:
        """The block at which the stream ends, as all tasks were drawn as often as they may; None if it never does."""
        last = self.changes[-1] if self.changes else None
        return None if last is None or any(last.rates) else last.block

    @property
    def joined(self) -> bool:
        """Whether one stack reads inputs and targets in one row."""
        return converter(self.features).joined

    @property
    def row_lengths(self) -> tuple[int, int]:
        """Positions of a row, of encoder and decoder; of a joined row all are the decoder's."""
        lengths = row_lengths(self.features, self.inputs_length, self.decoder_row or self.targets_length)
        return lengths.get("encoder", 0), lengths["decoder"]

    def limits_of(self, task: StreamTask) -> tuple[int, int]:
        """Most tokens of an example's inputs and targets, with EOS. Where a language model has no inputs, its text
        takes the whole row."""
        decoder = self.row_lengths[1]
        if self.features == "lm" and task.objective == "lm":
            return 0, decoder
        targets = self.targets_length if self.joined else min(self.targets_length, decoder)
        return self.inputs_length, targets

    def piece_length(self, task: StreamTask) -> int:
        """Tokens of an unsupervised task's pieces; ConfigError where its examples would not fit."""
        objective, (inputs, targets) = self.objective_of(task), self.limits_of(task)
        assert objective is not None, "only unsupervised text is cut into pieces"
        return objective.piece_length(inputs, targets)

    def objective_of(self, task: StreamTask) -> Objective | None:
        """The objective of an unsupervised task, checked against the lengths."""
        if task.objective is None:
            return None
        objective = make_objective(task.objective, self.first_sentinel, task.parameters)
        objective.piece_length(*self.limits_of(task))
        return objective

    @property
    def rows_per_lane(self) -> int:
        """Rows that every lane gives to a global batch."""
        return self.global_batch_size // self.lanes

    def key(self, *parts: int | str) -> int:
        """A key of this stream."""
        return key("stream", self.version, self.seed, *parts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `from_dict` is the inverse."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "tasks": list(values["tasks"]),
            "changes": [{**change, "rates": list(change["rates"])} for change in values["changes"]],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamSpec:
        """From what `to_dict` gave, also after a way through JSON."""
        if values.get("version") != STREAM_VERSION:  # whose fields may be others
            raise ConfigError(
                f"this stream is of version {values.get('version')}, this program makes version {STREAM_VERSION}: "
                "use the program that made it, or start another run"
            )
        tasks = tuple(StreamTask(**task) for task in values["tasks"])
        changes = tuple(RateChange(change["block"], tuple(change["rates"])) for change in values["changes"])
        return cls(**{**values, "tasks": tasks, "changes": changes})

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that two specs share if they make the same batches; where the caches lie does not matter."""
        values = self.to_dict()
        for task in values["tasks"]:
            for name in ("cache", "overlap"):
                task[name] = None if task[name] is None else last_name(task[name])
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
