"""The vocabulary and the token caches of a recipe: one function over one shard, mapped over all that are missing.

    recipe -> vocabulary -> for each task: a place that is named for all that the cache is made from
                                           -> listing, shards (in any order, anywhere), manifest

A cache is never made twice and never half: whatever interrupts the work, the same command goes on from the shards that
are committed and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.data.cache import (
    begin,
    cache_key,
    cache_place,
    commit,
    committed_shards,
    is_closed,
    open_cache,
    read_manifest,
    remove_leftovers,
    why_new,
)
from mixtura.platform.data.stream_spec import first_epoch_shards
from mixtura.platform.data.task import Example, Task
from mixtura.platform.data.vocabulary import Vocabulary, train_vocabulary
from mixtura.platform.errors import RequestError
from mixtura.platform.files import disk_full_is_an_answer, exclusive_lock
from mixtura.platform.filesystems import absolute, is_uri
from mixtura.platform.orchestration.prepare_plan import (
    Needed,
    needed_of,
    needed_of_held_out,
    prepared_later,
    whole_because,
)
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.shard_job import PREPARING, ShardJob, prepare_shard
from mixtura.platform.orchestration.starting_model import starting_vocabulary
from mixtura.platform.orchestration.tasks import (
    choice_of,
    has_data,
    held_out,
    prepared_splits,
    refuse_all_rejected,
    tasks_of,
)
from mixtura.platform.workspace import Workspace, in_submitted_job

_VOCABULARY_BYTES = 32_000_000
"""Text that a vocabulary is trained on is chosen from this much."""

Job = dict[str, Any]
MapShards = Callable[[Callable[[Job], Job], Sequence[Job]], Iterator[Job]]
"""Calls a function on every job, here or anywhere in a cluster, and gives the results in any order."""


@dataclass(frozen=True)
class PendingCache:
    """A cache that is begun, whose shards are to be prepared while training reads it."""

    name: str
    place: str
    made_from: Mapping[str, Any]
    counts: Mapping[str, int]
    jobs: tuple[Job, ...]
    """One for each shard, in the order in which the task's first epoch visits them."""


@dataclass(frozen=True)
class Prepared:
    """What a mixture needs: its vocabulary and the cache of each task."""

    vocabulary: Path
    caches: dict[str, str]
    """Folder or URI of each task's cache."""
    pending: tuple[PendingCache, ...] = field(default=(), compare=False)
    """Caches that are still to be prepared, by a `Preparer`, while the run trains."""
    overlap: Mapping[str, str] = field(default_factory=dict)
    """Of each unsupervised task where the ranges of its text lie that overlap with evaluation examples."""
    held_out: Mapping[str, str] = field(default_factory=dict)
    """Of each unsupervised task with a validation split the cache of its first pieces."""


def map_inline(function: Callable[[Job], Job], jobs: Sequence[Job]) -> Iterator[Job]:
    """A `MapShards` of one process, without Ray."""
    return map(function, jobs)


def prepare(
    config: Config, space: Workspace, map_shards: MapShards, reporter: Reporter, *, leave_pending: bool = False
) -> Prepared:
    """The vocabulary and the caches of a recipe's mixture, made where they are not committed yet; and where text is to
    be left out that overlaps with evaluation examples, what of it does.

    With `leave_pending` big sources that can be trained on meanwhile are only begun: see `Prepared.pending`.
    """
    tasks = tasks_of(config)
    for name in [name for name, task in tasks.items() if not has_data(task)]:
        del tasks[name]
        reporter.line(f"{name}: there are no rows with public answers to evaluate it on; it is left out")
    for name, task in tasks.items():
        read = {*prepared_splits(task), *(("validation",) if held_out(config, task) else ())}
        for split in sorted(config.mixture.tasks[name].files.keys() - read):
            reporter.line(f"{name}: the files of its {split} split are not read: it is not evaluated there")
    with disk_full_is_an_answer(space.root, "preparing token caches"):
        vocabulary = prepare_vocabulary(config, space, list(tasks.values()), reporter)
        root = caches_root(config, space)
        work = functools.partial(_CacheWork, config, vocabulary, root, map_shards, reporter)
        caches = [work(task, task.name, prepared_splits(task)) for task in tasks.values()]
        texts = [
            work(task, f"{task.name}.held_out", ("validation",)) for task in tasks.values() if held_out(config, task)
        ]
        pending = [left for cache in caches if (left := cache.prepare(leave_pending=leave_pending)) is not None]
        for cache in texts:
            cache.prepare_held_out()
    prepared = Prepared(
        vocabulary.path,
        {cache.task.name: cache.place for cache in caches},
        tuple(pending),
        held_out={cache.task.name: cache.place for cache in texts},
    )
    if config.data.drop_overlap is None:
        return prepared
    from mixtura.platform.orchestration.overlap import check_overlap  # which imports this module

    found = check_overlap(config, prepared, map_shards, reporter, config.data.drop_overlap)
    return replace(prepared, overlap=found.folders)


def caches_root(config: Config, space: Workspace) -> str:
    """Folder or URI of all token caches."""
    given = config.data.caches
    if given is None:
        return str(space.caches)
    if in_submitted_job() and not is_uri(given) and not Path(given).expanduser().is_absolute():
        raise RequestError(
            f"data.caches is {given!r}, but a submitted job works in a copy of its folder that is deleted later: "
            "give an absolute path or a bucket"
        )
    return absolute(given)


def prepare_vocabulary(config: Config, space: Workspace, tasks: Sequence[Task], reporter: Reporter) -> Vocabulary:
    """The recipe's vocabulary: a file, that of the model or checkpoint to begin with, or one trained on the text of the
    mixture's tasks."""
    if {config.vocabulary.path, config.model.start, config.run.fork} != {None}:
        return Vocabulary(starting_vocabulary(config, space))
    tasks = [task for task in tasks if task.trained]
    made_from = {task.name: [task.identity, task.source.fingerprint("train")] for task in tasks}
    key = cache_key({"tasks": made_from, "size": config.vocabulary.size, "bytes": _VOCABULARY_BYTES})
    path = space.caches / f"vocabulary-{key}" / "spiece.model"
    with exclusive_lock(path.with_name(".lock"), "the vocabulary is being trained", wait=True):
        if not path.is_file():
            reporter.line(f"vocabulary: training {config.vocabulary.size} ids on the text of {len(tasks)} tasks")
            train_vocabulary(_training_texts(tasks), path, config.vocabulary.size)
    return Vocabulary(path)


def _training_texts(tasks: Sequence[Task]) -> Iterator[str]:
    """The text of all tasks, equally much of each at most, from the beginning of its training split: a vocabulary must
    not need a whole web corpus."""
    for task in tasks:
        left = _VOCABULARY_BYTES // len(tasks)
        for text in _texts_of(task):
            yield text
            left -= len(text.encode(errors="replace"))
            if left <= 0:
                break


def _texts_of(task: Task) -> Iterator[str]:
    fields = ("text",) if task.kind == "unsupervised" else ("inputs", "targets")
    for shard in task.shards("train"):
        for example in task.examples(shard):
            if isinstance(example, Example):
                yield from (example.fields[name] for name in fields)


@dataclass(frozen=True)
class _CacheWork:
    """The cache of some splits of one task; only shards that are not committed are made."""

    config: Config
    vocabulary: Vocabulary
    root: str
    map_shards: MapShards
    reporter: Reporter
    task: Task
    name: str
    splits: tuple[str, ...]

    @functools.cached_property
    def made_from(self) -> dict[str, Any]:
        """Everything that decides the bytes of the cache."""
        return {
            "source": {split: self.task.source.fingerprint(split) for split in self.splits},
            "preprocessing": self.task.identity,
            "preparing": PREPARING,
            "vocabulary": self.vocabulary.fingerprint,
        }

    @functools.cached_property
    def place(self) -> str:
        """Named for what it is made from."""
        return cache_place(self.root, self.name, self.made_from)

    @functools.cached_property
    def jobs(self) -> dict[str, list[Job]]:
        """Of each split, one for each shard, in the order of the listing."""
        choice = asdict(choice_of(self.config, self.task.name))
        shards = {split: self.task.shards(split) for split in self.splits}
        return {
            split: [
                asdict(
                    ShardJob(choice, asdict(shard), split, index, len(listed), self.place, str(self.vocabulary.path))
                )
                for index, shard in enumerate(listed)
            ]
            for split, listed in shards.items()
        }

    @property
    def counts(self) -> dict[str, int]:
        """Shards of each split."""
        return {split: len(jobs) for split, jobs in self.jobs.items()}

    def prepare(self, *, leave_pending: bool) -> PendingCache | None:
        """Make all of the cache, or as much as is needed; what is returned is left to be made during training."""
        if self._is_made():
            return None
        needed = needed_of(self.config, self.task, self.vocabulary)
        if leave_pending and prepared_later(self.config, self.task):
            self._begin()
            return self._pending()
        if leave_pending and needed is None:
            self._say_why_whole()
        self._prepare(needed)
        return None

    def prepare_held_out(self) -> None:
        """Make as much of a text's validation split as losses are measured on."""
        if not self._is_made():
            self._prepare(needed_of_held_out(self.config, self.task, self.vocabulary))

    def _is_made(self) -> bool:
        """Whether all of it is committed; otherwise it is looked at first."""
        if is_closed(self.place):
            for split in self.splits:
                open_cache(self.place, split)
            return True
        if reason := why_new(self.root, self.name, self.made_from):
            self.reporter.line(f"{self.name}: {reason}")
        for split in self.splits:
            refuse_all_rejected(self.task, split)
        return False

    def _prepare(self, needed: Needed | None) -> None:
        """Make as much as is needed, or all."""
        with lock_of(self.place, f"the cache of {self.name} is being prepared", wait=True):
            if not is_closed(self.place):
                self._begin()
                remove_leftovers(self.place)
                if needed is None:
                    self._prepare_whole()
                else:
                    self._prepare_first(needed)
        self.reporter.settle()
        if is_closed(self.place):
            self.reporter.line(describe_cache(self.place))

    def _say_why_whole(self) -> None:
        reason, count = whole_because(self.config, self.task), self.counts.get("train", 0)
        if self.task.kind == "unsupervised" and reason is not None and count > self.config.data.window_shards:
            self.reporter.line(f"{self.task.name}: all of its {count} shards are prepared before training: {reason}")

    def _begin(self) -> None:
        begin(self.place, self.name, self.task.kind, self.made_from, self.counts)

    def _pending(self) -> PendingCache:
        jobs = self.jobs["train"]
        visited = first_epoch_shards(self.config.run.seed, self.task.name, len(jobs))
        ordered = tuple(jobs[index] for index in visited)
        return PendingCache(self.task.name, self.place, self.made_from, self.counts, ordered)

    def _prepare_whole(self) -> None:
        total = sum(self.counts.values())
        missing = []
        for split, jobs in self.jobs.items():
            committed = committed_shards(self.place, split, len(jobs))
            missing += [job for job in jobs if job["index"] not in committed]
        for done, _ in enumerate(self.map_shards(prepare_shard, missing), start=total - len(missing) + 1):
            self.reporter.progress(f"prepare {self.name}", done, total, "shards")
        commit(self.place, self.name, self.made_from, self.counts)

    def _prepare_first(self, needed: Needed) -> None:
        """Shards in the order of the listing until they hold enough; as many at once as are needed in any case."""
        split = self.splits[0]
        jobs, cache = self.jobs[split], open_cache(self.place, split)
        entries = committed_shards(self.place, split, len(jobs))
        whole = next((shard for shard in range(len(jobs)) if shard not in entries), len(jobs))
        while (missing := needed.missing_tokens(cache, whole)) > 0:
            if whole == len(jobs):
                commit(self.place, self.name, self.made_from, self.counts)
                return
            largest = max((entry["tokens"] for entry in entries.values()), default=0) or missing
            stop = min(len(jobs), whole + max(1, missing // largest))
            todo = [jobs[shard] for shard in range(whole, stop) if shard not in entries]
            for entry in self.map_shards(prepare_shard, todo):
                entries[entry["index"]] = entry
            whole = next((shard for shard in range(stop, len(jobs)) if shard not in entries), len(jobs))
            self.reporter.progress(f"prepare {self.name}", whole, len(jobs), "first shards, until there is enough")


@contextlib.contextmanager
def lock_of(place: str, refusal: str, *, wait: bool) -> Iterator[None]:
    """Hold a cache for one process. In a bucket there is no lock: two runs would write the same bytes."""
    if is_uri(place):
        yield
        return
    with exclusive_lock(Path(place) / ".lock", refusal, wait=wait):
        yield


def interleaved(jobs: Iterable[Sequence[Job]]) -> list[Job]:
    """The first job of each cache, then the second of each, ...

    >>> interleaved([[{"c4": 1}, {"c4": 2}], [{"wiki": 1}]])
    [{'c4': 1}, {'wiki': 1}, {'c4': 2}]
    """
    return [job for turn in zip_longest(*jobs) for job in turn if job is not None]


def describe_cache(place: str) -> str:
    """What was read and what became of it, with every reason for leaving a row out."""
    manifest = read_manifest(place)
    lines = [manifest["name"]]
    for split, totals in manifest["splits"].items():
        rejected = totals["rejected"]
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        left_out = f"; {sum(rejected.values())} left out: {reasons}" if rejected else ""
        read = totals["counters"]["rows read"]
        lines.append(f"  {split}: {read} rows read, {totals['rows']} examples, {totals['tokens']} tokens{left_out}")
    return "\n".join(lines)
