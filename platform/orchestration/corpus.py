"""The making of a corpus: the stages of `platform/corpus` one after the other, each over all files at once.

OUTPUT/c4-train.00000-of-00012.parquet ...    the documents, in shards of even size
OUTPUT/accounts.jsonl                         what became of each file's records, pages, bytes and lines
OUTPUT/samples.json                           of each reason a few examples; the longest and most repeated lines
OUTPUT/dropped/REASON/...                     pages that are left out, if they are wanted
OUTPUT/time.json                              how long it took
OUTPUT/manifest.json                          written last: settings, files, shards with their digests, the sums
OUTPUT/.work/                                 what lies between the stages, removed at the end
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from mixtura.platform.config import STREAM, leaves, parse_bytes
from mixtura.platform.corpus.accounts import Account, total
from mixtura.platform.corpus.html_pages import check_extractor
from mixtura.platform.corpus.keys import BUCKETS, HELD_BYTES
from mixtura.platform.corpus.settings import CorpusSettings
from mixtura.platform.corpus.shards import SPLITS, shard_jobs, write_shard
from mixtura.platform.corpus.stages import (
    KINDS,
    NEARLY_EQUAL,
    FileJob,
    check_lists,
    entry_place,
    finish_file,
    judge_keys,
    lists_of,
    mark_text,
    read_file,
    set_aside_file,
    shingle_file,
    thin_file,
    unit_at,
)
from mixtura.platform.corpus.tables import read_rows
from mixtura.platform.corpus.work_files import names_below, read, write
from mixtura.platform.errors import DataError, RequestError
from mixtura.platform.files import disk_full_is_an_answer, exclusive_lock, xxh3_128
from mixtura.platform.filesystems import Found, absolute, is_uri, joined, move, remove_folder, shown
from mixtura.platform.orchestration.corpus_tasks import Job, Lost, MapJobs
from mixtura.platform.orchestration.reporter import Reporter, duration
from mixtura.platform.workspace import in_submitted_job

FORMAT = "mixtura-corpus/1"
MANIFEST = "manifest.json"
WORK = ".work"
TITLES = {
    "read": "read and clean",
    "addresses.judge": "compare addresses",
    "mark": "hash text",
    "text.judge": "compare text",
    "finish": "finish pages",
    "shingle": "hash shingles",
    "near.judge": "compare pages",
    "thin": "leave out near pages",
    "pack": "write shards",
}
"""What stages are called where people look."""
_ROWS_OF_JOB = 200_000
_LONGEST = 20
_NAMED = 5
_MOST_REPEATED = 20
_SAMPLES, _SAMPLED_FILES = 5, 200


@dataclass
class Build:
    """A corpus that is being made."""

    files: Sequence[Found]
    settings: CorpusSettings
    output: str
    """folder or bucket, as an absolute place"""
    map_jobs: MapJobs
    cpus: int
    reporter: Reporter
    price: float | None = None
    """Of an hour of a core."""
    expected: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a core that each stage may take."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of all processes together, by stage."""

    @property
    def work(self) -> str:
        """Folder or bucket of what lies between the stages."""
        if self.settings.work is None:
            return joined(self.output, WORK)
        own = xxhash.xxh3_64_hexdigest(self.output.encode())
        return joined(absolute(self.settings.work), f"corpus-{own[:8]}")

    @property
    def shards(self) -> str:
        """Where shards are until all of them are there: in the file system of the output."""
        return joined(self.output, WORK, "shards")

    def identity(self) -> dict[str, Any]:
        """What decides the corpus."""
        values = {path: value for path, effect, value in leaves(self.settings) if effect is STREAM}
        files = [[file.uri, file.size, file.version] for file in self.files]
        listed = xxhash.xxh3_128_hexdigest(json.dumps(files).encode())
        lists = {path: xxh3_128(Path(path)) for path in sorted(lists_of(self.settings))}
        return {"format": FORMAT, "files": len(files), "listing": listed, "settings": values, "lists": lists}


def build_corpus(build: Build) -> dict[str, Any]:
    """Make a corpus, going on from whatever of it is there; returns its manifest."""
    if (manifest := _made(build)) is not None:
        _remove_work(build)  # of one that was killed as it removed it
        return manifest
    with _lock(build.output), disk_full_is_an_answer(Path(build.output), "making a corpus"):
        if (manifest := _made(build)) is not None:
            return manifest
        _begin(build)
        return _build(build)


def check_request(files: Sequence[Found], settings: CorpusSettings, output: str) -> None:
    """Raise where the work would end with an error that can be seen before."""
    for place in filter(None, (output, settings.work)):
        if in_submitted_job() and not is_uri(place) and not Path(place).expanduser().is_absolute():
            raise RequestError(
                f"{place!r} is relative, but a submitted job works in a copy of its folder that is deleted later: give "
                "an absolute path that all machines have, or a bucket"
            )
    if not files:
        raise RequestError("no input is given: name files, patterns or lists of paths with --input")
    check_lists(settings)
    if any(".warc" in file.uri and ".wet" not in file.uri for file in files):
        check_extractor()


def _made(build: Build) -> dict[str, Any] | None:
    """The manifest, if exactly this corpus is there; refuses one that differs."""
    found = read_manifest(build.output)
    if found is None:
        return None
    asked, there = build.identity(), {name: found[name] for name in build.identity()}
    if asked != there:
        raise RequestError(
            f"{shown(build.output)} holds a corpus that was made otherwise: {_difference(there, asked)}; "
            "give another --output, or remove that folder"
        )
    return found


def read_manifest(output: str) -> dict[str, Any] | None:
    """The manifest of a corpus; None where there is none."""
    data = read(joined(absolute(output), MANIFEST))
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DataError(f"{shown(output)}/{MANIFEST} is damaged: {error}; bring it back from a copy") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{shown(output)}/{MANIFEST} is not that of a corpus of this version ({FORMAT})")
    return found


def _difference(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    before, now = there["settings"], asked["settings"]
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
    for path, digest in asked["lists"].items():
        if there["lists"].get(path) != digest:
            return f"the list {path} has changed"
    if there["files"] != asked["files"]:
        return f"of {there['files']} files, and these are {asked['files']}"
    return "its files have other names, sizes or times"


def _begin(build: Build) -> None:
    place = joined(build.work, "plan.json")
    there = read(place)
    asked = build.identity()
    if there is None:
        names = [] if is_uri(build.output) else [path.name for path in Path(build.output).iterdir()]
        if others := sorted(set(names) - {WORK, ".lock"}):
            raise RequestError(f"{shown(build.output)} is not empty ({others[0]}): give a new folder as --output")
        write(place, json.dumps(asked).encode())
    elif json.loads(there) != asked:
        raise RequestError(
            f"{shown(build.output)} holds a corpus that was begun otherwise: {_difference(json.loads(there), asked)}; "
            f"run that command again to end it, give another --output, or remove {shown(build.work)}"
        )


@contextlib.contextmanager
def _lock(output: str) -> Iterator[None]:
    if is_uri(output):
        yield
        return
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"no corpus can be put at {output}: {error.strerror}; give another --output") from error
    with exclusive_lock(Path(output) / ".lock", f"{output} is being made"):
        yield


def _build(build: Build) -> dict[str, Any]:
    settings, count = build.settings, len(build.files)
    plain = settings.model_dump(mode="json")
    dropped = joined(build.output, "dropped") if settings.shards.dropped else ""
    jobs = [
        FileJob(build.work, index, file.uri, file.size, plain, files=count, dropped=dropped)
        for index, file in enumerate(build.files)
    ]
    read_entries = _stage(build, "read", read_file, [vars(job) for job in jobs], lost=set_aside_file)
    _tell_set_aside(build, read_entries)
    withs = [index for index, entry in read_entries.items() if entry["pages"]]
    verdicts = [0, 0, 0]

    def again() -> list[Job]:
        """The files that have pages, with all that has been judged."""
        return [{**vars(jobs[index]), "verdicts": tuple(verdicts)} for index in withs]

    if settings.addresses.newest:
        verdicts[0], _ = _judge(build, "addresses", {index: read_entries[index] for index in withs})
    repeated: list[dict[str, Any]] = []
    if settings.duplicates.of is not None:
        marked = _stage(build, "mark", mark_text, again())
        verdicts[1], repeated = _judge(build, "text", marked, tell_kept=settings.duplicates.of == "spans")
    finished = _stage(build, "finish", finish_file, again())
    documents, last = "documents", finished
    thinned: dict[int, Job] = {}
    if settings.duplicates.near:
        shingled = _stage(build, "shingle", shingle_file, again())
        verdicts[2], _ = _judge(build, "near", shingled)
        thinned = _stage(build, "thin", thin_file, again())
        documents, last = "thinned", thinned
    shards = _stage(
        build,
        "pack",
        write_shard,
        shard_jobs(
            [last[index] for index in sorted(last)],
            documents,
            build.work,
            build.shards,
            settings.shards.format,
            parse_bytes(settings.shards.size),
        ),
    )
    return _commit(build, [read_entries, finished, thinned], shards, repeated)


def _stage(
    build: Build,
    name: str,
    function: Callable[[Job], Job],
    jobs: Sequence[Job],
    lost: Lost | None = None,
) -> dict[int, Job]:
    """What a stage's jobs say, by their numbers; only those that are not done are run."""
    whole = joined(build.work, f"{name}.json")
    done: dict[int, Job] = {}
    if (data := read(whole)) is not None:
        done = {entry["index"]: entry for entry in json.loads(data)}
    else:
        for path in sorted(names_below(joined(build.work, f"{name}.done"))):
            if data := read(joined(build.work, f"{name}.done", path)):
                entry = json.loads(data)
                done[entry["index"]] = entry
    missing = [job for job in jobs if job["index"] not in done]
    if missing:
        progress = _Progress(build, name, jobs, done)
        for entry in build.map_jobs(function, missing, lost):
            done[entry["index"]] = entry
            progress.tell(entry)
        build.reporter.settle()
        write(whole, json.dumps([done[index] for index in sorted(done)]).encode())
    build.seconds[name] = sum(entry["seconds"] for entry in done.values())
    return done


class _Progress:
    """How far a stage is: in the bytes of its files where they are known, otherwise in jobs."""

    def __init__(self, build: Build, name: str, jobs: Sequence[Job], done: Mapping[int, Job]) -> None:
        self._build, self._name, self._title = build, name, TITLES[name]
        self._sizes = {job["index"]: job.get("size", 0) for job in jobs}
        self._by_size = all(self._sizes.values())
        self._total = sum(self._sizes.values()) / 1e6 if self._by_size else len(jobs)
        self._done = sum(map(self._amount, done))
        self._begun, self._text, self._spent = time.monotonic(), 0, 0.0
        build.reporter.progress(self._title, self._done, self._total, "")

    def _amount(self, index: int) -> float:
        return self._sizes[index] / 1e6 if self._by_size else 1

    def tell(self, entry: Job) -> None:
        """Count a job that has ended."""
        self._done += self._amount(entry["index"])
        self._text += entry.get("text_bytes", 0)
        self._spent += entry["seconds"]
        elapsed = max(time.monotonic() - self._begun, 1e-3)
        parts = ["MB" if self._by_size else "jobs"]
        if self._text:
            parts.append(f"{self._text / 1e6 / elapsed:.1f} MB/s of text")
        if self._build.price is not None:
            seconds = sum(self._build.seconds.values()) + self._spent
            parts.append(f"cost {self._build.price * seconds / 3600:.3g}")
        if left := self._time_left(elapsed):
            parts.append(f"all of it in {left}")
        self._build.reporter.progress(self._title, round(self._done, 1), round(self._total, 1), "  ".join(parts))

    def _time_left(self, elapsed: float) -> str:
        """How long all that is left takes, by the estimate and by how right it has been in this stage."""
        expected, done = self._build.expected, self._done / max(self._total, 1e-9)
        if self._name not in expected or done <= 0:
            return ""
        later = [stage for stage in expected if stage not in self._build.seconds and stage != self._name]
        told = expected[self._name] > 0.05 * sum(expected.values())  # a short stage says nothing of the others
        rightness = min(4.0, max(0.25, self._spent / (expected[self._name] * done))) if told else 1.0
        left = sum(expected[stage] for stage in later) * rightness / self._build.cpus + elapsed * (1 - done) / done
        return duration(left)


def _judge(
    build: Build, kind: str, entries: Mapping[int, Job], *, tell_kept: bool = False
) -> tuple[int, list[dict[str, Any]]]:
    """Judge all keys of a kind, in as many ranges as the memory asks for and as keep the CPUs at work."""
    assert kind in KINDS
    runs = [[index, len(entries[index]["runs"])] for index in sorted(entries)]
    rows = sum(sum(entry["runs"]) for entry in entries.values())
    for_memory = -(-rows * HELD_BYTES // parse_bytes(build.settings.memory))
    for_cpus = min(build.cpus, -(-rows // _ROWS_OF_JOB))
    count = min(BUCKETS, max(1, for_memory, for_cpus))
    if (there := read(joined(build.work, f"{kind}.ranges.json"))) is not None:
        count = json.loads(there)  # other CPUs or memory must not change what other jobs have been told
    else:
        write(joined(build.work, f"{kind}.ranges.json"), json.dumps(count).encode())
    jobs = [
        {
            "index": number,
            "work": build.work,
            "kind": kind,
            "files": len(build.files),
            "runs": runs,
            "buckets": [BUCKETS * number // count, BUCKETS * (number + 1) // count],
            "tell_kept": tell_kept,
        }
        for number in range(count)
    ]
    judged = _stage(build, f"{kind}.judge", judge_keys, jobs)
    repeated = [one for entry in judged.values() for one in entry["repeated"]]
    repeated.sort(key=lambda one: (-one["count"], one["file"], one["page"], one["line"]))
    return count, repeated[:_MOST_REPEATED]


def _tell_set_aside(build: Build, entries: Mapping[int, Job]) -> None:
    causes = [(index, entry["set_aside"]) for index, entry in entries.items() if entry["set_aside"]]
    if causes and len(causes) == len(build.files):
        raise DataError(f"none of the {len(causes)} files can be read; the first: {min(causes)[1]}")
    for _, cause in sorted(causes)[:_NAMED]:
        build.reporter.line(f"set aside: {cause}")
    if len(causes) > _NAMED:
        build.reporter.line(f"set aside: {len(causes) - _NAMED} more files; accounts.jsonl names them")
    if not any(entry["pages"] for entry in entries.values()):
        total_left_out = total(Account.from_json(entry["account"]) for entry in entries.values()).records_left_out
        raise DataError(
            f"there is no page in the {len(build.files)} files; records were left out as: "
            f"{dict(total_left_out) or 'there were none'}"
        )


def _commit(
    build: Build, stages: Sequence[Mapping[int, Job]], shards: Mapping[int, Job], repeated: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Put everything to its place, the manifest last."""
    accounts, whole = [], Account()
    for index, file in enumerate(build.files):
        account = total(Account.from_json(stage[index]["account"]) for stage in stages if index in stage)
        whole.add(account)
        accounts.append({"file": file.uri, "cause": stages[0][index]["set_aside"] or None, **account.to_json()})
    if gaps := whole.gaps():
        raise AssertionError(f"the accounts do not add up: {gaps}")
    write(joined(build.output, "accounts.jsonl"), b"".join(json.dumps(one).encode() + b"\n" for one in accounts))
    write(
        joined(build.output, "samples.json"),
        json.dumps(_samples(build, whole, stages[1], repeated), ensure_ascii=False, indent=1).encode(errors="replace"),
    )
    listed = []
    for index in sorted(shards):
        shard = {name: value for name, value in shards[index].items() if name not in ("index", "seconds")}
        move(joined(build.shards, shard["name"]), joined(build.output, shard["name"]))
        listed.append(shard)
    write(
        joined(build.output, "time.json"),
        json.dumps({"seconds": build.seconds, "cpus": build.cpus, "price": build.price}).encode(),
    )
    manifest = {
        **build.identity(),
        "splits": {split: [one for one in listed if one["split"] == split] for split in SPLITS},
        "account": whole.to_json(),
    }
    write(joined(build.output, MANIFEST), (json.dumps(manifest, indent=1) + "\n").encode())
    _remove_work(build)
    return manifest


def described(manifest: Mapping[str, Any], output: str) -> Iterator[str]:
    """What a corpus has, in a few lines."""
    account = Account.from_json(manifest["account"])
    for split, shards in manifest["splits"].items():
        documents, size = account.pages_out[split], account.bytes_out[split]
        yield f"{split}: {documents:,} documents, {size / 1e6:,.1f} MB of text in {len(shards)} shards"
    kept = account.pages_out.total()
    yield f"{kept:,} of {account.pages:,} pages stay ({kept / max(account.pages, 1):.1%})"
    if account.set_aside:
        yield f"{account.set_aside} of {account.files} files could not be read: see accounts.jsonl"
    yield shown(absolute(output))


def _samples(
    build: Build, whole: Account, finished: Mapping[int, Job], repeated: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A few examples of everything, from the first files that have any."""
    longest = sorted((tuple(one) for entry in finished.values() for one in entry["longest"]), key=lambda one: -one[0])
    near = {reason: count for reason, count in whole.pages_left_out.items() if reason == NEARLY_EQUAL}
    pages = {reason: count for reason, count in whole.pages_left_out.items() if reason != NEARLY_EQUAL}
    return {
        "records": _examples(build, "records", whole.records_left_out),
        "lines": _examples(build, "lines", {}),
        "pages": {**_examples(build, "pages", pages), **_examples(build, "near", near)},
        "longest_lines": [{"characters": count, "begin": begin} for count, begin in longest[:_LONGEST]],
        "most_repeated": [{"count": one["count"], "text": _text_at(build, one)} for one in repeated],
    }


def _examples(build: Build, kind: str, counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Examples of each reason. Files are looked through until all reasons have some; of lines, whose examples come from
    few pages, so many files are."""
    folder, found = joined(build.work, f"{kind}.samples"), {reason: list[str]() for reason in counts}
    for number, name in enumerate(sorted(names_below(folder))):
        if counts and all(len(some) >= min(_SAMPLES, counts[reason]) for reason, some in found.items()):
            break
        if number >= _SAMPLED_FILES and not counts:
            break
        for reason, some in json.loads(read(joined(folder, name)) or b"{}").items():
            kept = found.setdefault(reason, [])
            kept.extend(some[: _SAMPLES - len(kept)])
    return found


def _text_at(build: Build, place: Mapping[str, Any]) -> str:
    """A line, or a span of sentences, that occurs often."""
    index, page = place["file"], place["page"]
    batches = json.loads(read(entry_place(build.work, "read", index)) or b"{}")["batches"]
    batch = max(number for number, first in enumerate(batches) if first <= page)
    rows = read_rows(joined(build.work, "pages", f"{index:06d}.arrow"), ("text",), batch)
    for number, (text,) in enumerate(rows, start=batches[batch]):
        if number == page:
            return unit_at(text, place["line"], build.settings)
    raise AssertionError(f"no page {page} in file {index}")


def _remove_work(build: Build) -> None:
    for place in {build.work, joined(build.output, WORK)}:
        if is_uri(place):
            remove_folder(place)
        else:
            shutil.rmtree(place, ignore_errors=True)
