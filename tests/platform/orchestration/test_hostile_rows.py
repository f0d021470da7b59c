"""Law L3, nothing is lost silently: thousands of hostile rows among good ones, in every format, through `prepare`.

Each shard is generated as a list of records, of which each says what must become of it: `keeps` texts that must be in
the cache as their tokens, once and in order, or a `reason` under which the row must be counted.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixtura.platform.data.cache import TokenCache, open_cache, read_manifest
from mixtura.platform.data.vocabulary import Vocabulary, train_vocabulary
from mixtura.platform.orchestration.prepare import Prepared, map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe, task_of
from mixtura.platform.workspace import workspace

pytestmark = pytest.mark.slow

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "every", "other", "animal", "very", "quiet"]
LONG = "line of more than 16 MiB"
DEEP = "nested more than 100 deep"
TWICE = "an object with a key twice"
HALF = "half of a surrogate pair"
DIGITS = "a number of too many digits"
MISFIT = "quotes that do not fit"
EARLY = "the compressed file ends early"

# Texts that look dangerous and are text like any other.
STRANGE = (
    "<extra_id_0> and <extra_id_99> are words",
    "</s><pad><unk> the cat",
    "the\ufeffcat \u200b sat",
    "\x01the \x1b[31mcat\x7f",
    "the\u2028cat\x85sat \x0b\x0c\x1c on",
    "\u202ethe cat\U000e0001 sat 👩\u200d👩\u200d👧",
    "the" * 350_000,
)


@dataclass(frozen=True)
class Record:
    """A piece of a file, and what must become of it: a text in the cache, or a reason."""

    data: bytes
    keeps: str | None = None
    reason: str | None = None


@dataclass
class File:
    """A file of a split, which is one shard."""

    task: str
    path: Path
    records: list[Record]


def serials() -> Iterator[str]:
    """Texts that differ, each with its number."""
    chance = random.Random(11)
    for number in range(1_000_000):
        yield f"{number} {' '.join(chance.choices(WORDS, k=chance.randrange(3, 12)))}"


SERIALS = serials()


def mixed(good: Callable[[str], bytes], bad: Sequence[tuple[bytes, str]], seed: int, count: int = 1000) -> list[Record]:
    """Good records and twice as many bad ones in no order; the kinds of bad ones are equally many."""
    chance = random.Random(seed)
    hostile = [Record(data, reason=reason) for data, reason in bad]
    records = [hostile[number % len(hostile)] for number in range(count * 2 // 3)]
    kinds = [*STRANGE[:-1] * 3, STRANGE[-1], *(next(SERIALS) for _ in range(count // 3))]
    records += [Record(good(text), keeps=text) for text in kinds]
    chance.shuffle(records)
    return records


def lines(records: Sequence[Record], head: bytes = b"") -> bytes:
    return head + b"".join(record.data + b"\n" for record in records)


# ---- what is hostile in each format, with the reason that it is counted under ----------------------------------------


def page(text: Any, **more: Any) -> bytes:
    return json.dumps({"text": text, "url": "https://x.org", "timestamp": "2019-04-25T12:57:54Z", **more}).encode()


HOSTILE_JSON: tuple[tuple[bytes, str], ...] = (
    (b'{"text": "bad \xff\xfe bytes"}', "not UTF-8"),
    (b'{"text": "\xed\xa0\x80 half, encoded"}', "not UTF-8"),
    (b'{"text": "cut in a character \xe2\x82"}', "not UTF-8"),
    (b'{"text": "\\ud83d half, escaped"}', HALF),
    (b'{"text": "x", "more": [{"\\uDC00": 1}]}', HALF),
    (b'{"text": "a NUL as it is \0"}', "not JSON"),
    (b'{"text": "cut off', "not JSON"),
    (b'{"text": "no end"', "not JSON"),
    (b"plain words", "not JSON"),
    (b'{"text": "one"} {"text": "two"}', "not JSON"),
    (b"\xef\xbb\xbf" + page("a mark of byte order inside"), "not JSON"),
    (b"", "empty line"),
    (b" \t ", "empty line"),
    (b'["text"]', "not an object"),
    (b"null", "not an object"),
    (b'{"text": "x", "more": ' + b"[" * 300 + b"]" * 300 + b"}", DEEP),
    (b'{"text": "x", "more": ' + b'{"a":' * 150 + b"1" + b"}" * 150 + b"}", DEEP),
    (b'{"text": "x", "text": "y"}', TWICE),
    (b'{"text": "x", "more": {"a": 1, "a": 1}}', TWICE),
    (b'{"text": "x", "size": ' + b"9" * 5000 + b"}", DIGITS),
    (b'{"url": "https://no.text"}', "no field 'text'"),
    (b"{}", "no field 'text'"),
    (b'{"text": null}', "no field 'text'"),
    (b'{"text": {"text": ["nested"]}}', "no field 'text'"),
    (b'{"text": NaN}', "no field 'text'"),
    (b'{"text": -Infinity}', "no field 'text'"),
    (b'{"text": ""}', "empty document"),
)
RARE_JSON = (
    (b"[" * 100_000, DEEP),
    (b'{"a":' * 100_000, DEEP),
    (b'{"text": "x", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", DEEP),
    (b'{"text": "x", "size": ' + b"9" * 1_000_000 + b"}", DIGITS),
    (b'{"text": "' + b"x" * (50 << 20) + b'"}', LONG),
)
"""Large ones, of which a file has few."""

HOSTILE_TABLE: tuple[tuple[bytes, str], ...] = (
    (b"bad \xff bytes\tx\ty", "not UTF-8"),
    (b"\xed\xa0\x80\tx\ty", "not UTF-8"),
    (b"", "empty line"),
    (b"no more fields", "1 field, the table has 3"),
    (b"one too few\tx", "2 fields, the table has 3"),
    (b"too many" + b"\tx" * 9, "10 fields, the table has 3"),
    (b"far too many" + b"\tx" * 5000, "more than 100 fields, the table has 3"),
    (b"\tx\ty", "empty document"),
)
HOSTILE_CSV: tuple[tuple[bytes, str], ...] = (
    (b"bad \xff bytes,x,y", "not UTF-8"),
    (b'"\xed\xa0\x80",x,y', "not UTF-8"),
    (b"", "empty line"),
    (b"one too few,x", "2 fields, the table has 3"),
    (b"too many,x,y,z", "4 fields, the table has 3"),
    (b'"closed" too early,x,y', MISFIT),
    (b"carriage\rreturn,x,y", "a carriage return outside quotes"),
    (b'"",x,y', "empty document"),
)
HOSTILE_TEXT = ((b"bad \xff bytes", "not UTF-8"), (b"\xed\xa0\x80", "not UTF-8"), (b"", "empty document"))
LONG_TEXT = (b"x" * (50 << 20), LONG)


def strewn(records: list[Record], rare: Sequence[tuple[bytes, str]], seed: int) -> list[Record]:
    """The records with some rare hostile ones among them."""
    chance = random.Random(seed)
    for data, reason in rare:
        records.insert(chance.randrange(len(records)), Record(data, reason=reason))
    return records


def kept_as(pattern: str, records: Sequence[Record]) -> list[Record]:
    """The records, where a text that is kept stands in braces of the pattern."""
    return [Record(one.data, one.keeps and pattern.format(one.keeps), one.reason) for one in records]


def table_row(text: str) -> bytes:
    return f"{text}\0\thttps://x.org\t2019".encode()


def csv_row(text: str) -> bytes:
    return ('"' + text.replace('"', '""') + ',\n"",\0",https://x.org,2019').encode()


# ---- files for C4 ----------------------------------------------------------------------------------------------------


def members(records: list[Record], head: bytes = b"") -> tuple[bytes, list[Record]]:
    """A gzip file of three members, of which the second one was cut off, and the records that are left of it."""
    third = len(records) // 3
    parts = [records[:third], records[third : 2 * third], records[2 * third :]]
    packed = [gzip.compress(lines(part, head if not at else b""), 6, mtime=0) for at, part in enumerate(parts)]
    cut = packed[1][: len(packed[1]) // 2]
    whole = zlib.decompressobj(31).decompress(cut).count(b"\n")
    assert 0 < whole < third
    return packed[0] + cut + packed[2], [*parts[0], *parts[1][:whole], Record(b"", reason=EARLY), *parts[2]]


def element_rows(seed: int) -> list[Record]:
    """Elements of one JSON document, which has to be JSON as a whole."""
    bad = [
        (data, reason)
        for data, reason in HOSTILE_JSON
        if reason not in ("not JSON", "not UTF-8", "empty line", DIGITS) and b"Inf" not in data
    ]
    return mixed(page, bad, seed)


def parquet_rows(seed: int) -> tuple[bytes, list[Record]]:
    """Three row groups, of which the second is damaged."""
    bad = (
        (b"\xff\xfe", "not UTF-8"),
        (b"null", "no field 'text'"),
        (b"", "empty document"),
        (b"\xed\xa0\x80", "not UTF-8"),
    )
    records = mixed(lambda text: text.encode(), bad, seed)
    huge = Record(b"x" * (20 << 20), reason="record of more than 16 MiB")
    records.insert(len(records) - 50, huge)
    values = [None if record.data == b"null" else record.data for record in records]
    binary = pa.array(values, pa.large_binary())
    text = pa.Array.from_buffers(pa.large_string(), len(values), binary.buffers(), binary.null_count)
    data, group = io.BytesIO(), -(-len(values) // 3)
    table = pa.table({"text": text, "size": pa.array(range(len(values)))})
    pq.write_table(table, data, row_group_size=group, compression="none", write_page_checksum=True)
    damaged = bytearray(data.getvalue())
    column = pq.ParquetFile(io.BytesIO(damaged)).metadata.row_group(1).column(0)
    damaged[(column.dictionary_page_offset or column.data_page_offset) + 200] ^= 1
    lost = Record(b"", reason="damaged row group")
    return bytes(damaged), [*records[:group], lost, *records[2 * group :]]


def web_files(folder: Path) -> list[File]:
    """C4 in every format that is read; each file begins badly where its format allows it."""
    made: list[File] = []

    def add(name: str, records: list[Record], data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        made.append(File("c4", path, records))

    begin = [Record(data, reason=reason) for data, reason in HOSTILE_JSON[:12]]
    records = begin + strewn(mixed(page, HOSTILE_JSON, 1), RARE_JSON, 1)
    odd = page("the cat " + "x" * 100, size=float("nan"), other=float("inf"))
    records.append(Record(odd, keeps="the cat " + "x" * 100))
    records.append(Record(page("before\0after"), keeps="before\0after"))
    add("a.jsonl", records, lines(records))
    data, left = members(mixed(page, HOSTILE_JSON, 2))
    add("b.json.gz", left, data)
    records = strewn(mixed(page, HOSTILE_JSON, 3), RARE_JSON, 3)
    add("c.json.gz", records, gzip.compress(lines(records), 1))
    records = begin + mixed(page, HOSTILE_JSON, 4)
    add("d.json", records, lines(records))
    records = element_rows(5)
    add("e.json", records, b"[\n" + b",\n".join(record.data for record in records) + b"]\n")
    records = strewn(mixed(table_row, HOSTILE_TABLE, 6), [LONG_TEXT], 6)
    add("f.tsv", kept_as("{}\0", records), lines(records, b"text\turl\ttimestamp\n"))
    records = strewn(mixed(csv_row, HOSTILE_CSV, 7), [LONG_TEXT], 7)
    add("g.csv", kept_as('{},\n",\0', records), lines(records, b"text,url,timestamp\n"))
    data, left = members(mixed(lambda text: f'"{text}",x,y'.encode(), HOSTILE_CSV, 8), b"text,url,timestamp\n")
    add("h.csv.gz", left, data)
    records = strewn(mixed(str.encode, HOSTILE_TEXT, 9), [LONG_TEXT], 9)
    add("i.txt", records, lines(records))
    data, left = members(mixed(str.encode, HOSTILE_TEXT, 10))
    add("j.txt.gz", left, data)
    data, left = parquet_rows(11)
    add("k.parquet", left, data)
    records = strewn(mixed(page, HOSTILE_JSON, 12), RARE_JSON, 12)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.jsonl", lines(records))
    add("l.zip", records, packed.getvalue())
    made[-1].path = folder / "l.zip/m.jsonl"
    return made


# ---- files for supervised tasks --------------------------------------------------------------------------------------


REVIEWS = """
name: reviews
source:
  train: [train.csv, train.jsonl.gz, train.parquet]
inputs: "review: {text}"
targets: "{stars}"
labels: {1: bad, 5: good}
"""


def review_files(folder: Path) -> list[File]:
    """A task in YAML; what is kept of a review is its inputs."""
    unknown = "label is none of the labels"
    bad_csv = (
        (b"bad \xff bytes,1", "not UTF-8"),
        (b"the cat,7", unknown),
        (b"the cat,", unknown),
        (b"the cat", "1 field, the table has 2"),
        (b'"the" cat,1', MISFIT),
        (b"", "empty line"),
    )
    tables = mixed(lambda text: f'"{text}",5'.encode(), bad_csv, 21)
    bad_json = (
        *((data, reason) for data, reason in HOSTILE_JSON if not reason.startswith(("no field", "empty doc"))),
        (b'{"stars": 1}', "no field 'text'"),
        (b'{"text": null, "stars": 1}', "no field 'text'"),
        (b'{"text": "the cat"}', "no field 'stars'"),
        (b'{"text": "the cat", "stars": NaN}', unknown),
        (b'{"text": "the cat", "stars": {"a": [1]}}', unknown),
    )
    records = mixed(lambda text: json.dumps({"text": text, "stars": 1.0}).encode(), bad_json, 22)
    packed, left = members(records)
    bad_values = ((b"\xff", "not UTF-8"), (b"null", "no field 'text'"))
    rows = mixed(str.encode, bad_values, 23)
    binary = pa.array([None if row.data == b"null" else row.data for row in rows], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(rows), binary.buffers(), binary.null_count)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": text, "stars": pa.array([1] * len(rows))}), buffer)
    made = []
    for name, kept, data in (
        ("train.csv", tables, lines(tables, b"text,stars\n")),
        ("train.jsonl.gz", left, packed),
        ("train.parquet", rows, buffer.getvalue()),
    ):
        (folder / name).write_bytes(data)
        made.append(File("reviews", folder / name, kept_as("review: {}", kept)))
    (folder / "reviews.yaml").write_text(REVIEWS)
    return made


def sst2_files(folder: Path) -> list[File]:
    """The original tables of SST-2."""
    bad = (
        (b"bad \xff bytes\t1", "not UTF-8"),
        (b"the cat\t7", "label is none of the classes"),
        (b"the cat\tnan", "label is none of the classes"),
        (b"the cat\t" + b"9" * 5000, "label is none of the classes"),
        (b"the cat", "1 field, the table has 2"),
        (b"the cat\t1\t1", "3 fields, the table has 2"),
        (b"", "empty line"),
    )
    (folder / "SST-2").mkdir()
    records = mixed(lambda text: f"{text}\t1".encode(), bad, 31)
    path = folder / "SST-2/train.tsv"
    path.write_bytes(lines(strewn(records, [LONG_TEXT], 31), b"sentence\tlabel\n"))
    return [File("glue_sst2", path, kept_as("sst2 sentence: {}", records))]


def translation_files(folder: Path) -> list[File]:
    """Two files that belong together line by line."""
    empty, broken = "empty line", "not UTF-8"
    bad = ((b"\xff|||x", broken), (b"x|||\xff", broken), (b"|||x", empty), (b"x||| ", empty))
    records = mixed(lambda text: text.encode() + b"|||Katze", bad, 41)
    records = strewn(records, [(LONG_TEXT[0] + b"|||x", LONG), (b"x|||" + LONG_TEXT[0], LONG)], 41)
    sides = list(zip(*(record.data.split(b"|||") for record in records), strict=True))
    for code, side in zip(("en", "de"), sides, strict=True):
        (folder / f"train.{code}").write_bytes(b"".join(line + b"\n" for line in side))
    kept = kept_as("translate English to German: {}", records)
    return [File("wmt_en_de", folder / "train.{en,de}", kept)]


# ---- prepared once ---------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Everything that was prepared, and what of."""

    files: list[File]
    prepared: Prepared
    vocabulary: Vocabulary

    def shards(self) -> Iterator[tuple[File, TokenCache, int]]:
        """Each file with its task's cache and its number there."""
        for task, place in self.prepared.caches.items():
            for number, file in enumerate(file for file in self.files if file.task == task):
                yield file, open_cache(place), number


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = serials()
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    train_vocabulary(
        (f"{next(texts)} review: sentence sst2 translate English to German" for _ in range(500)), path, 190
    )
    return path


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Outcome:
    folder = tmp_path_factory.mktemp("hostile")
    files = [*web_files(folder), *review_files(folder), *sst2_files(folder), *translation_files(folder)]
    named = ", ".join(str(file.path) for file in files if file.task == "c4")
    overrides = [
        f"mixture.tasks=[c4, {folder / 'reviews.yaml'}, glue_sst2, wmt_en_de]",
        f"mixture.tasks.c4.files.train=[{named}]",
        f"mixture.tasks.wmt_en_de.files.train={folder}/train.{{en,de}}",
        f"run.root={folder / 'runs'}",
        f"data.root={folder}",
        f"vocabulary.path={vocabulary}",
    ]
    tree = load_recipe("quickstart", overrides)
    prepared = prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
    listed = {name: [shard.name for shard in task_of(tree, name).shards("train")] for name in prepared.caches}
    assert {name: len(shards) for name, shards in listed.items()} == Counter(file.task for file in files)
    return Outcome(files, prepared, Vocabulary(vocabulary))


def rejected_rows(cache: TokenCache, shard: int) -> list[dict[str, Any]]:
    file = cache.entry(shard)["rejected_file"]["file"]
    return [json.loads(line) for line in (Path(cache.place) / file).read_text().splitlines()]


def test_every_good_row_is_in_the_cache_once_and_in_order(outcome: Outcome) -> None:
    met = Counter[str]()
    for file, cache, shard in outcome.shards():
        column = "tokens" if cache.kind == "unsupervised" else "inputs"
        found = cache.column(shard, column).to_lists()
        wanted = [record.keeps for record in file.records if record.keeps is not None]
        assert found == [outcome.vocabulary.encode(text) for text in wanted], file.path
        told = {outcome.vocabulary.decode(ids).split(": ")[-1].split(" ")[0] for ids in found}
        met.update(number for number in told if number.isdecimal())
    assert set(met.values()) == {1}
    assert len(met) > 5_000


def test_every_hostile_row_is_counted_under_its_reason_and_kept_with_its_place(outcome: Outcome) -> None:
    hostile = 0
    for file, cache, shard in outcome.shards():
        rows = rejected_rows(cache, shard)
        wanted = [(row, one.reason) for row, one in enumerate(file.records) if one.reason is not None]
        assert [(row["row"], row["reason"]) for row in rows] == wanted, file.path
        assert cache.entry(shard)["rejected"] == Counter(reason for _, reason in wanted)
        names = file.path.name.replace("{en,de}", "en train.de").split()
        assert all(name in row["origin"] for row in rows for name in names)
        assert all(len(row["sample"]) <= 300 for row in rows)
        hostile += len(rows)
    assert hostile > 10_000


def test_rows_read_are_rows_used_and_rows_rejected_in_every_shard(outcome: Outcome) -> None:
    for file, cache, shard in outcome.shards():
        entry = cache.entry(shard)
        assert entry["counters"]["rows read"] == entry["rows"] + sum(entry["rejected"].values()) == len(file.records)
    for task, place in outcome.prepared.caches.items():
        totals = read_manifest(place)["splits"]["train"]
        assert totals["counters"]["rows read"] == totals["rows"] + sum(totals["rejected"].values())
        assert totals["counters"]["rows read"] == sum(len(file.records) for file in outcome.files if file.task == task)


def test_no_text_from_outside_makes_a_sentinel_and_none_is_cut_at_a_nul(outcome: Outcome) -> None:
    vocabulary = outcome.vocabulary
    for _, cache, shard in outcome.shards():
        for column in ("tokens",) if cache.kind == "unsupervised" else ("inputs", "targets"):
            values = cache.column(shard, column).values
            assert values.min() > vocabulary.eos_id
            assert values.max() < vocabulary.pieces
    assert vocabulary.decode(vocabulary.encode("the cat \0 sat on")).split() == ["the", "cat", "⁇", "sat", "on"]


# ---- memory ----------------------------------------------------------------------------------------------------------

# Prepares and prints by how many MiB its memory rose above what it was with everything imported.
PREPARES = """
import sys
import pyarrow.parquet, sentencepiece, mixtura.tasks
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.workspace import workspace
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10
before, tree = peak(), load_recipe("quickstart", sys.argv[1:])
prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
print(peak() - before)
"""


def one_line(begin: bytes, repeated: bytes, megabytes: int, end: bytes = b"") -> bytes:
    """A gzip file of a few kilobytes that makes one line of so many megabytes, with a row before and one behind it."""
    piece = gzip.compress(repeated * (1_000_000 // len(repeated)))
    return gzip.compress(begin) + piece * megabytes + gzip.compress(end)


def too_long(folder: Path) -> dict[str, tuple[int, dict[str, int]]]:
    """Small files that hold more than memory may grow by; each with its good rows and its reasons."""
    row, fields, text_row = page("the cat") + b"\n", b"text,url,timestamp\n", b"the cat,x,y\n"
    files: dict[str, tuple[bytes, int, dict[str, int]]] = {
        "a.json.gz": (one_line(row + b'{"text": "', b"x", 300, b'"}\n' + row), 2, {LONG: 1}),
        "b.json.gz": (one_line(b'{"text": "', b"x", 100, b'"}\n' + row), 1, {LONG: 1}),
        "c.json.gz": (one_line(b'{"text": "', b"x", 100, b'"}'), 0, {LONG: 1}),
        "d.json.gz": (one_line(row + b"[", b"[", 100, b"\n" + row), 2, {LONG: 1}),
        "e.jsonl": (row + b'{"text": "' + b"x" * (50 << 20) + b"\n" + row, 2, {LONG: 1}),
        "f.csv.gz": (one_line(fields + text_row + b'"', b"x", 100, b"\n" + text_row), 2, {LONG: 1}),
        # a quote that is never closed, and then lines of 1 MB
        "g.csv.gz": (
            gzip.compress(fields + text_row + b'"\n') + gzip.compress(b"x" * 999_999 + b"\n") * 60,
            1,
            {"record of more than 16 MiB": 1, "1 field, the table has 3": 60},
        ),
        "h.tsv.gz": (one_line(b"text\turl\nthe cat\tx\n", b"\t", 100, b"\nthe cat\tx\n"), 2, {LONG: 1}),
        "i.txt.gz": (one_line(b"the cat\n", "é".encode(), 100, b"\nthe cat\n"), 2, {LONG: 1}),
    }
    for name, (data, _, _) in files.items():
        (folder / name).write_bytes(data)
    table = pa.table({"text": ["the cat", "x" * (50 << 20), "the cat"]})
    pq.write_table(table, folder / "j.parquet", row_group_size=1)
    outcomes = {name: (good, reasons) for name, (_, good, reasons) in files.items()}
    return {**outcomes, "j.parquet": (2, {"record of more than 16 MiB": 1})}


def longest(folder: Path) -> dict[str, tuple[int, dict[str, int]]]:
    """Files with lines of a little less than is allowed."""
    size = 15 << 20
    (folder / "a.jsonl").write_bytes(page("x" * size) + b"\n")
    (folder / "b.tsv").write_bytes(b"text\turl\nthe cat\tx\n" + b"\t" * size + b"\n")
    (folder / "c.jsonl").write_bytes(page("the cat") + b"\n" + b"[" * size + b"\n")
    fields = "more than 100 fields, the table has 2"
    return {"a.jsonl": (1, {}), "b.tsv": (1, {fields: 1}), "c.jsonl": (1, {DEEP: 1})}


@pytest.mark.parametrize(("make", "rise_mib"), [(too_long, 300), (longest, 800)])
def test_memory_does_not_grow_with_what_a_file_holds(
    make: Callable[[Path], dict[str, tuple[int, dict[str, int]]]],
    rise_mib: int,
    vocabulary: Path,
    tmp_path: Path,
    repository: Path,
) -> None:
    outcomes = make(tmp_path)
    named = ", ".join(str(tmp_path / name) for name in outcomes)
    overrides = [
        "mixture.tasks=[c4]",
        f"mixture.tasks.c4.files.train=[{named}]",
        f"run.root={tmp_path / 'runs'}",
        f"vocabulary.path={vocabulary}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PREPARES, *overrides]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < rise_mib
    cache = open_cache(next((tmp_path / "runs/caches").glob("c4-*")))
    found = [(cache.entry(shard)["rows"], cache.entry(shard)["rejected"]) for shard in range(cache.count)]
    assert dict(zip(outcomes, found, strict=True)) == outcomes
