"""A task: where rows come from, how a row becomes text-to-text examples, and how answers are scored.

A task is data, not a subclass. One row flows through it like this (python_docs_name, shortened):

    source          {"kind": "function", "name": "getsize", "docstring": "Return the size of a file."}
    preprocessors   {"inputs": "name docstring: Return the size of a file.", "targets": "getsize"}
    model           "get_size"
    postprocess     "get_size"
    metrics         name_f1 66.7

Nothing is dropped silently: a preprocessor that leaves a row out raises `Rejected("reason")`, and the task hands the
row on as a `RejectedRow` with that reason, so that examples' rows and rejected rows add up to the rows read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mixtura.platform.errors import DataError, UnknownNameError

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
class Shard:
    """One part of a source's listing: `locator` is all that `Source.read` needs, on any machine that sees the data."""

    name: str
    locator: tuple[str | int, ...]


class Source(Protocol):
    """Raw rows in shards. The same source gives the same shards and rows, in the same order, wherever it is read."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: `train`, `validation`, `test`, or fewer."""

    def shards(self, split: str) -> Sequence[Shard]:
        """The listing of a split, cut by a fixed rule."""

    def read(self, shard: Shard) -> Iterator[Row]:
        """The raw rows of one shard."""

    def fingerprint(self, split: str) -> str:
        """Changes whenever the rows do."""


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

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of the source."""
        return self.source.splits

    def shards(self, split: str) -> Sequence[Shard]:
        """The shards of a split; a split that the source does not have is refused."""
        if split not in self.splits:
            raise UnknownNameError("split", split, self.splits, f" in task {self.name!r}")
        return self.source.shards(split)

    def examples(self, shard: Shard) -> Iterator[Example | RejectedRow]:
        """All examples of a shard, and its rejected rows in between, in the order of the rows."""
        return self.transform(self.source.read(shard), shard.name)

    def transform(self, rows: Iterable[Row], origin: str) -> Iterator[Example | RejectedRow]:
        """The same for any raw rows; `origin` names where they are from."""
        for number, row in enumerate(rows):
            for made in self._run(dict(row), self.preprocessors):
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
        made = False
        try:
            for result in preprocessors[0](row):
                made = True
                yield from self._run(result, preprocessors[1:])
        except Rejected as rejected:
            yield rejected
            return
        if not made:
            yield Rejected(f"{getattr(preprocessors[0], '__name__', 'a preprocessor')} made nothing of it")

    def _check(self, fields: Row) -> None:
        needed = ("inputs", "targets") if self.kind == "supervised" else ("text",)
        wrong = [name for name in needed if not isinstance(fields.get(name), str)]
        if wrong:
            raise DataError(
                f"task {self.name!r} is {self.kind}: its examples need the text fields {' and '.join(needed)}, but its "
                f"preprocessors made {sorted(fields)} with {wrong[0]}={fields.get(wrong[0])!r}"
            )
