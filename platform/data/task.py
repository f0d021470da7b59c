"""A task: where rows come from, how a row becomes text-to-text examples, and how answers are scored.

A task is data, not a subclass. One row flows through it like this (python_docs_name, shortened):

    source          {"kind": "function", "name": "getsize", "docstring": "Return the size of a file."}
    preprocessors   {"inputs": "name docstring: Return the size of a file.", "targets": "getsize"}
    model           "get_size"
    postprocess     "get_size"
    metrics         name_f1 66.7

Nothing is dropped silently: a preprocessor that leaves a row out raises `Rejected("reason")`, a source that cannot
read a record hands on a `BadRecord`, and the task gives both as a `RejectedRow` with that reason, so that the rows of
examples and rejected rows add up to the rows read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from mixtura.platform.errors import ConfigError, DataError, UnknownNameError

if TYPE_CHECKING:
    from mixtura.platform.data.submission import SubmissionFile

Row = dict[str, Any]
Preprocessor = Callable[[Row], Iterable[Row]]

_SAMPLE_CHARACTERS = 300


class Rejected(Exception):  # noqa: N818 (no error: an answer of a preprocessor)
    """Raised by a preprocessor for a row it leaves out; the reason is a short name that is counted.

    >>> Rejected("label is -1").reason
    'label is -1'
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class BadRecord:
    """What a source gives in place of a row where a record cannot be read: a short reason that is counted, and how the
    record begins."""

    reason: str
    text: str


@dataclass(frozen=True)
class Shard:
    """One part of a source's listing: `locator` is all that `Source.read` needs, on any machine that sees the data."""

    name: str
    locator: tuple[str | int, ...]
    split: str = "train"


class Source(Protocol):
    """Raw rows in shards. The same source gives the same shards and rows, in the same order, wherever it is read."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: `train`, `validation`, `test`, or fewer."""

    def shards(self, split: str) -> Sequence[Shard]:
        """The listing of a split, cut by a fixed rule."""

    def read(self, shard: Shard) -> Iterator[Row | BadRecord]:
        """The raw rows of one shard, with its unreadable records in their places."""

    def fingerprint(self, split: str) -> str:
        """Changes whenever the rows do."""


class FilesSource(Source, Protocol):
    """A source that reads files, which a recipe may say the place of. Such a source is known by its `bound`."""

    def bound(self, root: str | None, files: Mapping[str, Sequence[str]]) -> FilesSource:
        """The same source, reading under `root` (a folder or a bucket), or the `files` named for each split."""

    def check(self) -> None:
        """Raise DataError, with what was looked for and what is there, if there is nothing to read."""


class Metric(Protocol):
    """A number for a task's answers: see `mixtura.platform.evaluation.metrics`."""

    @property
    def name(self) -> str:
        """As it stands in tables and logs, after the task's name."""

    @property
    def higher_is_better(self) -> bool:
        """Which way is up."""

    def __call__(self, predictions: Sequence[Any], targets: Sequence[Any]) -> float:
        """The number for all examples, from 0 to 100."""

    def scores(self, predictions: Sequence[Any], targets: Sequence[Any]) -> Sequence[float] | None:
        """What each example scored, where the number is their mean."""


@dataclass(frozen=True)
class Option:
    """A choice between ways of making a task's examples, where the paper and its code (or two of its users) differ."""

    values: Mapping[str, Mapping[str, Any]]
    """Each value with the fields of `Task` that it sets; the first is the default and sets none."""
    description: str

    @property
    def default(self) -> str:
        """The value that a task has as declared."""
        return next(iter(self.values))


@dataclass(frozen=True)
class Example:
    """One text-to-text example: `fields` has `inputs` and `targets` (supervised) or `text` (unsupervised), and what
    evaluation needs; `row` says which raw row of its shard it was made from, from 0."""

    row: int
    fields: Row


@dataclass(frozen=True)
class RejectedRow:
    """A raw row that made no example, or one of whose examples was left out: why, where it was, and how it begins."""

    row: int
    reason: str
    origin: str
    sample: str


_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def _name(preprocessor: Preprocessor) -> str:
    return str(getattr(preprocessor, "__name__", "a preprocessor"))


def answer_as_text(text: str, example: Mapping[str, Any]) -> str:  # noqa: ARG001 (others need the example)
    """The postprocess function of tasks whose answer is the model's text itself."""
    return text


@dataclass(frozen=True)
class Task:
    """One text-to-text problem.

    >>> class Words:
    ...     splits = ("train",)
    ...     def shards(self, split): return [Shard("words", ())]
    ...     def read(self, shard): return iter([{"word": "cat"}, {"word": ""}])
    ...     def fingerprint(self, split): return "1"
    >>> def spell(row):
    ...     if not row["word"]:
    ...         raise Rejected("empty word")
    ...     yield {"inputs": f"spell word: {row['word']}", "targets": " ".join(row["word"])}
    >>> task = Task("spell", Words(), (spell,), kind="supervised", version="1", description="A word to its letters.")
    >>> for item in task.examples(task.source.shards("train")[0]):
    ...     print(item)
    Example(row=0, fields={'inputs': 'spell word: cat', 'targets': 'c a t'})
    RejectedRow(row=1, reason='empty word', origin='words', sample='{"word": ""}')
    """

    name: str
    source: Source
    preprocessors: tuple[Preprocessor, ...]
    """Run in order; each turns a row into any number of rows, or raises `Rejected`."""
    kind: Literal["supervised", "unsupervised"]
    version: str
    """Of the preprocessing: raised whenever the same rows would make other examples; part of a cache's key."""
    description: str
    metrics: tuple[Metric, ...] = ()
    postprocess: Callable[[str, Mapping[str, Any]], Any] = answer_as_text
    """Model text and its example to an answer, as the metrics take it."""
    reference: Callable[[Mapping[str, Any]], Any] | None = None
    """An example to the right answer, where that is not its `targets` postprocessed (several accepted answers)."""
    copy_rules: Mapping[str, Callable[[Mapping[str, Any]], str]] = field(default_factory=dict)
    """Trivial answers copied from the example by a fixed rule, by name: baselines that a result has to beat."""
    rate_size: int | None = None
    """The published number of training examples, where mixing rates use it instead of the counted one."""
    train_only: tuple[Preprocessor, ...] = ()
    """Preprocessors that come first where rows are for training, and not in evaluation."""
    evaluated: tuple[str, ...] = ("validation", "test")
    """Splits with right answers, on which metrics mean something."""
    trained: bool = True
    """Whether the `train` split is for training; an evaluation-only task is never drawn."""
    evaluated_by: tuple[str, ...] = ()
    """Other tasks that judge this one, for example on several validation sets."""
    benchmark: str | None = None
    """The collection that it is counted in."""
    submission: SubmissionFile | None = None
    """Its file in the archive that a benchmark's site takes, with answers to its `test` split."""
    lengths: tuple[int, int] | None = None
    """Most tokens of inputs and targets in the original's training on this task alone."""
    objective: tuple[str, Mapping[str, Any]] | None = None
    """How an unsupervised task makes inputs and targets: a name in `mixtura.platform.data.objectives` and parameters
    that differ from the recipe's."""
    around_answer: bool = False
    """Whether inputs that are too long are cut around their answer, rather than at their end."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Named choices, each with its default first."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Options that were given another value than their default."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of the source; the training split only if the task is trained on."""
        return tuple(split for split in self.source.splits if self.trained or split != "train")

    @property
    def identity(self) -> str:
        """Version and chosen options: with the same rows, equal identities make equal examples."""
        return "".join([self.version, *(f"+{name}={value}" for name, value in sorted(self.chosen.items()))])

    def check_source(self) -> None:
        """Raise DataError, with what was looked for and what is there, where a source of files finds none."""
        if (source := self._files_source) is not None and not self.splits:
            with self._named():
                source.check()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What a source says of itself, with the name of the task that it is the source of."""
        try:
            yield
        except DataError as error:
            raise DataError(f"task {self.name!r}: {error}".replace(".NAME.", f".{self.name}.")) from None

    def with_options(self, chosen: Mapping[str, str]) -> Task:
        """The task with other values of its options; unknown names and values are refused with the known ones."""
        task = self
        for name, value in chosen.items():
            if name not in self.options:
                raise UnknownNameError("option", name, self.options, f" of task {self.name!r}")
            if value not in self.options[name].values:
                raise UnknownNameError("value", value, self.options[name].values, f" of option {name!r} of {self.name}")
            if value != self.options[name].default:
                changes = self.options[name].values[value]
                task = replace(task, **changes, chosen={**task.chosen, name: value})
        return task

    def bound(self, root: str | None, files: Mapping[str, Sequence[str]]) -> Task:
        """The task reading under another root, or other files; a source that reads none takes no files."""
        if (source := self._files_source) is not None:
            return replace(self, source=source.bound(root, files))
        if files:
            raise ConfigError(f"task {self.name!r} reads no files, but files are given for {', '.join(files)}")
        return self

    @property
    def _files_source(self) -> FilesSource | None:
        return cast("FilesSource", self.source) if hasattr(self.source, "bound") else None

    def shards(self, split: str) -> Sequence[Shard]:
        """The shards of a split; a split that the source does not have is refused."""
        if split not in self.splits:
            if self._files_source is not None and (self.trained or split != "train"):
                with self._named():
                    self.source.shards(split)  # says what was looked for, and what is there
            raise UnknownNameError("split", split, self.splits, f" in task {self.name!r}")
        return [replace(shard, split=split) for shard in self.source.shards(split)]

    def examples(self, shard: Shard) -> Iterator[Example | RejectedRow]:
        """All examples of a shard, and its rejected rows in between, in the order of the rows."""
        return self.transform(self.source.read(shard), shard.name, shard.split)

    def transform(
        self, rows: Iterable[Row | BadRecord], origin: str, split: str = "train"
    ) -> Iterator[Example | RejectedRow]:
        """The same for any raw rows; `origin` names where they are from, `split` what they are for."""
        steps = (*self.train_only, *self.preprocessors) if split == "train" else self.preprocessors
        for number, row in enumerate(rows):
            if isinstance(row, BadRecord):
                yield RejectedRow(number, row.reason, origin, row.text[:_SAMPLE_CHARACTERS])
                continue
            for made in self._run(dict(row), steps):
                if isinstance(made, Rejected):
                    sample = json.dumps(row, ensure_ascii=False, default=repr)[:_SAMPLE_CHARACTERS]
                    yield RejectedRow(number, made.reason, origin, sample)
                else:
                    self._check(made)
                    yield Example(number, made)

    def answer(self, example: Mapping[str, Any]) -> Any:
        """The right answer of an example, in the form in which metrics compare it."""
        return self.reference(example) if self.reference else self.postprocess(example["targets"], example)

    def _run(self, row: Row, preprocessors: tuple[Preprocessor, ...]) -> Iterator[Row | Rejected]:
        if not preprocessors:
            yield row
            return
        made, rest = False, preprocessors[1:]
        try:
            for result in preprocessors[0](row):
                made = True
                if rest:
                    yield from self._run(result, rest)
                else:
                    yield result
        except Rejected as rejected:
            yield rejected
            return
        except _MALFORMED as error:
            # A row of another shape than the others must not end the work on them.
            yield Rejected(f"row is malformed: {type(error).__name__} in {_name(preprocessors[0])}")
            return
        if not made:
            yield Rejected(f"{_name(preprocessors[0])} made nothing of it")

    def _check(self, fields: Row) -> None:
        needed = ("inputs", "targets") if self.kind == "supervised" else ("text",)
        for name in needed:
            if not isinstance(fields.get(name), str):
                raise DataError(
                    f"task {self.name!r} is {self.kind}: its examples need the text fields {' and '.join(needed)}, but "
                    f"its preprocessors made {sorted(fields)} with {name}={fields.get(name)!r}"
                )
