"""Model texts become answers exactly: nothing is stripped, lowered or repaired."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.postprocessors import (
    ClassIndex,
    GroupReference,
    Member,
    NumberBetween,
    OfTargets,
    all_answers,
    label_of,
    names_referent,
    number,
)

CLASSES = ClassIndex(("entailment", "contradiction", "neutral"))


@pytest.mark.parametrize("text", ["", " entailment", "entailment ", "Entailment", "entailments", "<unk>", "0"])
def test_any_text_but_a_class_is_no_class(text: str) -> None:
    assert CLASSES(text, {}) == -1


@given(st.text())
def test_a_class_is_its_place_among_the_names(text: str) -> None:
    assert CLASSES(text, {}) == (CLASSES.names.index(text) if text in CLASSES.names else -1)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3.8", 3.8), (" 3.8\n", 3.8), ("1e0", 1.0), ("-0.0", -0.0), ("7", 7.0), ("1_0", 10.0), ("inf", math.inf)]
    + [(text, -1.0) for text in ("", "3,8", "3.8.", "three", "3 8")],
)
def test_what_python_reads_as_a_number_is_one(text: str, value: float) -> None:
    assert repr(number(text, {})) == repr(value)


def test_nan_is_a_number_unless_there_is_a_range() -> None:
    assert math.isnan(number("nan", {}))
    assert NumberBetween(1.0, 5.0)("nan", {}) == -1.0


@given(st.floats(allow_nan=False))
def test_a_number_outside_its_range_is_wrong(value: float) -> None:
    assert NumberBetween(1.0, 5.0)(repr(value), {}) == (value if 1.0 <= value <= 5.0 else -1.0)


def test_both_ends_belong_to_a_range() -> None:
    assert [NumberBetween(1.0, 5.0)(text, {}) for text in ("0.9", "1.0", "5", "5.1")] == [-1.0, 1.0, 5.0, -1.0]


def test_a_prediction_has_no_group_and_a_right_answer_has() -> None:
    example = {"targets": "neutral", "idx/question": 7, "idx/passage": 2, "answers": ("Ann", "Bob")}
    assert Member(CLASSES)("entailment", example) == {"value": 0}
    assert GroupReference(OfTargets(CLASSES), ("idx/question",))(example) == {"value": 2, "group": 7}
    both = GroupReference(all_answers, ("idx/passage", "idx/question"))
    assert both(example) == {"value": ["Ann", "Bob"], "group": [2, 7]}
    assert label_of({"label": -1}) == -1


# The referent, what is said, and whether that names it.
REFERENTS = [
    ("the doctor", "doctor", 1),
    ("the doctor", "A DOCTOR ", 1),
    ("the doctor", "her very old doctor", 1),
    ("the old doctor", "doctor", 1),
    ("the doctor", "doctors", 0),
    ("the doctor", "the painter", 0),
    ("the doctor", "doctor's", 0),
    ("the doctor's hat", "doctor", 0),
    ("the doctor's hat", "doctor's", 1),
    ("the doctor's hat", "the hat", 0),
    ("two dogs", "dogs two", 1),
    ("the doctor", "", -1),
    ("the doctor", "  ", -1),
    ("the doctor", "the those whose", -1),
    ("the", "the", -1),
    ("the", "doctor", 0),
    # Of two spaces an empty word stays, which counts as a word.
    ("the old doctor", "sly  doctor", 0),
    ("doctor", "old  doctor", 1),
    ("", "old  doctor", 1),
    ("", "doctor", 0),
]


@pytest.mark.parametrize(("referent", "said", "answer"), REFERENTS)
def test_a_phrase_names_its_referent_whatever_its_determiners(referent: str, said: str, answer: int) -> None:
    assert names_referent(said, {"targets": referent}) == answer


@given(st.text(alphabet="ab 'the", max_size=12), st.text(alphabet="ab 'the", max_size=12))
def test_naming_is_mutual_where_both_say_something(one: str, other: str) -> None:
    forth, back = names_referent(one, {"targets": other}), names_referent(other, {"targets": one})
    assert forth == back or -1 in (forth, back)
