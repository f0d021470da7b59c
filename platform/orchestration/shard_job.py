"""One shard of a task turned into one shard of its token cache: read, preprocess, tokenise, write. Needs no cluster.

    source: 356,000 documents -> examples -> batches of a million characters -> ids -> the shard's columns
                                 rejected rows -> rejected/, as they come

Rows flow through: memory holds two batches, whatever the shard's size.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from mixtura.platform.data.ragged import Ragged
from mixtura.platform.data.shard_writer import Entry, ShardWriter
from mixtura.platform.data.task import Example, RejectedRow, Shard, Task
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.orchestration.tasks import chosen_task

PREPARING = "2"
"""Version of what `prepare_shard` does: raised whenever the same examples would make other rows or files."""

_BATCH_CHARACTERS = 1 << 20
_BATCH_EXAMPLES = 1 << 16

T = TypeVar("T")
R = TypeVar("R")

TOKENISED = {"unsupervised": {"text": "tokens"}, "supervised": {"inputs": "inputs", "targets": "targets"}}
"""Which fields of an example become which columns."""


Columns = dict[str, Ragged | list[str]]


@dataclass(frozen=True)
class ShardJob:
    """One shard to prepare; plain values, so that it can be sent anywhere."""

    task: dict[str, Any]
    """A `TaskChoice` as a dictionary."""
    shard: dict[str, Any]
    """A `Shard` as a dictionary: nothing is listed again where it is read."""
    split: str
    index: int
    count: int
    cache: str
    """Folder or URI of the cache."""
    vocabulary: str


class GivenUpError(Exception):
    """The work was asked to stop; nothing of the shard was written."""


def prepare_shard(job: dict[str, Any], stopped: Callable[[], bool] = lambda: False) -> Entry:
    """Read, preprocess, tokenise and commit one shard; returns its entry.

    Raises GivenUpError, between two batches, as soon as `stopped` says so.
    """
    this = ShardJob(**job)
    task, vocabulary = chosen_task(this.task), _opened(this.vocabulary)
    shard = Shard(**{**this.shard, "locator": tuple(this.shard["locator"])})
    columns = _Columns(task, vocabulary, shard.name, keeps_fields=this.split != "train", threads=_threads())
    text = ("fields",) if columns.keeps_fields else ()
    with ShardWriter(this.cache, this.index, this.count, this.split, task.kind, text=text) as writer:
        rows = _Rows(task.examples(shard), writer)
        for made, rejected in _while_reading(columns.of, rows.batches(columns.texts)):
            if stopped():
                raise GivenUpError
            writer.append(made)
            for row in rejected:
                writer.reject(row)
        return writer.close({"rows read": rows.read})


def prepare_pending(job: dict[str, Any], stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Prepare one shard of one of several caches; returns which cache that was."""
    prepare_shard(job, stopped)
    return {"cache": job["cache"]}


@functools.lru_cache(maxsize=2)
def _opened(vocabulary: str) -> Vocabulary:
    return Vocabulary(vocabulary)


def _threads() -> int:
    """Threads of this process: its share of the CPUs, which Ray writes here for each of its tasks."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(given) if given.isdecimal() else len(os.sched_getaffinity(0))


def _while_reading(function: Callable[[T], R], items: Iterator[T]) -> Iterator[R]:
    """A function's results in order; each is computed on another thread while the next item is read.

    The library tokenises without holding Python's lock, so that with two cores both have work.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        before: Future[R] | None = None
        for item in items:
            begun = thread.submit(function, item)
            if before is not None:
                yield before.result()
            before = begun
        if before is not None:
            yield before.result()


class _Rows:
    """The examples of a shard in batches; rejected rows are written where they are met."""

    def __init__(self, items: Iterator[Example | RejectedRow], writer: ShardWriter) -> None:
        self._items, self._writer = items, writer
        self.read = 0
        """Raw rows met until now."""

    def batches(self, texts: tuple[str, ...]) -> Iterator[list[Example]]:
        """Lists of examples with about a million characters of text, or with one longer example."""
        batch: list[Example] = []
        characters = 0
        for item in self._items:
            self.read = max(self.read, item.row + 1)
            if isinstance(item, RejectedRow):
                self._writer.reject(vars(item))
                continue
            batch.append(item)
            for name in texts:
                characters += len(item.fields[name])
            if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_EXAMPLES:
                yield batch
                batch, characters = [], 0
        if batch:
            yield batch


class _Columns:
    """What is kept of examples: token lists, and for evaluation their fields, as JSON."""

    def __init__(self, task: Task, vocabulary: Vocabulary, origin: str, *, keeps_fields: bool, threads: int) -> None:
        self._columns, self._vocabulary, self._origin = TOKENISED[task.kind], vocabulary, origin
        self.keeps_fields, self._threads = keeps_fields, threads
        self.texts = tuple(self._columns)
        """The fields that are tokenised."""

    def of(self, batch: list[Example]) -> tuple[Columns, list[dict[str, Any]]]:
        """The columns of a batch, and the rows left out: those with half of a surrogate pair, which no file holds."""
        try:
            return self._made(batch), []
        except UnicodeError:
            whole = [self._is_text(example) for example in batch]
            good = [example for example, fits in zip(batch, whole, strict=True) if fits]
            bad = [_rejected(example, self._origin) for example, fits in zip(batch, whole, strict=True) if not fits]
            return self._made(good), bad

    def _made(self, batch: list[Example]) -> Columns:
        columns: Columns = {
            column: self._vocabulary.encode_batch([one.fields[field] for one in batch], threads=self._threads)
            for field, column in self._columns.items()
        }
        if self.keeps_fields:
            fields = [_as_json(example) for example in batch]
            "".join(fields).encode()
            columns["fields"] = fields
        return columns

    def _is_text(self, example: Example) -> bool:
        kept = [_as_json(example)] if self.keeps_fields else [example.fields[name] for name in self.texts]
        try:
            "".join(kept).encode()
        except UnicodeError:
            return False
        return True


def _as_json(example: Example) -> str:
    return json.dumps(example.fields, ensure_ascii=False)


def _rejected(example: Example, origin: str) -> dict[str, Any]:
    sample = json.dumps(example.fields)[:300]
    return vars(RejectedRow(example.row, "half of a surrogate pair", origin, sample))
