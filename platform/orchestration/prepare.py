"""Token caches for a recipe: one function over one shard, mapped over all shards that are not committed yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.data.cache import (
    MANIFEST,
    cache_folder,
    cache_key,
    commit,
    committed_shards,
    open_cache,
    read_manifest,
    write_shard,
)
from mixtura.platform.data.task import Example, RejectedRow, Shard, Task
from mixtura.platform.data.vocabulary import Vocabulary, train_vocabulary
from mixtura.platform.files import disk_full_is_an_answer, exclusive_lock
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.tasks import (
    choice_of,
    chosen_task,
    has_data,
    prepared_splits,
    refuse_all_rejected,
    tasks_of,
)
from mixtura.platform.workspace import Workspace

PREPARING = "1"
"""Version of what `prepare_shard` does: raised whenever the same examples would make other rows."""

_ROWS_AT_ONCE = 1000

_VOCABULARY_BYTES = 32_000_000
"""Text that a vocabulary is trained on is chosen from this much."""

MapShards = Callable[[Callable[[dict[str, Any]], dict[str, Any]], Sequence[dict[str, Any]]], Iterator[dict[str, Any]]]
"""Calls a function on every job, here or anywhere in a cluster, and gives the results in any order."""


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
    directory: str
    vocabulary: str


@dataclass(frozen=True)
class Prepared:
    """What a mixture needs on disk: its vocabulary and the cache of each task."""

    vocabulary: Path
    caches: dict[str, Path]


def map_inline(
    function: Callable[[dict[str, Any]], dict[str, Any]], jobs: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A `MapShards` of one process, without Ray."""
    return map(function, jobs)


def prepare(config: Config, space: Workspace, map_shards: MapShards, reporter: Reporter) -> Prepared:
    """The vocabulary and the caches of a recipe's mixture, made where they are not committed yet."""
    tasks = tasks_of(config)
    for name in [name for name, task in tasks.items() if not has_data(task)]:
        del tasks[name]
        reporter.line(f"{name}: there are no rows with public answers to evaluate it on; it is left out")
    with disk_full_is_an_answer(space.root, "preparing token caches"):
        vocabulary = prepare_vocabulary(config, space, list(tasks.values()), reporter)
        caches = {
            name: prepare_task(task, asdict(choice_of(config, name)), vocabulary, space, map_shards, reporter)
            for name, task in tasks.items()
        }
    return Prepared(vocabulary.path, caches)


def prepare_vocabulary(config: Config, space: Workspace, tasks: Sequence[Task], reporter: Reporter) -> Vocabulary:
    """The recipe's vocabulary: a file, or one trained on the training text of the mixture's tasks."""
    if config.vocabulary.path is not None:
        return Vocabulary(config.vocabulary.path)
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


def prepare_task(
    task: Task,
    choice: dict[str, Any],
    vocabulary: Vocabulary,
    space: Workspace,
    map_shards: MapShards,
    reporter: Reporter,
) -> Path:
    """The cache of one task with all its splits; only shards that are not committed are made."""
    splits = prepared_splits(task)
    made_from = {
        "source": {split: task.source.fingerprint(split) for split in splits},
        "preprocessing": task.identity,
        "preparing": PREPARING,
        "vocabulary": vocabulary.fingerprint,
    }
    directory = cache_folder(space.caches, task.name, made_from)
    with exclusive_lock(directory / ".lock", f"the cache of {task.name} is being prepared", wait=True):
        if (directory / MANIFEST).is_file():
            for split in splits:
                open_cache(directory, split)
            return directory
        _remove_leftovers(directory)
        for split in splits:
            refuse_all_rejected(task, split)
        shards = {split: task.shards(split) for split in splits}
        counts = {split: len(listed) for split, listed in shards.items()}
        jobs = [
            asdict(
                ShardJob(
                    choice, asdict(shards[split][index]), split, index, count, str(directory), str(vocabulary.path)
                )
            )
            for split, count in counts.items()
            for index in sorted(set(range(count)) - set(committed_shards(directory, split, count)))
        ]
        total = sum(counts.values())
        for done, _ in enumerate(map_shards(prepare_shard, jobs), start=total - len(jobs) + 1):
            reporter.progress(f"prepare {task.name}", done, total, "shards")
        commit(directory, task.name, made_from, counts)
    reporter.settle()
    reporter.line(describe_cache(task, directory))
    return directory


def _remove_leftovers(directory: Path) -> None:
    """Remove what a killed process left half-written, `.NAME.RANDOM` as `write_bytes_atomically` calls it."""
    for path in directory.rglob(".*.*"):
        path.unlink(missing_ok=True)


def describe_cache(task: Task, directory: Path) -> str:
    """What was read and what became of it, with every reason for leaving a row out."""
    splits = read_manifest(directory)["splits"]
    lines = []
    for split, totals in splits.items():
        rejected = totals["rejected"]
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        left_out = f"; {sum(rejected.values())} left out: {reasons}" if rejected else ""
        read = totals["counters"]["rows read"]
        lines.append(f"  {split}: {read} rows read, {totals['rows']} examples, {totals['tokens']} tokens{left_out}")
    return "\n".join([task.name, *lines])


def prepare_shard(job: dict[str, Any]) -> dict[str, Any]:
    """Read, preprocess, tokenise and commit one shard; returns its entry. Needs no cluster."""
    this = ShardJob(**job)
    task, vocabulary = chosen_task(this.task), Vocabulary(this.vocabulary)
    shard = Shard(**{**this.shard, "locator": tuple(this.shard["locator"])})
    examples: list[Example] = []
    rejected: list[dict[str, Any]] = []
    rows_read = -1
    for item in task.examples(shard):
        rows_read = max(rows_read, item.row)
        if isinstance(item, RejectedRow):
            rejected.append(asdict(item))
        else:
            examples.append(item)
    table = _tokenised(task, examples, vocabulary, keep_text=this.split != "train")
    counters = {"rows read": rows_read + 1}
    directory = Path(this.directory)
    return write_shard(directory, this.index, this.count, this.split, table, rejected=rejected, counters=counters)


def _tokenised(task: Task, examples: Sequence[Example], vocabulary: Vocabulary, *, keep_text: bool) -> Any:
    """A table of token lists; for evaluation the example's fields too, as JSON."""
    import pyarrow as pa

    names = {"text": "tokens"} if task.kind == "unsupervised" else {"inputs": "inputs", "targets": "targets"}
    columns: dict[str, Any] = {}
    for field, column in names.items():
        tokens: list[Any] = []
        for start in range(0, len(examples), _ROWS_AT_ONCE):
            part = examples[start : start + _ROWS_AT_ONCE]
            tokens += vocabulary.encode_batch([example.fields[field] for example in part])
        columns[column] = pa.array(tokens, pa.list_(pa.int32()))
    if keep_text:
        fields = [json.dumps(example.fields, ensure_ascii=False) for example in examples]
        columns["fields"] = pa.array(fields, pa.string())
    return pa.table(columns)
