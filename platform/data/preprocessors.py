"""Steps that turn raw rows into text-to-text examples; several tasks share them.

Rows come from files in their original formats or in the field names of the public data sets, so the first steps of a
task bring both to one form: `Renamed`, `ClassLabel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mixtura.platform.data.task import Rejected, Row

UNKNOWN_LABEL = "<unk>"
"""The target of a row whose label is hidden (-1), as in the released code."""


@dataclass(frozen=True)
class TextToText:
    """Prefix and named fields to `inputs`, one field to `targets`.

    T5's format (Raffel et al. 2020, appendix D): the task's word, then each field with its name. Fields stand in the
    alphabetical order of their names, as the released code sorts them, or in the order given. Of the row's other fields
    those in `keep` stay, for evaluation; None keeps all.

    >>> rte = TextToText("rte", fields={"sentence2": "hypothesis", "sentence1": "premise"}, target="label")
    >>> for row in rte({"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}):
    ...     print(row["inputs"], "->", row["targets"])
    rte sentence1: It rains. sentence2: It is wet. -> entailment
    """

    prefix: str
    fields: Mapping[str, str]
    """The name written in the inputs to the row's column."""
    target: str
    order: Literal["alphabetical", "given"] = "alphabetical"
    keep: tuple[str, ...] | None = None

    @property
    def __name__(self) -> str:
        return f"text_to_text[{self.prefix}]"

    def __call__(self, row: Row) -> Iterator[Row]:
        """One example of one row."""
        pairs = sorted(self.fields.items()) if self.order == "alphabetical" else self.fields.items()
        for column in self.fields.values():
            if not isinstance(row[column], str | int | float):
                raise Rejected(f"field {column!r} is no text")
        named = (f"{name}: {row[column]}" for name, column in pairs)
        kept = row if self.keep is None else {name: row[name] for name in self.keep if name in row}
        yield {**kept, "inputs": " ".join((self.prefix, *named)), "targets": row[self.target]}


@dataclass(frozen=True)
class Renamed:
    """Columns under the names that files use for them, to those of the public data set; the first name found counts.

    >>> step = Renamed({"premise": ("premise", "sentence1"), "label": ("gold_label", "label")}, optional=("label",))
    >>> next(step({"sentence1": "It rains.", "genre": "weather"}))
    {'sentence1': 'It rains.', 'genre': 'weather', 'premise': 'It rains.'}
    """

    names: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ("label", "idx")
    """Columns that may be missing: test files have no labels."""

    @property
    def __name__(self) -> str:
        return "renamed"

    def __call__(self, row: Row) -> Iterator[Row]:
        """The row with those columns added; a row that lacks one is rejected."""
        found = dict(row)
        for name, alternatives in self.names.items():
            given = next((other for other in alternatives if row.get(other) is not None), None)
            if given is not None:
                found[name] = row[given]
            elif name not in self.optional:
                raise Rejected(f"no field {name!r}")
        yield found


@dataclass(frozen=True)
class ClassLabel:
    """A label as a number, whatever the file has (a number, a name, true or false), and its name as `label_name`.

    A missing or hidden label is -1, and its name `<unk>`.

    >>> step = ClassLabel(("entailment", "not_entailment"))
    >>> [next(step({"label": label}))["label_name"] for label in (1, "entailment", "1", True, -1, None)]
    ['not_entailment', 'entailment', 'not_entailment', 'not_entailment', '<unk>', '<unk>']
    """

    names: tuple[str, ...]
    column: str = "label"

    @property
    def __name__(self) -> str:
        return "class_label"

    def __call__(self, row: Row) -> Iterator[Row]:
        """The row with both; a label that is none of the classes is rejected."""
        label = self._number(row.get(self.column))
        yield {**row, self.column: label, "label_name": UNKNOWN_LABEL if label < 0 else self.names[label]}

    def _number(self, value: Any) -> int:
        if value is None or value in ("", "-1"):
            return -1
        if isinstance(value, str) and value in self.names:
            return self.names.index(value)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if number not in range(-1, len(self.names)):
            raise Rejected("label is none of the classes")
        return int(number)
