"""Real text on any machine: the documentation that every Python carries, as unsupervised and supervised tasks.

The text is the language reference (`pydoc_data.topics`) and the docstrings of the standard library, a few megabytes of
English. Sources are parsed with `ast`, never imported; what a Python lacks (tkinter, distutils) is simply not there.

    python_docs_span_corruption   reference pages and docstrings, for the span corruption objective
    python_docs_module            docstring -> the top-level module or package it is from (classification)
    python_docs_returns           docstring -> whether the function returns a value (classification)
    python_docs_arguments         docstring -> how many arguments the function takes (classification)
    python_docs_summary           body of a docstring -> its first line (summarization)
    python_docs_name              docstring -> the name of the function (generation)

The first four are learnable from scratch in minutes on two CPU cores, and make the quickstart. The last two are not:
trivial rules that copy words of the input are far ahead of a small model then. They are there for longer training.

**Splits.** One split serves all tasks, so that no docstring of a test row is ever seen in training, not even by
the unsupervised task. It is a hash of the docstring's words, taken after copies and near copies were removed (about a
twelfth of all docstrings are copies), so a docstring keeps its split from one Python version to the next. It is not a
hash of the file: then every module with one file would be a label that training never saw, and most have one file.
What a file shares beyond copied text, its subject and its manner, is what `python_docs_module` asks for.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtura.platform.data.preprocessors import TextToText
from mixtura.platform.data.task import Rejected, Row, Shard, Task
from mixtura.platform.errors import DataError
from mixtura.platform.evaluation.metrics import accuracy, name_f1, rouge1, rouge_l

SHARDS = {"train": 4, "validation": 1, "test": 1}
SHARES = {"test": 0.12, "validation": 0.08}
"""Of the docstrings; the rest is for training."""

NEAR_COPY = 0.6
"""Docstrings that share this much of their word trigrams (Jaccard) are near copies; texts under six words only count as
copies when all their words are equal."""

MASK = "___"

_FUNCTION_WORDS = {"a", "an", "and", "for", "in", "is", "of", "self", "the", "to", MASK}

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_TOPICS = "pydoc_data/topics.py"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | _Function

COUNTS = ("none", "one", "two", "several")


@dataclass(frozen=True)
class PythonDocs:
    """Rows of `file`, `module`, `kind` (topic, module, class or function), `name`, `docstring`, and `problem`: None, or
    why the row is no use (a copy, a file that does not parse)."""

    kinds: tuple[str, ...]
    root: str | None = None
    """The folder of a standard library; by default that of the running Python."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Train, validation and test."""
        return tuple(SHARDS)

    def fingerprint(self, split: str) -> str:  # noqa: ARG002 (all splits are cut from the same files)
        """Of the Python version and of all source files: other sources make other rows."""
        return _fingerprint(_root(self.root))

    def shards(self, split: str) -> Sequence[Shard]:
        """Equal ranges of the split's rows in the order of files. The locator carries the fingerprint, because a node
        of a cluster may have another Python than the one that made the plan."""
        count = SHARDS[split]
        print_ = self.fingerprint(split)
        return [Shard(f"{split}-{at:05d}-of-{count:05d}", (split, at, count, print_)) for at in range(count)]

    def read(self, shard: Shard) -> Iterator[Row]:
        """The rows of one shard; a shard of another Python's standard library is refused."""
        split, at, count, planned = shard.locator
        assert isinstance(split, str)
        assert isinstance(at, int)
        assert isinstance(count, int)
        root = _root(self.root)
        if _fingerprint(root) != planned:
            raise DataError(
                f"shard {shard.name} was listed from another standard library than the one at {root} "
                f"(Python {sys.version.split()[0]}): use one Python version on all machines, and prepare again"
            )
        rows = [row for row in _rows(root)[split] if row["kind"] in self.kinds or row["kind"] == "file"]
        yield from (dict(row) for row in rows[at * len(rows) // count : (at + 1) * len(rows) // count])


def usable(row: Row) -> Iterator[Row]:
    """Leaves out copies and what could not be read, under the reason that the source found."""
    if row["problem"]:
        raise Rejected(row["problem"])
    yield row


def _root(root: str | None) -> Path:
    return Path(root or sysconfig.get_path("stdlib"))


@functools.lru_cache(maxsize=4)
def _files(root: Path) -> tuple[tuple[str, bytes], ...]:
    """Relative names of all source files, sorted, with the digests of their bytes."""
    names = sorted(
        path.relative_to(root)
        for path in root.rglob("*.py")
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
    )
    if not names:
        raise DataError(f"no Python sources in {root}: this Python was installed without its standard library's text")
    return tuple((name.as_posix(), hashlib.blake2b((root / name).read_bytes()).digest()) for name in names)


@functools.lru_cache(maxsize=4)
def _fingerprint(root: Path) -> str:
    digest = hashlib.blake2b(repr(sys.version_info[:3]).encode(), digest_size=16)
    for name, content in _files(root):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _rows(root: Path) -> dict[str, list[Row]]:
    """All rows by split, in the order of files. Copies stand in the split of the docstring that they copy."""
    rows: dict[str, list[Row]] = {split: [] for split in SHARDS}
    copies = _Copies()
    for name, _ in _files(root):
        for row in _rows_of_file(root, name):
            words = re.findall("[a-z]+", row["docstring"].lower())
            original, row["problem"] = copies.add(words) if row["problem"] is None else (words, row["problem"])
            rows[_split(original)].append(row)
    return rows


def _rows_of_file(root: Path, name: str) -> Iterator[Row]:
    module = name.partition("/")[0].removesuffix(".py")
    start: Row = {"file": name, "module": module, "kind": "file", "name": "", "docstring": "", "problem": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules have escapes that newer parsers warn of
            tree = ast.parse((root / name).read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        yield {**start, "problem": "source file does not parse"}
        return
    for found in _topics(tree) if name == _TOPICS else _docstrings(tree, ()):
        yield {**start, **found}


def _topics(tree: ast.Module) -> Iterator[Row]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            yield from ({"kind": "topic", "name": title, "docstring": text.strip()} for title, text in topics.items())


def _docstrings(node: ast.AST, path: tuple[str, ...]) -> Iterator[Row]:
    if isinstance(node, _Documented):
        kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
        docstring = ast.get_docstring(node, clean=True)
        if docstring and docstring.strip():
            code = _code_facts(node) if isinstance(node, _Function) else {}
            yield {"kind": kind, "name": ".".join(path), "docstring": docstring.strip(), **code}
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", "") if isinstance(child, _Documented) else ""
        yield from _docstrings(child, (*path, name) if name else path)


def _code_facts(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Row:
    """What a function's code says: how many arguments it takes, whether it has a body, whether it gives a value."""
    given = function.args
    named = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    arguments = sum(name not in {"self", "cls"} for name in named) + bool(given.vararg) + bool(given.kwarg)
    returns = any(map(_gives_value, _own_nodes(function)))
    return {"arguments": arguments, "has_body": len(function.body) > 1, "returns": returns}


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below a function, but not those of functions and classes inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            yield child
            yield from _own_nodes(child)


def _gives_value(node: ast.AST) -> bool:
    if isinstance(node, ast.Yield | ast.YieldFrom):
        return True
    nothing = ast.Constant(None)
    return isinstance(node, ast.Return) and node.value is not None and ast.dump(node.value) != ast.dump(nothing)


class _Copies:
    """Finds texts whose words, or most of whose word trigrams, were seen before."""

    def __init__(self) -> None:
        self._same: dict[tuple[str, ...], list[str]] = {}
        self._texts: list[tuple[list[str], int]] = []
        self._with: dict[tuple[str, str, str], list[int]] = defaultdict(list)

    def add(self, words: list[str]) -> tuple[list[str], str | None]:
        """The words of the text that this one copies (itself if none), and the problem's name."""
        if not words:
            return words, "no words"
        if tuple(words) in self._same:
            return self._same[tuple(words)], "copy of another docstring"
        trigrams = set(zip(words, words[1:], words[2:], strict=False))
        near = self._near(trigrams)
        self._same[tuple(words)] = words if near is None else near
        if near is not None:
            return near, "near copy of another docstring"
        for trigram in trigrams:
            self._with[trigram].append(len(self._texts))
        self._texts.append((words, len(trigrams)))
        return words, None

    def _near(self, trigrams: set[tuple[str, str, str]]) -> list[str] | None:
        if len(trigrams) < 4:
            return None
        shared = Counter(other for trigram in trigrams for other in self._with[trigram])
        for other, common in sorted(shared.items()):
            words, size = self._texts[other]
            if common >= NEAR_COPY * (len(trigrams) + size - common):
                return words
        return None


def _split(words: list[str]) -> str:
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    at = int.from_bytes(digest, "little") / 2**64
    return "test" if at < SHARES["test"] else "validation" if at < sum(SHARES.values()) else "train"


def module_of(row: Row) -> Iterator[Row]:
    """Docstring to module: everything that has a docstring serves."""
    yield {**row, "label": row["module"]}


def returns_of(row: Row) -> Iterator[Row]:
    """Docstring to `value` or `nothing`: whether the function returns or yields something.

    >>> next(returns_of({"kind": "function", "has_body": True, "returns": True}))["label"]
    'value'
    """
    if not _function(row)["has_body"]:
        raise Rejected("no code after the docstring")
    yield {**row, "label": "value" if row["returns"] else "nothing"}


def arguments_of(row: Row) -> Iterator[Row]:
    """Docstring to `none`, `one`, `two` or `several`: arguments of the function besides `self` and `cls`.

    >>> next(arguments_of({"kind": "function", "arguments": 5}))["label"]
    'several'
    """
    yield {**_function(row), "label": COUNTS[min(row["arguments"], len(COUNTS) - 1)]}


def _function(row: Row) -> Row:
    if row["kind"] != "function":
        raise Rejected("not a function")
    return row


def summary_of(row: Row) -> Iterator[Row]:
    """Body to first line, for docstrings in the form of PEP 257: one line, an empty line, more text."""
    first, _, rest = row["docstring"].partition("\n")
    blank, _, body = rest.partition("\n")
    if not rest or blank.strip():
        raise Rejected("no first line with a body after it")
    yield {**row, "summary": first.strip(), "body": body.strip()}


def name_of(row: Row) -> Iterator[Row]:
    """Docstring to function name; the name is masked where the docstring says it itself, in capitals or not.

    >>> row = {"kind": "function", "name": "os.getsize", "docstring": "getsize(path) -> size in bytes"}
    >>> next(name_of(row))["masked"]
    '___(path) -> size in bytes'
    """
    name = _function(row)["name"].rpartition(".")[2]
    core = name.strip("_") or name
    masked = row["docstring"]
    if core.lower() in masked.lower():
        spelled = rf"(?<!\w)_*{re.escape(core)}_*(?!\w)"
        masked = re.sub(spelled, MASK, masked, flags=re.IGNORECASE)
    yield {**row, "masked": masked, "function": name}


def first_sentence(example: Mapping[str, Any]) -> str:
    """The body's first sentence."""
    return re.split(r"(?<=[.!?])\s", example["body"], maxsplit=1)[0]


@dataclass(frozen=True)
class FirstWords:
    """The body's first `count` words."""

    count: int

    def __call__(self, example: Mapping[str, Any]) -> str:
        """Those words, in one line."""
        return " ".join(example["body"].split()[: self.count])


@dataclass(frozen=True)
class FirstContentWords:
    """The docstring's first `count` words that are no function words, joined as a name."""

    count: int

    def __call__(self, example: Mapping[str, Any]) -> str:
        """Those words, joined by underscores."""
        words = [word for word in re.findall(r"\w+", example["masked"]) if word.lower() not in _FUNCTION_WORDS]
        return "_".join(words[: self.count])


def first_module(example: Mapping[str, Any]) -> str:
    """The first word of the docstring that is the name of a module of the standard library."""
    words = re.findall(r"\w+", example["docstring"])
    return next((word for word in words if word in sys.stdlib_module_names), "")


def says_return(example: Mapping[str, Any]) -> str:
    """`value` where the docstring has a word that begins with "return" or "yield"."""
    return "value" if re.search(r"\b(return|yield)", example["docstring"], flags=re.IGNORECASE) else "nothing"


@dataclass(frozen=True)
class ByLength:
    """As many arguments as the docstring has times `words` words."""

    words: int

    def __call__(self, example: Mapping[str, Any]) -> str:
        """The answer by length alone."""
        return COUNTS[min(len(example["docstring"].split()) // self.words, len(COUNTS) - 1)]


def document_of(row: Row) -> Iterator[Row]:
    """The whole text, for the unsupervised task."""
    yield {"text": row["docstring"], "file": row["file"], "name": row["name"]}


DOCSTRINGS = PythonDocs(kinds=("module", "class", "function"))
VERSION = "2"

TASKS = (
    Task(
        "python_docs_span_corruption",
        PythonDocs(kinds=("topic", "module", "class", "function")),
        (usable, document_of),
        kind="unsupervised",
        version=VERSION,
        description="Python's language reference and docstrings, as plain text.",
    ),
    Task(
        "python_docs_module",
        DOCSTRINGS,
        (usable, module_of, TextToText("module", {"docstring": "docstring"}, target="label")),
        kind="supervised",
        version=VERSION,
        description="A docstring to the module or package of the standard library that it is from.",
        metrics=(accuracy,),
        copy_rules={"first known module in the input": first_module},
    ),
    Task(
        "python_docs_returns",
        DOCSTRINGS,
        (usable, returns_of, TextToText("returns", {"docstring": "docstring"}, target="label")),
        kind="supervised",
        version=VERSION,
        description="A docstring to whether the function returns a value.",
        metrics=(accuracy,),
        copy_rules={"value if the input says return": says_return},
    ),
    Task(
        "python_docs_arguments",
        DOCSTRINGS,
        (usable, arguments_of, TextToText("arguments", {"docstring": "docstring"}, target="label")),
        kind="supervised",
        version=VERSION,
        description="A docstring to how many arguments the function takes.",
        metrics=(accuracy,),
        copy_rules={f"one more for every {count} words": ByLength(count) for count in (5, 10, 20, 40)},
    ),
    Task(
        "python_docs_summary",
        DOCSTRINGS,
        (usable, summary_of, TextToText("summary", {"body": "body"}, target="summary")),
        kind="supervised",
        version=VERSION,
        description="The body of a docstring to its first line.",
        metrics=(rouge1, rouge_l),
        copy_rules={
            "first sentence": first_sentence,
            **{f"first {count} words": FirstWords(count) for count in (5, 8, 12, 15, 20)},
        },
    ),
    Task(
        "python_docs_name",
        DOCSTRINGS,
        (usable, name_of, TextToText("name", {"docstring": "masked"}, target="function")),
        kind="supervised",
        version="3",
        description="A docstring to the name of its function.",
        metrics=(name_f1, accuracy),
        copy_rules={f"first {count} words of content": FirstContentWords(count) for count in (1, 2, 3, 4, 5)},
    ),
)
