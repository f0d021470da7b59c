"""A task's file in the archive that a benchmark's site takes: what a model answers where the right answers are hidden.

GLUE's files are tables, SuperGLUE's JSON lines. Both name each row by the number that its test file gives it:

    index	prediction          {"idx": 0, "label": "not_entailment"}
    0	not_entailment
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtura.platform.data.postprocessors import INVALID

Index = tuple[int, ...]
"""The numbers that name an answer; MultiRC's are those of a paragraph, a question and an answer to it."""


@dataclass(frozen=True)
class Said:
    """What a file says for an answer; and if the answer is none that it can say, what was done instead."""

    value: str | int
    fault: str = ""


Layout = Callable[[Sequence[tuple[Index, str | int]]], str]
"""All rows of a file to its text."""


@dataclass(frozen=True)
class SubmissionFile:
    """One file of an archive: how an example is named in it, what it says for an answer, and how it is laid out."""

    benchmark: str
    name: str
    rows: int
    """The published number of answers; a file with another number is refused by the site."""
    said: Callable[[Any], Said]
    """An answer, as the task's postprocess function gives it, to what the file says."""
    layout: Layout
    index: tuple[tuple[str, ...], ...] = (("idx",),)
    """For each number of an index the fields that may hold it, of the example or of the raw row."""
    row_is_index: bool = False
    """Whether a row without such a field has its place in the file as index, from 0."""

    def index_of(self, fields: Mapping[str, Any], place: int) -> Index:
        """The index of a row; LookupError or ValueError, in words, where it has none.

        >>> file = SubmissionFile("glue", "RTE.tsv", 3_000, LabelOf((0, 1)), table, (("index", "idx"),))
        >>> file.index_of({"index": "7", "sentence1": "It rains."}, place=3)
        (7,)
        """
        return tuple(self._number(fields, names, place) for names in self.index)

    def _number(self, fields: Mapping[str, Any], names: tuple[str, ...], place: int) -> int:
        name = next((name for name in names if fields.get(name) not in (None, "")), None)
        if name is None:
            if self.row_is_index:
                return place
            raise LookupError(f"no field {' or '.join(map(repr, names))}")
        try:
            return int(fields[name])
        except (TypeError, ValueError):
            raise ValueError(f"{name} is {fields[name]!r:.40}, no number of a row") from None


# What files say


@dataclass(frozen=True)
class LabelOf:
    """The place of a class to the class's name in the file; an answer that is no class is written as the first one.

    >>> LabelOf((0, 1))(1), LabelOf((0, 1))(-1)
    (Said(value=1, fault=''), Said(value=0, fault='no label, written as 0'))
    """

    names: tuple[str | int, ...]

    def __call__(self, answer: int) -> Said:
        """The name."""
        if 0 <= answer < len(self.names):
            return Said(self.names[answer])
        return Said(self.names[0], f"no label, written as {self.names[0]}")


@dataclass(frozen=True)
class ScoreBetween:
    """A number as text; one outside of the range is written as its nearest end, and what is no number as its lowest.

    >>> score = ScoreBetween(0.0, 5.0)
    >>> score(3.8).value, score(5.2), score(-1.0)
    ('3.8', Said(value='5.0', fault='outside of 0 to 5, written as the nearest'), Said(value='0.0', fault='no score, \
written as 0.0'))
    """

    lowest: float
    highest: float

    def __call__(self, answer: float) -> Said:
        """The text."""
        if answer == INVALID or not math.isfinite(answer):
            return Said(str(self.lowest), f"no score, written as {self.lowest}")
        nearest = min(max(answer, self.lowest), self.highest)
        outside = f"outside of {self.lowest:g} to {self.highest:g}, written as the nearest"
        return Said(str(round(nearest, 3) + 0.0), "" if nearest == answer else outside)


@dataclass(frozen=True)
class OfMember:
    """What a file says for an answer that is scored in a group, which is a record.

    >>> OfMember(LabelOf((0, 1)))({"value": 1}).value
    1
    """

    said: Callable[[Any], Said]

    def __call__(self, answer: Mapping[str, Any]) -> Said:
        """The same as for the answer alone."""
        return self.said(answer["value"])


def text_itself(answer: str) -> Said:
    """A text as it is; an empty one is a fault, and written all the same.

    >>> text_itself("Ann Lee").value, text_itself(" ").fault
    ('Ann Lee', 'empty, written as they are')
    """
    return Said(answer, "" if answer.strip() else "empty, written as they are")


# Layouts


def table(answers: Sequence[tuple[Index, str | int]]) -> str:
    r"""GLUE's: a header, and a line for each row.

    >>> table([((0,), "entailment"), ((1,), "neutral")])
    'index\tprediction\n0\tentailment\n1\tneutral\n'
    """
    return "".join(["index\tprediction\n", *(f"{index}\t{value}\n" for (index,), value in answers)])


def json_lines(answers: Sequence[tuple[Index, str | int]]) -> str:
    r"""SuperGLUE's: an object for each row.

    >>> json_lines([((0,), "true")])
    '{"idx": 0, "label": "true"}\n'
    """
    return "".join(json.dumps({"idx": index, "label": value}) + "\n" for (index,), value in answers)


def paragraphs(answers: Sequence[tuple[Index, str | int]]) -> str:
    r"""MultiRC's: an object for each paragraph, as the test file has them, with its questions and the answers to them.

    >>> paragraphs([((0, 3, 7), 1), ((0, 3, 8), 0)])
    '{"idx": 0, "passage": {"questions": [{"idx": 3, "answers": [{"idx": 7, "label": 1}, {"idx": 8, "label": 0}]}]}}\n'
    """
    found: dict[int, dict[int, list[dict[str, str | int]]]] = {}
    for (paragraph, question, answer), value in answers:
        found.setdefault(paragraph, {}).setdefault(question, []).append({"idx": answer, "label": value})
    lines = []
    for paragraph, of_questions in found.items():
        questions = [{"idx": question, "answers": own} for question, own in of_questions.items()]
        lines.append(json.dumps({"idx": paragraph, "passage": {"questions": questions}}) + "\n")
    return "".join(lines)
