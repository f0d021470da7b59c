"""Token caches: a task's tokens in a folder or a bucket, open while they are prepared and closed by a manifest.

    caches/squad-3f0c9a1be55d0b42/
      listing.json                      what the cache is made from and how many shards each split has; written first
      train-00000-of-00004.arrow        one record batch in the Arrow IPC file format
      train-00000-of-00004.json         its entry: rows, tokens, bytes, digest, what was rejected; written after it
      rejected/train-00000-of-00004.jsonl
      ...
      failure.json                      why preparing ended early, if it did
      manifest.json                     all entries and what the cache was made from; written last

A supervised cache has the columns `inputs` and `targets` (token lists, untrimmed, without EOS; text columns are kept
beside them), an unsupervised one has `tokens`, one row a document. Shards with an entry need not be made again. Shards
of an open unsupervised cache can be read while later ones are still being made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixtura.platform import filesystems
from mixtura.platform.data.cache_store import BucketStore, Copies, FolderStore, Place, Store, read_ahead, store_at
from mixtura.platform.data.ragged import Int64, Ragged
from mixtura.platform.data.shard_writer import TOKEN_COLUMNS, Entry, ShardWriter, entry_bytes, kind_of, shard_name
from mixtura.platform.errors import CorruptCacheError, DataError, MixturaError, from_plain, to_plain

FORMAT = 1
MANIFEST = "manifest.json"
LISTING = "listing.json"
FAILURE = "failure.json"

_VERIFIED_AT_ONCE_BYTES = 1 << 30
"""A folder's cache up to this size is verified when it is opened, a larger one shard by shard at their first use."""
_POLL_S = 0.2
_LONGEST_POLL_S = 2.0
_REQUESTS_AT_ONCE = 8
_OPEN_MAPS = 256
_TOUCH_S = 10.0
_SHOWN_LENGTH = 40


def cache_key(parts: Mapping[str, Any]) -> str:
    """What a cache was made from, as 16 hex digits; the order of the parts is without effect.

    >>> cache_key({"task": "rte", "vocabulary": "9f"}) == cache_key({"vocabulary": "9f", "task": "rte"})
    True
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def cache_place(root: Place, task: str, parts: Mapping[str, Any]) -> str:
    """Where the cache of a task lies.

    >>> cache_place("s3://bucket/caches", "glue/rte", {"vocabulary": "9f"})
    's3://bucket/caches/glue_rte-94caf0f95b1f202c'
    """
    return filesystems.joined(root, f"{_stem(task)}-{cache_key({'task': task, **parts})}")


def _stem(task: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", task)


def write_shard(
    place: Place,
    index: int,
    count: int,
    split: str,
    table: pa.Table,
    *,
    rejected: Sequence[Mapping[str, Any]] = (),
    counters: Mapping[str, int] | None = None,
) -> Entry:
    """Write a shard that is at hand as a table, token lists and texts; see `ShardWriter`."""
    kind = kind_of(table.column_names)
    texts = [name for name in table.column_names if name not in TOKEN_COLUMNS[kind]]
    with ShardWriter(place, index, count, split, kind, text=texts) as writer:
        columns: dict[str, Ragged | list[str]] = {name: table.column(name).to_pylist() for name in texts}
        for name in TOKEN_COLUMNS[kind]:
            lists = table.column(name).cast(pa.large_list(pa.int64())).combine_chunks()
            if lists.null_count or lists.flatten().null_count:
                where = f"{writer.name}, column {name}"
                raise DataError(f"{where}: a row without tokens must be an empty list, found a null")
            columns[name] = Ragged.from_arrow(lists)
        writer.append(columns)
        for row in rejected:
            writer.reject(row)
        return writer.close(counters)


def begin(place: Place, name: str, kind: str, made_from: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Open a cache whose splits will have these numbers of shards, before the first of them is written.

    What an earlier preparation left as its failure is forgotten.
    """
    store = store_at(place)
    splits = {split: {"count": count} for split, count in counts.items()}
    store.remove(FAILURE)
    head = {"format": FORMAT, "name": name, "kind": kind, "made_from": dict(made_from)}
    store.write(LISTING, entry_bytes({**head, "splits": splits}))


def leave_failure(place: Place, error: MixturaError) -> None:
    """Say why preparing ended before the cache was closed: whoever waits for a shard raises this error."""
    store_at(place).write(FAILURE, entry_bytes(to_plain(error)))


def committed_shards(place: Place, split: str, count: int) -> dict[int, Entry]:
    """The shards of a split that are whole: entry there, files of the right size and digest. The rest is to be made.

    Of a bucket's files the sizes are compared here, their digests when they are copied. A damaged shard loses its
    entry, so that nobody who waits for the shard takes it for one that is there.
    """
    store = store_at(place)
    there = store.sizes()
    names = {index: f"{shard_name(split, index, count)}.json" for index in range(count)}
    wanted = [index for index, name in names.items() if name in there]
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        entries = dict(zip(wanted, threads.map(lambda index: _whole_entry(store, names[index]), wanted), strict=True))
    return {index: entry for index, entry in entries.items() if entry is not None}


def _whole_entry(store: Store, name: str) -> Entry | None:
    entry = _readable_json(store, name)
    if entry is None or any(_damage(store, file) is not None for file in _files(entry)):
        store.remove(name)
        return None
    return entry


def _files(entry: Entry) -> list[Entry]:
    return [entry, entry["rejected_file"]] if entry["rejected_file"] else [entry]


def _damage(store: Store, file: Entry, *, digest: bool = True) -> str | None:
    """What is wrong with a file of a manifest, or None."""
    return store.damage(file["file"], file["bytes"], file["xxh3_128"] if digest else None)


def _read_json(store: Store, name: str) -> Entry | None:
    if (data := store.read(name)) is None:
        return None
    try:
        value: Entry = json.loads(data)
    except ValueError as error:
        raise store.corrupt(name, f"{name} is not JSON ({error})") from error
    return value


def _readable_json(store: Store, name: str) -> Entry | None:
    try:
        return _read_json(store, name)
    except CorruptCacheError:
        return None


def commit(place: Place, name: str, made_from: Mapping[str, Any], splits: Mapping[str, int]) -> None:
    """Write the manifest of a cache whose splits have these numbers of shards; all must be committed."""
    where = filesystems.shown(str(place))
    listed = {}
    for split, count in splits.items():
        committed = committed_shards(place, split, count)
        if missing := [shard_name(split, index, count) for index in range(count) if index not in committed]:
            raise DataError(f"the cache {where} lacks {len(missing)} of {count} shards: {', '.join(missing[:8])}")
        listed[split] = _totals([committed[index] for index in range(count)])
    kinds = {entry["kind"] for split in listed.values() for entry in split["shards"]}
    if len(kinds) != 1:
        raise DataError(f"the shards of the cache {where} are of {len(kinds)} kinds, must be one: {sorted(kinds)}")
    head = {"format": FORMAT, "name": name, "kind": kinds.pop(), "made_from": dict(made_from)}
    store_at(place).write(MANIFEST, entry_bytes({**head, "splits": listed}))


def _totals(entries: Sequence[Entry]) -> Entry:
    totals: Entry = {key: sum(entry[key] for entry in entries) for key in ("rows", "tokens", "bytes")}
    for key in ("rejected", "counters"):
        counted: Counter[str] = Counter()
        for entry in entries:
            counted.update(entry[key])
        totals[key] = dict(sorted(counted.items()))
    return {**totals, "shards": list(entries)}


def is_closed(place: Place) -> bool:
    """Whether a cache has its manifest."""
    return store_at(place).read(MANIFEST) is not None


def read_manifest(place: Place) -> Entry:
    """The manifest of a closed cache."""
    store = store_at(place)
    return _of_this_format(store, _read_json(store, MANIFEST))


def _of_this_format(store: Store, value: Entry | None) -> Entry:
    where = filesystems.shown(store.place)
    if value is None:
        raise DataError(f"there is no finished token cache in {where}: prepare it with `mixtura prepare RECIPE`")
    if value["format"] != FORMAT:
        raise DataError(
            f"the token cache {where} has format {value['format']}, this version reads format {FORMAT}: "
            f"remove it{f' with `rm -r {where}`' if isinstance(store, FolderStore) else ''} and prepare it again"
        )
    return value


def remove_leftovers(place: Place) -> None:
    """Remove what a killed process left half-written in a folder; only while nobody else writes there."""
    if not filesystems.is_uri(str(place)):
        for path in Path(place).rglob(".*.*"):
            path.unlink(missing_ok=True)


def open_cache(
    place: Place, split: str = "train", copies: Copies | None = None, timeout_s: float | None = None
) -> TokenCache:
    """A split of a cache; of a bucket's cache, `copies` says where its shards are kept on this node.

    A closed cache is verified: in a folder at once (if it is small), in a bucket shard by shard as they are copied.
    CorruptCacheError says what differs and what to do. Of an open cache, which must be unsupervised, each shard can be
    read as soon as it is there: `timeout_s` is how long to wait for one, or None for ever.
    """
    store = store_at(place, copies)
    manifest = _read_json(store, MANIFEST)
    listing = _of_this_format(store, manifest or _read_json(store, LISTING))
    where = filesystems.shown(store.place)
    if split not in listing["splits"]:
        raise DataError(f"the token cache {where} has no split {split!r}; it has {', '.join(listing['splits'])}")
    kind, listed = listing["kind"], listing["splits"][split]
    if manifest is not None:
        _verify(store, listed["shards"])
        entries = dict(enumerate(listed["shards"]))
        return TokenCache(store, listing["name"], split, kind, len(entries), entries)
    if kind != "unsupervised":
        raise DataError(
            f"the token cache {where} is still being prepared, and a supervised one is read only when it is whole: "
            "wait for `mixtura prepare RECIPE` to end, or run it again if it was interrupted"
        )
    return TokenCache(store, listing["name"], split, kind, listed["count"], {}, timeout_s)


def _verify(store: Store, entries: Sequence[Entry]) -> None:
    if isinstance(store, FolderStore):
        digest = sum(entry["bytes"] for entry in entries) <= _VERIFIED_AT_ONCE_BYTES
        for entry in entries:
            if damage := _damage(store, entry, digest=digest):
                raise store.corrupt(entry["file"], damage)


class TokenCache:
    """One split of a cache, read through memory maps."""

    def __init__(
        self,
        store: Store,
        name: str,
        split: str,
        kind: str,
        count: int,
        entries: dict[int, Entry],
        timeout_s: float | None = None,
    ) -> None:
        self._store, self._entries, self._timeout_s = store, entries, timeout_s
        self.place = store.place
        self.name, self.split, self.kind = name, split, kind
        self.count = count
        """Shards, those that are not there yet among them."""

    @property
    def closed(self) -> bool:
        """Whether all shards are known to be there."""
        return len(self._entries) == self.count

    def is_committed(self, shard: int) -> bool:
        """Whether a shard is there by now."""
        if shard not in self._entries:
            entry = _read_json(self._store, f"{shard_name(self.split, shard, self.count)}.json")
            if entry is not None:
                self._entries[shard] = entry
        return shard in self._entries

    def entry(self, shard: int) -> Entry:
        """What a shard holds: rows, tokens, bytes; waits until it is there.

        Raises the error that preparing ended with, or DataError after `timeout_s`.
        """
        if not 0 <= shard < self.count:
            raise IndexError(f"the cache {self.name} has {self.count} shards in its split {self.split}, not {shard}")
        delay_s, begun = _POLL_S, time.monotonic()
        while not self.is_committed(shard):
            if (failure := _read_json(self._store, FAILURE)) is not None:
                raise from_plain(failure)
            waited_s = time.monotonic() - begun
            if self._timeout_s is not None and waited_s >= self._timeout_s:
                raise DataError(
                    f"shard {shard} of {self.count} of {self.name} ({self.split}) was not prepared within "
                    f"{self._timeout_s:g} s in {filesystems.shown(self.place)}: see whether its preparation still "
                    "runs, or prepare it first with `mixtura prepare RECIPE`"
                )
            time.sleep(delay_s if self._timeout_s is None else min(delay_s, self._timeout_s - waited_s))
            if not isinstance(self._store, FolderStore):
                delay_s = min(1.5 * delay_s, _LONGEST_POLL_S)
        return self._entries[shard]

    def _all(self) -> Iterator[Entry]:
        return map(self.entry, range(self.count))

    @property
    def shard_rows(self) -> list[int]:
        """Rows of every shard: examples, or documents."""
        return [entry["rows"] for entry in self._all()]

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(self.shard_rows)

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(entry["tokens"] for entry in self._all())

    def table(self, shard: int) -> pa.Table:
        """A whole shard with all its columns, text columns for metrics among them."""
        return pa.Table.from_batches([self._mapped(shard).batch])

    def column(self, shard: int, name: str) -> Ragged:
        """A token column of a shard as it lies in the map: nothing is copied, and nothing can be changed."""
        return self._mapped(shard).column(name)

    def examples(self, shard: int, rows: Int64) -> tuple[Ragged, Ragged]:
        """Inputs and targets of these rows of a supervised cache."""
        return self.column(shard, "inputs").take(rows), self.column(shard, "targets").take(rows)

    def read_ahead(self, shards: Sequence[int]) -> None:
        """Begin to copy shards of a bucket that will be needed, the first ones first, and return at once.

        No more than half of what copies may take is asked for, so that those in use stay; shards that are not there
        yet are passed over.
        """
        if not isinstance(self._store, BucketStore):
            return
        left = self._store.room_ahead
        for shard in shards:
            left -= self._entries[shard]["bytes"] if shard in self._entries else 0
            if left < 0:
                return
            read_ahead.begin((self.place, self.split, shard), functools.partial(self._copy, shard))

    def _copy(self, shard: int) -> None:
        if self.is_committed(shard):
            self._path(self._entries[shard])

    def _path(self, entry: Entry) -> Path:
        return self._store.local(entry["file"], entry["bytes"], entry["xxh3_128"])

    def _mapped(self, shard: int) -> _Mapped:
        entry = self.entry(shard)
        return _maps.of((self.place, entry["file"], entry["xxh3_128"]), functools.partial(self._map, entry))

    def _map(self, entry: Entry) -> _Mapped:
        for _ in range(3):
            path = self._path(entry)
            try:
                with pa.memory_map(str(path)) as source:
                    return _Mapped(self._store, path, pa.ipc.open_file(source).get_batch(0))
            except FileNotFoundError:  # another process needed the room for its copy just then
                continue
        raise DataError(
            f"the local copy of {self._store.at(entry['file'])} was removed three times before it could be read: "
            "raise data.copies_size, too many processes share it"
        )


@dataclass
class _Mapped:
    store: Store
    path: Path
    batch: pa.RecordBatch
    columns: dict[str, Ragged] = field(default_factory=dict)
    used_s: float = field(default_factory=time.monotonic)

    def column(self, name: str) -> Ragged:
        if (found := self.columns.get(name)) is None:
            found = self.columns[name] = Ragged.from_arrow(self.batch.column(name))
        return found

    def touch(self) -> None:
        if (now := time.monotonic()) - self.used_s > _TOUCH_S:
            self.used_s = now
            self.store.used(self.path)


class _Maps:
    """The maps of this process that were used last. One whose file is gone would keep its bytes on the disk, beyond
    what copies may take: those are dropped whenever another is made."""

    def __init__(self) -> None:
        self._maps: OrderedDict[tuple[str, ...], _Mapped] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: tuple[str, ...], make: Callable[[], _Mapped]) -> _Mapped:
        """The map with this key, or a new one."""
        with self._lock:
            if (found := self._maps.get(key)) is not None:
                self._maps.move_to_end(key)
                found.touch()
                return found
        made = make()
        with self._lock:
            for gone in [known for known, mapped in self._maps.items() if not mapped.path.exists()]:
                del self._maps[gone]
            self._maps[key] = made
            while len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        return made


_maps = _Maps()


def why_new(root: Place, name: str, made_from: Mapping[str, Any]) -> str | None:
    """Why no other cache of a task below `root` does, if there are any: what differs from the most recent of them.

    None if this very cache was begun already, or if the task has none.
    """
    own = cache_place(root, name, made_from)
    known = {}
    for folder in _folders(root):
        if re.fullmatch(rf"{re.escape(_stem(name))}-[0-9a-f]{{16}}", folder):
            store = store_at(filesystems.joined(root, folder))
            for head in (LISTING, MANIFEST):
                if (said := _readable_json(store, head)) is not None:
                    if filesystems.joined(root, folder) == own:
                        return None
                    if said["name"] == name:
                        known[folder] = (store.changed_ns(head), said["made_from"])
                    break
    if not known:
        return None
    latest = max(known, key=lambda folder: known[folder][0])
    before, now = dict(_leaves(known[latest][1])), dict(_leaves(made_from))
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    reasons = "; ".join(_difference(key, before, now) for key in differing)
    return f"{name} is prepared anew, since {latest} was made from something else: {reasons}"


def _folders(root: Place) -> list[str]:
    if filesystems.is_uri(str(root)):
        return filesystems.folders_in(str(root))
    return [path.name for path in Path(root).iterdir() if path.is_dir()] if Path(root).is_dir() else []


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _difference(key: tuple[str, ...], before: Mapping[Any, Any], now: Mapping[Any, Any]) -> str:
    """One key's difference for people; digests say nothing to them.

    >>> _difference(("preprocessing",), {("preprocessing",): "1"}, {("preprocessing",): "2"})
    "preprocessing was '1', is '2'"
    >>> _difference(("source", "train"), {("source", "train"): "3f0c9a1b"}, {("source", "train"): "55d0b42e"})
    'source of train changed'
    """
    what = " of ".join(map(str, key))
    if key not in before or key not in now:
        return f"{what} is {'not used any more' if key in before else 'used too'}"
    values = before[key], now[key]
    if any(len(str(value)) > _SHOWN_LENGTH or re.fullmatch(r"[0-9a-f]{8,}", str(value)) for value in values):
        return f"{what} changed"
    return f"{what} was {values[0]!r}, is {values[1]!r}"
