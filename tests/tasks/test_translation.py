from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.data.task import Example, RejectedRow, Row, Task
from mixtura.tasks.translation import TASKS, moses_unescaped, source_text

GERMAN, FRENCH, ROMANIAN = TASKS


def made(task: Task, rows: list[Row]) -> list[Row]:
    return [item.fields for item in task.transform(rows, "test") if isinstance(item, Example)]


def items_of(task: Task, split: str, root: Path, **files: str) -> list[Example | RejectedRow]:
    bound = task.bound(str(root), {name: (pattern,) for name, pattern in files.items()})
    return [item for shard in bound.shards(split) for item in bound.examples(shard)]


def loaded(task: Task, split: str, root: Path, **files: str) -> list[Row]:
    items = items_of(task, split, root, **files)
    assert all(isinstance(item, Example) for item in items)
    return [item.fields for item in items if isinstance(item, Example)]


@pytest.mark.parametrize(
    ("task", "code", "language"), [(GERMAN, "de", "German"), (FRENCH, "fr", "French"), (ROMANIAN, "ro", "Romanian")]
)
def test_pairs_are_read_flat_and_nested_and_left_as_they_are(task: Task, code: str, language: str) -> None:
    pair = {"en": " That\nis good. ", code: "“x”  y"}
    example = {"inputs": f"translate English to {language}:  That\nis good. ", "targets": "“x”  y"}
    assert made(task, [pair, {"translation": pair}]) == [example, example]
    assert source_text(example) == " That\nis good. "
    (rejected,) = task.transform([{"en": "That is good."}], "test")
    assert isinstance(rejected, RejectedRow)
    assert rejected.reason == f"no field {code!r}"


def test_moses_escapes_are_undone_only_if_asked_for_and_only_once() -> None:
    row = {"en": "R &amp; D &apos;s &quot; &#91; 1 &#93; &lt; &gt; &#124; &amp;lt; &eacute;", "de": "&amp;"}
    plain, unescaped = made(GERMAN, [row]), made(GERMAN.with_options({"text": "moses_unescaped"}), [row])
    assert plain[0]["inputs"].endswith(row["en"])
    assert unescaped[0]["inputs"] == "translate English to German: R & D 's \" [ 1 ] < > | &lt; &eacute;"
    assert unescaped[0]["targets"] == "&"
    assert moses_unescaped("a & b;") == "a & b;"


def test_files_of_the_benchmarks_give_as_many_examples_as_they_have_rows(shared: Path) -> None:
    data = shared / "data"
    assert len(loaded(GERMAN, "validation", data)) == 2169
    counts = {split: len(loaded(ROMANIAN, split, data)) for split in ("train", "validation", "test")}
    assert counts == {"train": 11, "validation": 16, "test": 20}


def test_other_parallel_text_is_read_by_naming_it(shared: Path) -> None:
    data = shared / "data/translation"
    multi30k = {
        "train": "multi30k_en_de/train.{en,de}.gz",
        "validation": "multi30k_en_de/val.{en,de}.gz",
        "test": "multi30k_en_de/test_2016_flickr.{en,de}.gz",
    }
    counts = {split: len(loaded(GERMAN, split, data, **multi30k)) for split in multi30k}
    assert counts == {"train": 29_000, "validation": 1014, "test": 1000}
    (first, *_) = loaded(GERMAN, "validation", data, **multi30k)
    assert first["inputs"] == "translate English to German: A group of men are loading cotton onto a truck"
    tatoeba = loaded(ROMANIAN, "train", data, train="tatoeba_en_ro/ron.txt.gz")
    assert len(tatoeba) == 14_237
    assert tatoeba[0] == {"inputs": "translate English to Romanian: Hi.", "targets": "Bună!"}


def test_text_from_moses_tokenizer_is_read_and_unescaped(shared: Path) -> None:
    files = {"train": "opennmt_en_de/{src,tgt}-train.txt.gz"}
    task = GERMAN.with_options({"text": "moses_unescaped"})
    escaped, plain = (items_of(kind, "train", shared / "data/translation", **files) for kind in (GERMAN, task))
    for items in (escaped, plain):
        assert len(items) == 10_000
        (rejected,) = (item for item in items if isinstance(item, RejectedRow))
        assert (rejected.row, rejected.reason) == (4, "empty line")
    assert isinstance(escaped[0], Example)
    assert isinstance(plain[0], Example)
    assert "Parliament &apos;s" in escaped[0].fields["inputs"]
    assert "Parliament 's" in plain[0].fields["inputs"]
    left = {text for item in plain if isinstance(item, Example) for text in item.fields.values() if "&apos;" in text}
    assert not left


def test_tables_are_read_with_a_header_and_without(tmp_path: Path) -> None:
    (tmp_path / "plain.tsv").write_text("Hi.\tHallo.\nBye.\tTschüss.\n")
    (tmp_path / "header.tsv").write_text("de\ten\nHallo.\tHi.\nTschüss.\tBye.\n")
    (tmp_path / "attributed.tsv").write_text("Hi.\tHallo.\tby A\nBye.\tTschüss.\tby B\n")
    for name in ("plain", "header", "attributed"):
        assert [pair["targets"] for pair in loaded(GERMAN, "train", tmp_path, train=f"{name}.tsv")] == [
            "Hallo.",
            "Tschüss.",
        ]
