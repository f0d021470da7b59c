"""Which evaluation examples of a recipe occur in its unsupervised text: one function over one shard, mapped over all
shards of text that were not looked through yet."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.data.cache import TokenCache, is_closed, open_cache, read_manifest
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.overlap import (
    EvaluationNgrams,
    NgramSet,
    commit_overlap,
    committed_occurrences,
    evaluation_ngrams,
    find,
    overlap_folder,
    overlap_key,
    read_ngrams,
    read_overlap,
    write_ngrams,
    write_occurrences,
)
from mixtura.platform.data.shard_writer import shard_name
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.data.words import WordTable
from mixtura.platform.errors import ConfigError
from mixtura.platform.files import exclusive_lock
from mixtura.platform.filesystems import is_uri, joined, shown
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.prepare import MapShards, Prepared
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.tasks import has_data, prepared_splits, tasks_of


@dataclass(frozen=True)
class OverlapReport:
    """What was found, in plain values."""

    ngram: int
    rows: list[dict[str, Any]]
    """For each text, task and split: examples, those too short to be looked for, those of which some n-gram occurs,
    and the mean share of an example's n-grams that occur."""
    texts: list[dict[str, Any]]
    """For each unsupervised task: its tokens, how many lie in n-grams of the evaluation, in how many ranges, and the
    file with every example of which something occurs."""
    samples: list[dict[str, Any]]
    """Some examples of each split with the most of their n-grams found, one n-gram decoded, and where it was found."""
    folders: dict[str, str]
    """Unsupervised task to the folder with the ranges of each shard, for `load_ranges`."""


def check_overlap(
    config: Config, prepared: Prepared, map_shards: MapShards, reporter: Reporter, n: int
) -> OverlapReport:
    """Compare all evaluated splits of a recipe with all its unsupervised text, where that was not done before."""
    texts, evaluated = compared(config)
    _refuse_unfinished(prepared, texts)
    caches, copies = prepared.caches, copies_of(config)
    vocabulary = Vocabulary(prepared.vocabulary)
    made_from = {name: [read_manifest(caches[name])["made_from"], *splits] for name, splits in evaluated.items()}
    key = overlap_key(n, made_from, vocabulary.fingerprint)
    folders = {name: overlap_folder(caches[name], key) for name in texts}
    manifests = {name: done for name, folder in folders.items() if (done := read_overlap(folder)) is not None}
    if missing := [name for name in texts if name not in manifests]:
        evaluation = _ngrams_of(caches, evaluated, vocabulary, copies, n)
        for name in missing:
            work = _TextWork(open_cache(caches[name], copies=copies), folders[name], vocabulary, evaluation, copies)
            manifests[name] = work.look_through(map_shards, reporter)
    return _report(n, {name: manifests[name] for name in texts}, folders)


def compared(config: Config) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The unsupervised tasks with text of a recipe, and the splits with right answers of its supervised ones.

    Raises ConfigError where one of both is missing, before any data is read.
    """
    tasks = {name: task for name, task in tasks_of(config).items() if has_data(task)}
    texts = [name for name, task in tasks.items() if task.kind == "unsupervised" and task.trained]
    if not texts:
        raise ConfigError(
            "overlap is looked for in unsupervised text, but no task of the mixture has any: "
            "add one to mixture.tasks, for example c4"
        )
    evaluated = {
        name: splits
        for name, task in tasks.items()
        if task.kind == "supervised"
        and (splits := tuple(split for split in prepared_splits(task) if split in task.evaluated))
    }
    if not evaluated:
        raise ConfigError(
            "overlap is looked for between evaluation examples and text, but no task of the mixture has a split with "
            "right answers: add a supervised task to mixture.tasks"
        )
    return texts, evaluated


def _refuse_unfinished(prepared: Prepared, texts: Sequence[str]) -> None:
    if unfinished := [name for name in texts if not is_closed(prepared.caches[name])]:
        raise ConfigError(
            f"overlap is looked for in text that is there, but {', '.join(unfinished)} is not prepared whole (held to "
            "its first examples or tokens, or prepared while the run trains): set data.prepare=before_training, and "
            "leave first_examples and first_tokens out or set data.drop_overlap"
        )


def _ngrams_of(
    caches: Mapping[str, str], evaluated: Mapping[str, Sequence[str]], vocabulary: Vocabulary, copies: Copies, n: int
) -> EvaluationNgrams:
    splits = [open_cache(caches[name], split, copies) for name, own in evaluated.items() for split in own]
    return evaluation_ngrams(splits, _table(str(vocabulary.path)), n)


@dataclass(frozen=True)
class _TextWork:
    """The text of one cache, to be looked through for all n-grams of the evaluation."""

    text: TokenCache
    folder: str
    vocabulary: Vocabulary
    evaluation: EvaluationNgrams
    copies: Copies

    def look_through(self, map_shards: MapShards, reporter: Reporter) -> dict[str, Any]:
        """Map over the shards that are not done, and commit; returns the manifest."""
        text = self.text
        names = [shard_name(text.split, index, text.count) for index in range(text.count)]
        with _alone(self.folder, text.name):
            write_ngrams(self.folder, self.evaluation.ngrams)
            entries = committed_occurrences(self.folder, names)
            jobs = [self._job(index, name) for index, name in enumerate(names) if name not in entries]
            for done, entry in enumerate(map_shards(check_shard, jobs), start=len(entries) + 1):
                entries[entry["shard"]] = entry
                reporter.progress(f"overlap {text.name}", done, len(names), "shards")
            reporter.settle()
            own, table = [entries[name] for name in names], _table(str(self.vocabulary.path))
            return commit_overlap(self.folder, text, own, self.evaluation, self.vocabulary, table, self.copies)

    def _job(self, shard: int, name: str) -> dict[str, Any]:
        """Plain values, so that it can be sent anywhere."""
        return {
            "cache": self.text.place,
            "copies": asdict(self.copies),
            "shard": shard,
            "name": name,
            "folder": self.folder,
            "vocabulary": str(self.vocabulary.path),
            "n": self.evaluation.n,
        }


def _alone(folder: str, name: str) -> AbstractContextManager[None]:
    """A lock where there are any; in a bucket two checks write the same bytes, which spoils nothing."""
    if is_uri(folder):
        return nullcontext()
    return exclusive_lock(Path(folder) / ".lock", f"the text of {name} is being looked through", wait=True)


def check_shard(job: dict[str, Any]) -> dict[str, Any]:
    """Look through one shard of text and commit what it has; returns its entry. Needs no cluster."""
    documents = open_cache(job["cache"], copies=Copies(**job["copies"])).column(job["shard"], "tokens")
    occurrences = find(documents, _table(job["vocabulary"]), _ngram_set(job["folder"]), job["n"])
    return write_occurrences(job["folder"], job["name"], len(documents.values), occurrences)


@functools.lru_cache(maxsize=2)
def _table(vocabulary: str) -> WordTable:
    return WordTable.of(Vocabulary(vocabulary))


@functools.lru_cache(maxsize=1)
def _ngram_set(folder: str) -> NgramSet:
    return read_ngrams(folder)


def _report(n: int, manifests: Mapping[str, Mapping[str, Any]], folders: dict[str, str]) -> OverlapReport:
    rows, texts, samples = [], [], []
    for name, manifest in manifests.items():
        rows += [{"text": name, **row} for row in manifest["results"]]
        samples += [{"in": name, **sample} for sample in manifest["samples"]]
        counts = {key: manifest[key] for key in ("tokens", "overlapping tokens", "ranges")}
        texts.append({"text": name, **counts, "examples": shown(joined(folders[name], "examples.jsonl"))})
    return OverlapReport(n, rows, texts, samples, folders)


def as_plain(report: OverlapReport) -> dict[str, Any]:
    """The report for JSON, without places, which may hold the keys of a bucket."""
    return {"ngram": report.ngram, "rows": report.rows, "texts": report.texts, "samples": report.samples}


def readable_rows(report: OverlapReport) -> list[dict[str, Any]]:
    """The rows as people read them: shares in percent; the text is named where there are several."""
    rows = []
    for row in report.rows:
        shares = {key: "-" if row[key] is None else f"{row[key]:.2%}" for key in ("share overlapping", "n-grams found")}
        rows.append({**row, **shares})
        if len(report.texts) == 1:
            del rows[-1]["text"]
    return rows


def readable_texts(report: OverlapReport) -> list[str]:
    """What was found of each text and where the whole lists are, in lines."""
    lines = ["shares are of the examples that have so many words in a row; the others are too short to be looked for"]
    for text in report.texts:
        found = f"{text['overlapping tokens']} of {text['tokens']} tokens overlap, in {text['ranges']} ranges"
        lines.append(f"{text['text']}: {found}; every example: {text['examples']}")
    if any(text["ranges"] for text in report.texts):
        lines.append(f"data.drop_overlap={report.ngram} leaves out the pieces of text that overlap")
    return lines


def readable_samples(report: OverlapReport) -> list[str]:
    """For each split the example of which most was found, in lines."""
    most: dict[tuple[str, ...], dict[str, Any]] = {}
    for sample in report.samples:
        most.setdefault((sample["in"], sample["task"], sample["split"]), sample)
    return [
        f"{one['task']} {one['split']}, row {one['row']} ({one['n-grams found']:.1%} found): {one['text']!r} "
        f"in {one['in']} {one['shard']}, document {one['document']}"
        for one in most.values()
    ]
