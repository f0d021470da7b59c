"""From a model's text to an answer in the form that metrics compare, and from an example to its right answer.

Nothing is repaired: a text with one space too many is no class, as in the released code. Answers that are scored in
groups (all answers to one question) are records: `{"value": ...}` for a prediction, with the `group` for a right one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

INVALID = -1
"""The answer that is none of a task's classes, or no number."""

# Left out of noun phrases before they are compared.
DETERMINERS = frozenset(
    (
        "a",
        "an",
        "each",
        "every",
        "few",
        "her",
        "his",
        "many",
        "much",
        "my",
        "our",
        "some",
        "that",
        "the",
        "their",
        "these",
        "this",
        "those",
        "which",
        "whose",
        "your",
    )
)


@dataclass(frozen=True)
class ClassIndex:
    """The place of a text among the classes, -1 for any other text.

    >>> step = ClassIndex(("entailment", "not_entailment"))
    >>> step("not_entailment", {}), step("Entailment", {}), step("entailment ", {})
    (1, -1, -1)
    """

    names: tuple[str, ...]

    def __call__(self, text: str, example: Mapping[str, Any]) -> int:  # noqa: ARG002 (others need the example)
        """The index."""
        return self.names.index(text) if text in self.names else INVALID


def number(text: str, example: Mapping[str, Any]) -> float:  # noqa: ARG001 (others need the example)
    """A text as a number, -1.0 if it is none; whatever Python reads as a number is one.

    >>> number("3.8 ", {}), number("1e0", {}), number("three", {})
    (3.8, 1.0, -1.0)
    """
    try:
        return float(text)
    except ValueError:
        return float(INVALID)


@dataclass(frozen=True)
class NumberBetween:
    """A text as a number in a range; -1.0 if it is none or lies outside.

    >>> step = NumberBetween(1.0, 5.0)
    >>> step("3.8", {}), step("0.4", {}), step("nan", {})
    (3.8, -1.0, -1.0)
    """

    lowest: float
    highest: float

    def __call__(self, text: str, example: Mapping[str, Any]) -> float:
        """The number."""
        value = number(text, example)
        return value if self.lowest <= value <= self.highest else float(INVALID)


@dataclass(frozen=True)
class Member:
    """The answer to one example of a group, as a record.

    >>> Member(ClassIndex(("False", "True")))("True", {})
    {'value': 1}
    """

    answer: Callable[[str, Mapping[str, Any]], Any]

    def __call__(self, text: str, example: Mapping[str, Any]) -> dict[str, Any]:
        """The record."""
        return {"value": self.answer(text, example)}


@dataclass(frozen=True)
class GroupReference:
    """The right answer with its group: the value of one field, or a list of several.

    >>> of_query = GroupReference(all_answers, ("idx/passage", "idx/query"))
    >>> of_query({"answers": ["Ann"], "idx/passage": 0, "idx/query": 7})
    {'value': ['Ann'], 'group': [0, 7]}
    """

    right: Callable[[Mapping[str, Any]], Any]
    group: tuple[str, ...]

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The record."""
        names = [example[name] for name in self.group]
        return {"value": self.right(example), "group": names[0] if len(names) == 1 else names}


@dataclass(frozen=True)
class OfTargets:
    """The right answer that is the example's `targets`, read as the model's text is read.

    >>> OfTargets(number)({"targets": "3.8"})
    3.8
    """

    answer: Callable[[str, Mapping[str, Any]], Any]

    def __call__(self, example: Mapping[str, Any]) -> Any:
        """The answer."""
        return self.answer(example["targets"], example)


def classes_of(postprocess: Callable[..., Any]) -> tuple[str, ...]:
    """The texts that a task's answers are among; none where an answer may be any text.

    >>> classes_of(Member(ClassIndex(("False", "True")))), classes_of(number)
    (('False', 'True'), ())
    """
    match postprocess:
        case ClassIndex(names):
            return names
        case Member(answer):
            return classes_of(answer)
    return ()


def all_answers(example: Mapping[str, Any]) -> list[str]:
    """Every accepted answer, where an example has several.

    >>> all_answers({"targets": "Ann", "answers": ["Ann", "Ann Lee"]})
    ['Ann', 'Ann Lee']
    """
    return list(example["answers"])


def label_of(example: Mapping[str, Any]) -> Any:
    """The label that came with the row."""
    return example["label"]


def names_referent(text: str, example: Mapping[str, Any]) -> int:
    """1 if a text names the noun phrase in `targets`, 0 if not, -1 if it names nothing: to compare with WSC's label.

    Case and determiners do not count, and one may say more than the other, but not who owns it.

    >>> [names_referent(text, {"targets": "the fuzzy bunny"}) for text in ("Bunny", "her bunny's", "the cat", "the")]
    [1, 0, 0, -1]
    """
    said, meant = _without_determiners(text), _without_determiners(example["targets"])
    if not said:
        return INVALID
    if ("'" in said) != ("'" in meant):
        return 0
    said_words, meant_words = set(said.split(" ")), set(meant.split(" "))
    return int(said_words <= meant_words or meant_words <= said_words)


def _without_determiners(phrase: str) -> str:
    """In lower case, cut at single spaces as the released code does, so that of two spaces an empty word stays."""
    return " ".join(word for word in phrase.strip().lower().split(" ") if word not in DETERMINERS)
