"""A corpus that is made, as it lies in its folder or bucket: read, and checked against its manifest."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from mixtura.platform.corpus.accounts import Account
from mixtura.platform.corpus.shards import SPLITS, digest_of
from mixtura.platform.corpus.work_files import names_below, read
from mixtura.platform.errors import DataError, RequestError
from mixtura.platform.filesystems import absolute, files_below, is_uri, is_web, joined, shown
from mixtura.platform.orchestration.corpus import MANIFEST, WORK, read_manifest
from mixtura.platform.orchestration.reporter import Reporter

_AGAIN = "bring it back from a copy, or remove the folder and run its `mixtura corpus build` again"
_NAMED = 3
_SAMPLED, _LISTED = ("records", "lines", "pages"), ("longest_lines", "most_repeated")


@dataclass(frozen=True)
class Corpus:
    """What is known of a corpus."""

    place: str
    settings: Mapping[str, Any]
    """By their dotted names."""
    account: Account
    splits: Mapping[str, Sequence[Mapping[str, Any]]]
    """The shards of each."""
    files: Sequence[Mapping[str, Any]]
    """The largest of the files that it was made of, each with what became of it, by the bytes of their text."""
    set_aside: Sequence[Mapping[str, Any]]
    """Those that could not be read, each with the cause."""
    samples: Mapping[str, Any]
    seconds: Mapping[str, float]
    """Of all processes together, by stage."""
    cpus: int
    price: float | None
    """Of an hour of a core, if one was given when it was made."""


def corpus_at(place: str, most_files: int) -> Corpus:
    """Read a corpus whose shards are all there, each with its size.

    Raises RequestError where there is none or where it is not finished, DataError where it is damaged.
    """
    place = absolute(place)
    manifest = _manifest(place)
    try:
        account = Account.from_json(manifest["account"])
        splits = {split: manifest["splits"][split] for split in SPLITS}
        if gaps := account.gaps():
            raise _damaged(place, MANIFEST, f"its sums miss {gaps}")
        for split, shards in splits.items():
            if sum(shard["documents"] for shard in shards) != account.pages_out[split]:
                raise _damaged(place, MANIFEST, f"its shards of {split} have not the documents of the account")
        settings = dict(manifest["settings"])
        _check_shards(place, _sizes(place), splits)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(place, MANIFEST, f"{type(error).__name__}: {error}") from error
    files, set_aside = _files(place, account, most_files)
    samples = _plain_values(place, "samples.json", dict.fromkeys(_SAMPLED, dict) | dict.fromkeys(_LISTED, list))
    time = _plain_values(place, "time.json", {"seconds": dict, "cpus": int, "price": int | float | None})
    return Corpus(
        place, settings, account, splits, files, set_aside, samples, time["seconds"], time["cpus"], time["price"]
    )


def verify_shards(corpus: Corpus, reporter: Reporter) -> None:
    """Read every shard whole; raises DataError where its bytes are not those that were written."""
    shards = [shard for shards in corpus.splits.values() for shard in shards]
    total, done = sum(shard["bytes"] for shard in shards) / 1e6, 0.0
    for shard in shards:
        digest, _ = digest_of(joined(corpus.place, shard["name"]))
        if digest != shard["xxh3_128"]:
            raise _damaged(corpus.place, shard["name"], "its bytes are not those that were written")
        done += shard["bytes"] / 1e6
        reporter.progress("verify", round(done, 1), round(total, 1), "MB")
    reporter.settle()


def _manifest(place: str) -> dict[str, Any]:
    if is_web(place):
        raise RequestError(f"{shown(place)}: a web server's folders cannot be listed; name a folder or a bucket")
    if not is_uri(place) and not Path(place).is_dir():
        what = "is a file: name the corpus's folder" if Path(place).exists() else "is not there: check its name"
        raise RequestError(f"{shown(place)} {what}")
    if (manifest := read_manifest(place)) is not None:
        return manifest
    if names_below(joined(place, WORK)) or (not is_uri(place) and (Path(place) / ".lock").exists()):
        raise RequestError(
            f"the corpus in {shown(place)} is not finished: its `mixtura corpus build` is at work, or was stopped and "
            "goes on when the same command is run again"
        )
    raise RequestError(f"{shown(place)} holds no corpus, since it has no {MANIFEST}; name what `corpus build` wrote")


def _sizes(place: str) -> dict[str, int]:
    if is_uri(place):
        return {name: file.size for name, file in files_below(place).items()}
    return {path.name: path.stat().st_size for path in Path(place).iterdir() if path.is_file()}


def _check_shards(place: str, sizes: Mapping[str, int], splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    shards = [shard for shards in splits.values() for shard in shards]
    wrong = [
        f"{shard['name']} has {sizes[shard['name']]:,} bytes in place of {shard['bytes']:,}"
        if shard["name"] in sizes
        else f"{shard['name']} is missing"
        for shard in shards
        if sizes.get(shard["name"]) != shard["bytes"]
    ]
    if wrong:
        more = f" (and {len(wrong) - _NAMED} more)" if len(wrong) > _NAMED else ""
        raise DataError(
            f"{len(wrong)} of {len(shards)} shards in {shown(place)} are not as they were written: "
            f"{'; '.join(wrong[:_NAMED])}{more}; {_AGAIN}"
        )


def _files(place: str, account: Account, most: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The largest files and those that were set aside; all of them together must give the corpus's account."""
    name, whole = "accounts.jsonl", Account()
    set_aside: list[Mapping[str, Any]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for line in _read(place, name).splitlines():
            row = json.loads(line)
            whole.add(Account.from_json({key: row[key] for key in vars(whole)}))
            if row["cause"]:
                set_aside.append(row)
            yield row

    try:
        largest = heapq.nlargest(most, rows(), key=lambda row: (row["page_bytes"], row["bytes_read"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(place, name, f"{type(error).__name__}: {error}") from error
    if whole != account:
        raise _damaged(place, name, f"its {whole.files:,} files together give other numbers than {MANIFEST}")
    return list(largest), set_aside


def _read(place: str, name: str) -> bytes:
    data = read(joined(place, name))
    if data is None:
        raise DataError(f"{name} of the corpus in {shown(place)} is missing; {_AGAIN}")
    return data


def _plain_values(place: str, name: str, kinds: Mapping[str, type | UnionType]) -> dict[str, Any]:
    """The values of a JSON file, each of the kind that it was written as."""
    try:
        found = json.loads(_read(place, name))
    except ValueError as error:
        raise _damaged(place, name, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(place, name, "it is no JSON object")
    for key, kind in kinds.items():
        if key not in found or not isinstance(found[key], kind):
            raise _damaged(place, name, f"its {key!r} is no {getattr(kind, '__name__', kind)}")
    return found


def _damaged(place: str, name: str, what: str) -> DataError:
    return DataError(f"{name} of the corpus in {shown(place)} is damaged: {what}; {_AGAIN}")
