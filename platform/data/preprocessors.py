"""Steps that turn raw rows into text-to-text examples; several tasks share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mixtura.platform.data.task import Row


@dataclass(frozen=True)
class TextToText:
    """Prefix and named fields to `inputs`, one field to `targets`; the row's other fields are kept for evaluation.

    T5's format (Raffel et al. 2020, appendix D): the task's word, then each field with its name, in alphabetical order.

    >>> rte = TextToText("rte", fields={"sentence2": "hypothesis", "sentence1": "premise"}, target="label")
    >>> for row in rte({"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}):
    ...     print(row["inputs"], "->", row["targets"])
    rte sentence1: It rains. sentence2: It is wet. -> entailment
    """

    prefix: str
    fields: Mapping[str, str]
    """The name written in the inputs to the row's column."""
    target: str

    @property
    def __name__(self) -> str:
        return f"text_to_text[{self.prefix}]"

    def __call__(self, row: Row) -> Iterator[Row]:
        """One example of one row."""
        named = (f"{name}: {row[column]}" for name, column in sorted(self.fields.items()))
        yield {**row, "inputs": " ".join((self.prefix, *named)), "targets": row[self.target]}
