"""Where files are found, how they are cut into shards, and what the real ones hold."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data import sources
from mixtura.platform.data.sources import FileSource, byte_ends, group_ends
from mixtura.platform.data.task import BadRecord, Row
from mixtura.platform.errors import ConfigError, DataError
from mixtura.platform.filesystems import absolute, glob, shown, split_uri

TABLE = b"sentence\tlabel\nIt rains.\t1\nRains it.\t0\n"
ROWS = [{"sentence": "It rains.", "label": "1"}, {"sentence": "Rains it.", "label": "0"}]


def original(*names: str, **fields: Any) -> FileSource:
    return FileSource({}, original={"train": names}, **fields)


def rows_of(source: FileSource, split: str = "train") -> list[Row | BadRecord]:
    return [row for shard in source.shards(split) for row in source.read(shard)]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pack(path: Path, **members: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return path


# Finding files


@pytest.mark.parametrize(
    ("place", "packed"),
    [
        ("glue/SST-2/train.tsv", False),
        ("glue/SST-2/train.tsv.gz", False),
        ("glue/SST-2.zip", "SST-2/train.tsv"),
        ("glue/SST-2.zip", "train.tsv"),
        ("glue.zip", "glue/SST-2/train.tsv"),
        ("glue.zip", "SST-2/train.tsv"),
    ],
)
def test_an_original_file_is_found_however_it_is_packed(tmp_path: Path, place: str, packed: str | bool) -> None:
    path = tmp_path / place
    if isinstance(packed, str):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("SST-2/readme.txt", "x")
            archive.writestr(packed, TABLE)
    else:
        write(path, gzip.compress(TABLE) if place.endswith(".gz") else TABLE)
    source = original("glue/SST-2/train.tsv").bound(str(tmp_path), {})
    assert source.splits == ("train",)
    source.check()
    assert rows_of(source) == ROWS
    assert source.shards("train")[0].name == (f"{place}/{packed}" if packed else place)


def test_the_first_way_with_a_match_counts_and_all_its_matches_are_read_by_name(tmp_path: Path) -> None:
    for name in ("b-2.txt", "b-10.txt", "b-1.txt", ".b-3.txt", "c.txt"):
        write(tmp_path / name, name.encode())
    (tmp_path / "b-folder.txt").mkdir()
    source = original("a.txt", "b-*.txt", "c.txt").bound(str(tmp_path), {})
    assert rows_of(source) == [{"text": name} for name in ("b-1.txt", "b-10.txt", "b-2.txt")]


def test_patterns_stay_inside_one_part_of_a_path(tmp_path: Path) -> None:
    for name in ("x.txt", "a/x.txt", "b/x.txt", "a/deep/x.txt"):
        write(tmp_path / name, name.encode())
    assert [file.path for file in glob(f"{tmp_path}/*/x.txt")] == [f"{tmp_path}/a/x.txt", f"{tmp_path}/b/x.txt"]
    assert [file.path for file in glob(f"{tmp_path}/[ab]/?.txt")] == [f"{tmp_path}/a/x.txt", f"{tmp_path}/b/x.txt"]
    assert glob(f"{tmp_path}/none/*/x.txt") == []
    assert glob(f"{tmp_path}/x.txt/y.txt") == []


def test_a_name_with_marks_of_a_pattern_is_found_as_it_stands(tmp_path: Path) -> None:
    write(tmp_path / "set [1]/a[2].txt", b"x")
    assert len(glob(f"{tmp_path}/set [1]/a[2].txt")) == 1


def test_files_named_for_a_split_win_over_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root/SST-2/train.tsv", TABLE)
    write(tmp_path / "root/mine/1.jsonl", b'{"a": 1}')
    write(tmp_path / "other/2.csv", b"a\n2\n")
    write(tmp_path / "dev.tsv", TABLE)
    source = FileSource({"train": ("hf://x",), "test": ("hf://y",)}, original={"train": ("SST-2/train.tsv",)})
    bound = source.bound(str(tmp_path / "root"), {"train": ["mine/*.jsonl", f"{tmp_path}/other/*", "../dev.tsv"]})
    assert bound.splits == ("train",)
    assert rows_of(bound) == [{"a": 1}, {"a": "2"}, *ROWS]
    assert [shard.name for shard in bound.shards("train")] == ["mine/1.jsonl", "2.csv", "dev.tsv"]
    monkeypatch.chdir(tmp_path)
    assert rows_of(source.bound(None, {"validation": ["dev.tsv"]}), "validation") == ROWS
    assert rows_of(source.bound(None, {"train": [f"file://{tmp_path}/dev.tsv"]})) == ROWS
    assert source.splits == ("train", "test")


def test_other_splits_are_still_looked_for_below_the_root(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", TABLE)
    write(tmp_path / "my.tsv", TABLE)
    source = FileSource({}, original={"train": ("train.tsv",), "validation": ("dev.tsv",)})
    assert source.bound(str(tmp_path), {"validation": ["my.tsv"]}).splits == ("train", "validation")


def test_a_zip_archive_may_be_named_with_or_without_its_members(tmp_path: Path) -> None:
    pack(tmp_path / "data.zip", a__train=b"x", **{"a__1.txt": b"one", "a__2.txt": b"two", "b__1.csv": b"a\n1\n"})
    source = FileSource({}).bound(str(tmp_path), {"train": ["data.zip/a/*.txt"], "test": ["*.zip/b/1.csv"]})
    assert rows_of(source) == [{"text": "one"}, {"text": "two"}]
    assert [shard.name for shard in source.shards("train")] == ["data.zip/a/1.txt", "data.zip/a/2.txt"]
    assert rows_of(source, "test") == [{"a": "1"}]


def test_a_file_of_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path / "train.xml", b"<x/>")
    with pytest.raises(DataError, match=r"train\.xml has none of the suffixes .*\.tsv, \.csv"):
        FileSource({}).bound(str(tmp_path), {"train": ["train.xml"]}).shards("train")


# Line-aligned files


def test_aligned_files_are_found_by_the_words_in_braces(tmp_path: Path) -> None:
    write(tmp_path / "wmt/train-1.en.gz", gzip.compress(b"one\ntwo\n"))
    write(tmp_path / "wmt/train-1.de.gz", gzip.compress(b"eins\n\n"))
    write(tmp_path / "wmt/train-2.en.gz", gzip.compress(b"three"))
    write(tmp_path / "wmt/train-2.de.gz", gzip.compress(b"drei"))
    source = original("wmt/train-*.{en,de}", aligned=("en", "de")).bound(str(tmp_path), {})
    assert rows_of(source) == [
        {"en": "one", "de": "eins"},
        BadRecord("empty line", "two ||| "),
        {"en": "three", "de": "drei"},
    ]
    assert source.shards("train")[1].name == "wmt/train-2.en.gz + wmt/train-2.de.gz"


def test_aligned_files_are_found_in_a_zip_archive(tmp_path: Path) -> None:
    pack(tmp_path / "wmt.zip", **{"wmt__src-dev.txt": b"one\n", "wmt__tgt-dev.txt": b"eins\n"})
    source = original("wmt/{src,tgt}-dev.txt", aligned=("en", "de")).bound(str(tmp_path), {})
    assert rows_of(source) == [{"en": "one", "de": "eins"}]


def test_an_aligned_source_reads_records_as_well(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", b'{"en": "one", "de": "eins"}\n')
    source = original("train.{en,de}", "train.jsonl", aligned=("en", "de")).bound(str(tmp_path), {})
    assert rows_of(source) == [{"en": "one", "de": "eins"}]


def test_aligned_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name, data in {"a-1.en": b"1\n2\n", "a-1.de": b"1\n", "b-1.en": b"", "b-2.en": b"", "b-2.de": b""}.items():
        write(tmp_path / name, data)
    with pytest.raises(DataError, match=r"a-1\.en has 2 lines, .*a-1\.de has 1 lines"):
        rows_of(original("a-*.{en,de}", aligned=("en", "de")).bound(str(tmp_path), {}))
    with pytest.raises(DataError, match=r"b-1\.en has no counterpart .*b-\*\.de"):
        original("b-*.{en,de}", aligned=("en", "de")).bound(str(tmp_path), {}).shards("train")
    with pytest.raises(ConfigError, match="names 3 files in its braces, but a record has 2 fields"):
        original("a-*.{en,de,fr}", aligned=("en", "de")).bound(str(tmp_path), {}).shards("train")


# Saying what is missing


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = original("SST-2/train.tsv").bound(str(tmp_path / "absent"), {})
    for ask in (source.check, lambda: source.shards("train"), lambda: source.fingerprint("train")):
        with pytest.raises(DataError, match=r"data\.root is .*absent, but there is no such folder"):
            ask()


def test_missing_files_are_told_with_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "sst2/train.tsv", TABLE)
    source = original("SST-2/train.tsv", "train_full.tsv").bound(str(tmp_path), {})
    assert source.splits == ()
    with pytest.raises(DataError) as error:
        source.check()
    message = str(error.value)
    assert f"looked for {tmp_path}/SST-2/train.tsv, {tmp_path}/train_full.tsv (also with .gz" in message
    assert f"{tmp_path} holds sst2/; {tmp_path}/SST-2 is not there" in message
    assert "data.root" in message
    assert "mixture.tasks.NAME.files.SPLIT" in message


def test_missing_files_that_the_user_named_are_told_with_the_key(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", TABLE)
    source = FileSource({}).bound(str(tmp_path), {"train": ["train.tsv"], "test": ["tset-*.tsv"]})
    assert source.splits == ("train",)
    with pytest.raises(
        DataError, match=r"(?s)split 'test'; looked for .*tset-\*\.tsv.*holds train\.tsv.*NAME\.files\.test"
    ):
        source.check()


def test_a_task_without_a_public_home_says_so() -> None:
    with pytest.raises(DataError, match=r"no public home: name a folder or a bucket .* in data\.root"):
        FileSource({}).check()


# Places


def test_places_are_absolute_and_hide_keys() -> None:
    assert absolute("x/*.tsv", "s3://bucket") == "s3://bucket/x/*.tsv"
    assert absolute("x.tsv", "hf://datasets/me/set") == "hf://datasets/me/set/x.tsv"
    assert absolute("x.tsv", "~/data") == f"{Path.home()}/data/x.tsv"
    assert absolute("data") == f"{Path.cwd()}/data"
    assert shown("s3://key:secret@bucket/x?session_token=abc") == "s3://bucket/x"
    assert split_uri("s3://bucket/year=2020/part-?.tsv?region=a&scheme=http") == (
        "s3://bucket?region=a&scheme=http",
        "year=2020/part-?.tsv",
    )
    assert split_uri("s3://bucket/part-?/year=2020/x.tsv") == ("s3://bucket", "part-?/year=2020/x.tsv")


def test_an_unknown_kind_of_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ftp://host is no place to read from .*s3://"):
        FileSource({}).bound(None, {"train": ["ftp://host/x.tsv"]}).shards("train")


# Shards


def test_shards_hold_all_that_reading_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SHARD_BYTES", 10)
    write(tmp_path / "data/train.tsv", TABLE)
    monkeypatch.chdir(tmp_path)
    source = original("train.tsv").bound("data", {})
    shards = source.shards("train")
    assert [shard.name for shard in shards] == [f"train.tsv (part {n} of 4)" for n in range(1, 5)]
    assert all(isinstance(part, str | int) for shard in shards for part in shard.locator)
    monkeypatch.chdir("/")
    elsewhere = pickle.loads(pickle.dumps(source))
    assert [row for shard in shards for row in elsewhere.read(shard)] == ROWS


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\t"), max_size=6)


@given(
    st.lists(st.tuples(FIELD, FIELD), max_size=12),
    st.sampled_from(["tsv", "jsonl", "txt"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 60),
)
def test_shards_of_any_size_give_the_records_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], kind: str, end: str, ended: bool, size: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    lines = {"jsonl": [json.dumps(pair) if len(pair[0]) > 5 else json.dumps({"a": pair[0]}) for pair in pairs]}
    lines["tsv"] = ["a\tb", *("\t".join(pair) for pair in pairs)]
    lines["txt"] = [a + b for a, b in pairs]
    path = write(folder / f"x.{kind}", (end.join(lines[kind]) + (end if ended and pairs else "")).encode())
    source = FileSource({}).bound(None, {"train": [str(path)]})
    whole = rows_of(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_SHARD_BYTES", size)
        assert len(source.shards("train")) == len(byte_ends(path.stat().st_size, size))
        assert rows_of(source) == whole
    if kind == "tsv":
        assert [row for row in whole if isinstance(row, dict)] == [{"a": a, "b": b} for a, b in pairs]


def test_parquet_is_cut_between_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"n": n} for n in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=100)
    source = FileSource({}).bound(None, {"train": [f"{tmp_path}/x.parquet"]})
    assert len(source.shards("train")) == 1
    monkeypatch.setattr(sources, "_SHARD_ROWS", 350)
    sources._row_group_ends.cache_clear()
    assert [shard.name for shard in source.shards("train")] == [f"x.parquet (part {n} of 4)" for n in range(1, 5)]
    assert rows_of(source) == rows
    assert group_ends([], 10) == (0,)


def test_what_cannot_be_cut_is_one_shard_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SHARD_BYTES", 4)
    write(tmp_path / "a.csv", b'a\n"1\n2"\n')
    write(tmp_path / "b.json", b'[{"a": 1}, {"a": 2}]')
    write(tmp_path / "c.jsonl.gz", gzip.compress(b'{"a": 1}\n'))
    write(tmp_path / "d.txt", b"1\n2\n3\n")
    write(tmp_path / "empty.jsonl", b"")

    def first_lines(lines: Iterable[str]) -> Iterator[Row | BadRecord]:
        yield {"first": next(iter(lines))}

    source = FileSource({}, lines=first_lines).bound(str(tmp_path), {"train": ["*"]})
    assert [shard.name for shard in source.shards("train")] == ["a.csv", "b.json", "c.jsonl.gz", "d.txt", "empty.jsonl"]
    assert rows_of(source) == [{"a": "1\n2"}, {"a": 1}, {"a": 2}, {"a": 1}, {"first": "1"}]


def test_a_table_may_be_named_txt(tmp_path: Path) -> None:
    write(tmp_path / "msr_paraphrase_train.txt", "\ufeff".encode() + TABLE)
    assert rows_of(original("*.txt", header=("sentence",)).bound(str(tmp_path), {})) == ROWS


def test_a_file_that_went_away_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "train.tsv", TABLE)
    source = original("train.tsv").bound(str(tmp_path), {})
    shards = source.shards("train")
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*train\.tsv"):
        list(source.read(shards[0]))


# Fingerprints


def test_a_copied_folder_has_the_same_fingerprint_and_a_changed_byte_another(tmp_path: Path) -> None:
    write(tmp_path / "a/SST-2/train.tsv", TABLE)
    source = original("SST-2/train.tsv")
    before = source.bound(str(tmp_path / "a"), {}).fingerprint("train")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert source.bound(str(tmp_path / "b"), {}).fingerprint("train") == before
    write(tmp_path / "b/SST-2/train.tsv", TABLE.replace(b"1", b"0"))
    assert source.bound(str(tmp_path / "b"), {}).fingerprint("train") != before
    declared = original("SST-2/train.tsv", headerless=(("a", "b"),)).bound(str(tmp_path / "a"), {})
    assert declared.fingerprint("train") != before


def test_a_large_file_counts_by_its_size_and_three_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixtura.platform import filesystems

    monkeypatch.setattr(filesystems, "_WHOLE_DIGEST_BYTES", 50)
    monkeypatch.setattr(filesystems, "_SAMPLE_BYTES", 10)
    source = original("x.txt").bound(str(tmp_path), {})

    def fingerprint(changed: int | None) -> str:
        data = bytearray(b"a" * 101)
        if changed is not None:
            data[changed] = 98
        write(tmp_path / "x.txt", bytes(data))
        os.utime(tmp_path / "x.txt", ns=(0, (changed or 0) + 1 + 1000 * (changed is None)))
        return source.fingerprint("train")

    before = fingerprint(None)
    assert [fingerprint(position) == before for position in (0, 9, 30, 45, 54, 70, 91, 100)] == [
        *(False, False, True),
        *(False, False, True),
        *(False, False),
    ]


# The real files: rows as their README counts them


COLUMNS: dict[str, dict[str, Any]] = {
    "glue/CoLA": {"headerless": (("source", "label", "mark", "sentence"),)},
    "glue/MNLI/dev_mismatched_1000.tsv": {
        "headerless": (("label", "premise", "hypothesis"),),
        "header": ("gold_label",),
    },
    "glue/MRPC": {"header": ("Quality",)},
    "glue/QQP": {
        "header": ("is_duplicate",),
        "headerless": (("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),),
    },
    "translation/tatoeba": {"headerless": (("en", "ro", "attribution"),)},
    "translation/": {"aligned": ("en", "de")},
}
REAL = {
    "coreference/dpr/test.c.txt": 2820,
    "coreference/dpr/train.c.txt": 6610,
    "glue/CoLA/dev.tsv": 1043,
    "glue/CoLA/train.tsv": 8551,
    "glue/MNLI/dev_matched.jsonl": 9815,
    "glue/MNLI/dev_mismatched_1000.tsv": 1000,
    "glue/MNLI/original_columns_dev_matched_48.tsv": 48,
    "glue/MNLI/original_columns_train_48.tsv": 48,
    "glue/MNLI/subset_dev.json.gz": 1000,
    "glue/MNLI/subset_train.json.gz": 8999,
    "glue/MRPC/dev.tsv": 408,
    "glue/MRPC/msr_paraphrase_test.txt": 1725,
    "glue/MRPC/msr_paraphrase_train.txt": 4076,
    "glue/MRPC/train.tsv": 3668,
    "glue/QNLI/dev.tsv": 5463,
    "glue/QNLI/subset_dev.json.gz": 1000,
    "glue/QNLI/subset_train.json.gz": 8999,
    "glue/QQP/original_columns_train_32.tsv": 32,
    "glue/QQP/subset.tsv": 23497,
    "glue/QQP/subset_dev.json.gz": 1000,
    "glue/QQP/subset_train.json.gz": 8999,
    "glue/RTE/dev.tsv": 277,
    "glue/RTE/train.tsv": 2490,
    "glue/SST-2/dev.tsv": 872,
    "glue/SST-2/train.tsv": 67349,
    "glue/STS-B/dev.tsv": 1500,
    "glue/STS-B/train.tsv": 5749,
    "glue/WNLI/dev.tsv": 71,
    "glue/WNLI/train.tsv": 635,
    "qa/squad_v1.1/dev-part1.json.gz": 24,
    "qa/squad_v1.1/dev-part2.json.gz": 24,
    "qa/squad_v1.1/train-44articles.json.gz": 44,
    "summarization/cnn_dailymail/test_slice.jsonl": 200,
    "summarization/xsum_sample/sample.json": 10,
    "superglue/AX-b/AX-b.jsonl": 1104,
    "superglue/AX-g/AX-g.jsonl": 356,
    "superglue/BoolQ/train_32.jsonl": 32,
    "superglue/BoolQ/val.jsonl": 3270,
    "superglue/MultiRC/train.jsonl": 456,
    "superglue/MultiRC/val.jsonl": 83,
    "superglue/RTE/train.jsonl": 2490,
    "superglue/RTE/val.jsonl": 277,
    "superglue/ReCoRD/dev_32.jsonl": 32,
    "superglue/ReCoRD/train_32.jsonl": 32,
    "superglue/WSC/train.jsonl": 554,
    "superglue/WSC/val.jsonl": 104,
    "translation/multi30k_en_de/test_2016_flickr.{en,de}.gz": 1000,
    "translation/multi30k_en_de/train.{en,de}.gz": 29000,
    "translation/multi30k_en_de/val.{en,de}.gz": 1014,
    "translation/opennmt_en_de/{src,tgt}-train.txt.gz": 10000,
    "translation/tatoeba_en_ro/ron.txt.gz": 14237,
    "translation/wmt16_de_en/newstest2015.jsonl": 2169,
    "translation/wmt_en_ro_sample/test.json": 20,
    "translation/wmt_en_ro_sample/train.json": 11,
    "translation/wmt_en_ro_sample/val.json": 16,
    "web/c4/c4-train.sample-1000.json.gz": 1000,
}
BAD = {"glue/QQP/subset.tsv": {0: "5 fields, the table has 6"}, "translation/opennmt_en_de/{src,tgt}-train.txt.gz": {}}


def real(shared: Path, name: str) -> list[Row | BadRecord]:
    fields = next((fields for start, fields in COLUMNS.items() if name.startswith(start)), {})
    source = original(name.removesuffix(".gz"), **fields).bound(str(shared / "data"), {})
    source.check()
    return rows_of(source)


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_has_the_rows_of_its_readme(shared: Path, name: str) -> None:
    rows = real(shared, name)
    assert len(rows) == REAL[name]
    bad = {number: row.reason for number, row in enumerate(rows) if isinstance(row, BadRecord)}
    if name.startswith("translation/opennmt"):
        assert list(bad.values()) == ["empty line"]
    else:
        assert bad == BAD.get(name, {})


def test_every_real_file_of_a_task_is_tried(shared: Path) -> None:
    data = shared / "data"
    rooms = ("coreference", "glue", "superglue", "qa", "summarization", "translation", "web/c4")
    files = {path.relative_to(data).as_posix() for room in rooms for path in (data / room).rglob("*") if path.is_file()}
    tried = {
        path.removeprefix(f"{data}/") for name in REAL for part in sources._spelled(name) for path in [str(data / part)]
    }
    assert files - tried == {"glue/STS-B/LICENSE.txt"}


def test_real_columns_have_their_names(shared: Path) -> None:
    first = real(shared, "glue/MRPC/train.tsv")[0]
    assert isinstance(first, dict)
    assert list(first) == ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    assert first["#1 String"].startswith('Amrozi accused his brother, whom he called "the witness", of')
    movie = real(shared, "glue/SST-2/dev.tsv")[0]
    assert isinstance(movie, dict)
    assert movie["sentence"].endswith(" ")


@pytest.mark.parametrize("size", [1 << 10, 100_003])
def test_a_real_table_is_the_same_in_small_shards(shared: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = real(shared, "glue/CoLA/dev.tsv"), real(shared, "superglue/BoolQ/val.jsonl")
    monkeypatch.setattr(sources, "_SHARD_BYTES", size)
    assert (real(shared, "glue/CoLA/dev.tsv"), real(shared, "superglue/BoolQ/val.jsonl")) == whole
