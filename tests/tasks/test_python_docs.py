"""The documentation tasks: honest splits, masked answers, nothing lost, nothing imported."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mixtura.platform.data.task import Example, Rejected, RejectedRow, Row, Shard
from mixtura.platform.errors import DataError
from mixtura.tasks import get_task
from mixtura.tasks.python_docs import MASK, TASKS, PythonDocs, name_of, summary_of

SUPERVISED = [task.name for task in TASKS if task.kind == "supervised"]

LONG = "Return the number of whole seconds that have passed since the service was started by hand"
SOURCES = {
    "alpha.py": f'"""Alpha module."""\ndef wait(x):\n    """{LONG}."""\n',
    "beta/__init__.py": f'class B:\n    """A thing of beauty."""\n    def wait_(self):\n        """{LONG}, or zero."""\n',
    "beta/gamma.py": 'def alpha():\n    """Alpha   MODULE!"""\ndef undocumented(): pass\ndef empty():\n    """  """\n',
    "broken.py": "def nothing(:\n",
    "null.py": "x = '\0'\n",
    "latin.py": "# coding: latin-1\n'''Caf\xe9 au lait.'''\n",
    "pydoc_data/topics.py": "topics = {'assert': '\\nThe assert statement tells.\\n', 'break': 'To break out of loops.'}\n",
    "site-packages/other.py": '"""Not the standard library."""\n',
    "test/test_alpha.py": '"""A test of alpha."""\n',
}
KINDS = ("topic", "module", "class", "function")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    return tmp_path


def rows_of(source: PythonDocs) -> list[tuple[str, Row]]:
    return [(split, row) for split in source.splits for shard in source.shards(split) for row in source.read(shard)]


def fields_of(name: str, split: str) -> list[Row]:
    task = get_task(name)
    made = (item for shard in task.shards(split) for item in task.examples(shard))
    return [item.fields for item in made if isinstance(item, Example)]


def test_every_docstring_and_topic_is_one_row_and_other_folders_are_left_out(library: Path) -> None:
    rows = [row for _, row in rows_of(PythonDocs(KINDS, str(library)))]
    found = Counter((row["file"], row["kind"], row["name"]) for row in rows)
    assert found == Counter(
        [
            ("alpha.py", "module", ""),
            ("alpha.py", "function", "wait"),
            ("beta/__init__.py", "class", "B"),
            ("beta/__init__.py", "function", "B.wait_"),
            ("beta/gamma.py", "function", "alpha"),
            ("broken.py", "file", ""),
            ("null.py", "file", ""),
            ("latin.py", "module", ""),
            ("pydoc_data/topics.py", "topic", "assert"),
            ("pydoc_data/topics.py", "topic", "break"),
        ]
    )
    assert {row["docstring"] for row in rows if row["file"] == "latin.py"} == {"Café au lait."}


def test_copies_and_unreadable_files_are_named(library: Path) -> None:
    problems = {(row["file"], row["name"]): row["problem"] for _, row in rows_of(PythonDocs(KINDS, str(library)))}
    assert {place: problem for place, problem in problems.items() if problem} == {
        ("beta/__init__.py", "B.wait_"): "near copy of another docstring",
        ("beta/gamma.py", "alpha"): "copy of another docstring",
        ("broken.py", ""): "source file does not parse",
        ("null.py", ""): "source file does not parse",
    }


def test_a_copy_stands_in_the_split_of_its_original(library: Path) -> None:
    split = {(row["file"], row["name"]): split for split, row in rows_of(PythonDocs(KINDS, str(library)))}
    assert split["beta/gamma.py", "alpha"] == split["alpha.py", ""]
    assert split["beta/__init__.py", "B.wait_"] == split["alpha.py", "wait"]


def test_another_library_has_another_fingerprint_and_its_shards_are_refused(library: Path) -> None:
    source = PythonDocs(KINDS, str(library))
    shard = source.shards("train")[0]
    other = library.parent / (library.name + "-changed")
    shutil.copytree(library, other)
    (other / "alpha.py").write_text('"""Alpha, changed."""')
    changed = PythonDocs(KINDS, str(other))
    assert changed.fingerprint("train") != source.fingerprint("train")
    with pytest.raises(DataError, match="was listed from another standard library"):
        next(changed.read(shard))


def test_a_python_without_sources_is_answered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Python sources in"):
        PythonDocs(KINDS, str(tmp_path)).shards("train")


def test_shards_together_are_the_split() -> None:
    source = PythonDocs(KINDS)
    many = [row for shard in source.shards("train") for row in source.read(shard)]
    whole = Shard("whole", ("train", 0, 1, source.fingerprint("train")))
    assert many == list(source.read(whole))
    assert len(source.shards("train")) == 4


@pytest.mark.parametrize("name", [task.name for task in TASKS])
def test_every_row_is_an_example_or_rejected_under_a_name(name: str) -> None:
    task = get_task(name)
    for split in task.splits:
        for shard in task.shards(split):
            read = sum(1 for _ in task.source.read(shard))
            items = list(task.examples(shard))
            assert len(items) == read
            assert all(item.reason for item in items if isinstance(item, RejectedRow))


@pytest.mark.parametrize("name", SUPERVISED)
def test_test_splits_have_200_rows_and_validation_splits_150(name: str) -> None:
    assert len(fields_of(name, "test")) >= 200
    assert len(fields_of(name, "validation")) >= 150
    assert len(fields_of(name, "train")) >= 1500


def test_no_docstring_is_in_two_splits_not_even_of_two_tasks() -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        texts = {row["text"] for row in fields_of("python_docs_span_corruption", split)}
        for name in SUPERVISED:
            assert {example["docstring"] for example in fields_of(name, split)} <= texts
        seen[split] = {" ".join(re.findall("[a-z]+", text.lower())) for text in texts}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_about_a_twelfth_of_docstrings_are_copies() -> None:
    problems = Counter(row["problem"] for _, row in rows_of(PythonDocs(("module", "class", "function"))))
    copies = problems["copy of another docstring"] + problems["near copy of another docstring"]
    assert 0.05 < copies / problems.total() < 0.15
