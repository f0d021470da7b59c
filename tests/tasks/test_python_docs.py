"""The documentation tasks: honest splits, masked answers, nothing lost, nothing imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mixtura.platform.data.task import Example, RejectedRow, Row, Shard
from mixtura.platform.errors import DataError
from mixtura.tasks import get_task
from mixtura.tasks.python_docs import MASK, TASKS, PythonDocs, name_of

SUPERVISED = [task.name for task in TASKS if task.kind == "supervised"]

LONG = "Return the number of whole seconds that have passed since the service was started by hand"
SOURCES = {
    "alpha.py": f'"""Alpha module."""\ndef wait(x):\n    """{LONG}."""\n',
    "beta/__init__.py": f'class B:\n    """A thing of beauty."""\n    def wait_(self):\n        """{LONG}, or no."""\n',
    "beta/gamma.py": 'def alpha():\n    """Alpha   MODULE!"""\ndef undocumented(): pass\ndef empty():\n    """  """\n',
    "broken.py": "def nothing(:\n",
    "null.py": "x = '\0'\n",
    "latin.py": "# coding: latin-1\n'''Caf\xe9 au lait.'''\n",
    "pydoc_data/topics.py": "topics = {'assert': '\\nThe assert statement.\\n', 'break': 'To break out of loops.'}\n",
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


def row_of(kind: str = "function", name: str = "", docstring: str = "", **columns: object) -> Row:
    return {
        "file": "a.py",
        "module": "a",
        "kind": kind,
        "name": name,
        "docstring": docstring,
        "problem": None,
        **columns,
    }


def example_of(task: str, row: Row) -> tuple[str, str] | str:
    (item,) = get_task(task).transform([row], "here")
    return item.reason if isinstance(item, RejectedRow) else (item.fields["inputs"], item.fields["targets"])


def test_formats() -> None:
    summary = row_of(docstring="Do it.\n\nNow, and\nwell.")
    code = {"arguments": 2, "has_body": True, "returns": False}
    assert example_of("python_docs_module", row_of(docstring="Do it.")) == ("module docstring: Do it.", "a")
    assert example_of("python_docs_summary", summary) == ("summary body: Now, and\nwell.", "Do it.")
    assert example_of("python_docs_returns", row_of(docstring="Do it.", **code)) == (
        "returns docstring: Do it.",
        "nothing",
    )
    assert example_of("python_docs_arguments", row_of(docstring="Do it.", **code)) == (
        "arguments docstring: Do it.",
        "two",
    )
    assert example_of("python_docs_name", row_of(name="A.do_it", docstring="Do it. A.do_it() does it.")) == (
        f"name docstring: Do it. A.{MASK}() does it.",
        "do_it",
    )


@pytest.mark.parametrize(
    ("name", "docstring", "masked"),
    [
        ("close", "Close the file. CLOSED and closer stay.", f"{MASK} the file. CLOSED and closer stay."),
        ("__len__", "S.__len__() <==> len(S)", f"S.{MASK}() <==> {MASK}(S)"),
        ("_get", "get(x), _get(y), forget(z)", f"{MASK}(x), {MASK}(y), forget(z)"),
        ("a_b", "a_b_c differs from a_b", f"a_b_c differs from {MASK}"),
        ("_", "Nothing _ here", f"Nothing {MASK} here"),
    ],
)
def test_a_name_is_masked_in_its_own_input(name: str, docstring: str, masked: str) -> None:
    (made,) = name_of(row_of(name=name, docstring=docstring))
    assert made["masked"] == masked


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_input_says_its_own_name(split: str) -> None:
    for example in fields_of("python_docs_name", split):
        assert not re.search(
            rf"(?<![A-Za-z0-9_]){re.escape(example['targets'])}(?![A-Za-z0-9_])", example["inputs"][15:]
        )


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("python_docs_module", row_of(docstring="x") | {"problem": "no words"}, "no words"),
        ("python_docs_name", row_of("class"), "not a function"),
        ("python_docs_arguments", row_of("class"), "not a function"),
        ("python_docs_returns", row_of(has_body=False, returns=False), "no code after the docstring"),
        ("python_docs_summary", row_of(docstring="One line."), "no first line with a body after it"),
        ("python_docs_summary", row_of(docstring="Two\nlines."), "no first line with a body after it"),
    ],
)
def test_every_rejection_has_its_name(task: str, row: Row, reason: str) -> None:
    assert example_of(task, row) == reason


CODE = '''
def plain(a, b=1, *rest, c, **others):
    """One."""
    def inner():
        """Two."""
        return 1
    return None

class C:
    async def method(self, x):
        """Three."""
        yield x

    @classmethod
    def early(cls):
        """Four."""
        if cls:
            return
        return cls.other(lambda: 3)

    def stub(self):
        """Five."""
'''


def test_what_is_read_from_code(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    rows = {row["name"]: row for _, row in rows_of(PythonDocs(KINDS, str(tmp_path)))}
    found = {name: (row["arguments"], row["has_body"], row["returns"]) for name, row in rows.items()}
    assert found == {
        "plain": (5, True, False),
        "plain.inner": (0, True, True),
        "C.method": (1, True, True),
        "C.early": (0, True, True),
        "C.stub": (0, False, False),
    }


def test_copy_rules_answer_from_the_input_alone() -> None:
    fields = {
        "docstring": "Return the io.open of a file",
        "masked": "Return the ___ of a file",
        "body": "One two. Three.",
    }
    answers = {(task.name, rule): copy(fields) for task in TASKS for rule, copy in task.copy_rules.items()}
    assert answers["python_docs_module", "first known module in the input"] == "io"
    assert answers["python_docs_summary", "first sentence"] == "One two."
    assert answers["python_docs_summary", "first 5 words"] == "One two. Three."
    assert answers["python_docs_name", "first 2 words of content"] == "Return_file"
    assert answers["python_docs_returns", "value if the input says return"] == "value"
    assert answers["python_docs_arguments", "one more for every 5 words"] == "one"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_other_pythons_make_the_same_split_of_what_they_share(version: str, repository: Path) -> None:
    program = (
        "import json, sys, types; sys.path.insert(0, 'src')\n"
        "metrics = types.ModuleType('metrics')  # they need libraries that the other Python lacks\n"
        "metrics.__getattr__ = str\n"
        "sys.modules['mixtura.platform.evaluation.metrics'] = metrics\n"
        "from mixtura.tasks.python_docs import TASKS\n"
        "(task,) = [task for task in TASKS if task.name == 'python_docs_span_corruption']\n"
        "print(json.dumps({split: [item.fields['text'] for shard in task.shards(split) for item in task.examples(shard)"
        " if hasattr(item, 'fields')] for split in task.splits}))"
    )
    python = shutil.which(f"python{version}")
    environment = {**os.environ, "PYENV_VERSION": version}  # where pyenv keeps several Pythons, it asks which
    if not python or subprocess.run([python, "-c", ""], env=environment, capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    made = subprocess.run(
        [python, "-c", program], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    there = {split: set(texts) for split, texts in json.loads(made.stdout).items()}
    here = {split: {row["text"] for row in fields_of("python_docs_span_corruption", split)} for split in there}
    assert len(here["test"] & there["test"]) > 100
    assert len(there["test"] & here["train"]) <= 0.01 * len(there["test"])


@pytest.mark.slow
def test_reading_imports_nothing_of_what_it_reads(repository: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, 'src')\n"
        "from mixtura.tasks import get_task\n"
        "task = get_task('python_docs_module')\n"
        "next(task.examples(task.shards('test')[0]))\n"
        "print(sorted({'antigravity', 'this', 'tkinter', 'idlelib', 'pydoc_data.topics'} & set(sys.modules)))\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'transformers', 'rouge_score'} & set(sys.modules)))"
    )
    made = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert made.stdout.split("\n")[:2] == ["[]", "[]"]
