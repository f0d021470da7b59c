"""Questions: SQuAD (Rajpurkar et al. 2016) in three forms, and TriviaQA (Joshi et al. 2017).

    squad                question: Where ? context: It is here in Rome now     ->  in Rome
    squad_context_free   squad trivia question: Where ?                        ->  in Rome
    squad_span           question: Where ? context: It is here in Rome now     ->  start: 3 end: 4
    trivia_qa            question: Which city ? context: I like Paris !        ->  paris

The released code pads questions, contexts and answers before they are joined (`padded`). SQuAD is judged against all
accepted answers, TriviaQA against the one that the example was made for.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtura.platform.data.patterns import read_as_pattern
from mixtura.platform.data.postprocessors import all_answers
from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.task import Rejected, Row, Task
from mixtura.platform.evaluation.metrics import (
    span_squad_em,
    span_squad_f1,
    squad_em,
    squad_f1,
    trivia_qa_em,
    trivia_qa_f1,
)

# RE2, which the released code uses, does not count the vertical tab as a space, and knows ASCII punctuation only.
_SPACES = re.compile(r"[ \t\n\f\r]+")
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
_NO_WORD = re.compile(r"\W", re.ASCII)
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PATTERN_CHARACTERS = frozenset(r".^$*+?{}[]\|()")


def padded(text: str) -> str:
    """Spaces around every ASCII punctuation character, then runs of spaces to one; ends are not stripped.

    >>> padded("O'Neil (66) “won”, twice!")
    "O ' Neil ( 66 ) “won” , twice ! "
    """
    return _SPACES.sub(" ", _PUNCTUATION.sub(r" \1 ", text))


def _joined(*parts: str) -> str:
    return _SPACES.sub(" ", " ".join(parts))


def questions(row: Row) -> Iterator[Row]:
    """An article of the original file to rows of the public form, one a question; those rows stay as they are.

    >>> asked = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    >>> next(questions({"title": "A", "paragraphs": [{"context": "Ann.", "qas": [asked]}]}))
    {'id': '1', 'title': 'A', 'context': 'Ann.', 'question': 'Who?', 'answers': {'text': ['Ann'], 'answer_start': [0]}}
    """
    if "paragraphs" not in row:
        yield row
        return
    for paragraph in _dicts(row["paragraphs"]):
        for asked in _dicts(paragraph.get("qas")):
            answers = _dicts(asked.get("answers"))
            yield {
                "id": asked.get("id"),
                "title": row.get("title"),
                "context": paragraph.get("context"),
                "question": asked.get("question"),
                "answers": {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")},
            }


def _dicts(values: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise Rejected("article is not in SQuAD's form")
    return values


@dataclass(frozen=True)
class Question:
    """A question, with or without the text that answers it, to its first answer."""

    with_context: bool

    @property
    def __name__(self) -> str:
        return "question"

    def __call__(self, row: Row) -> Iterator[Row]:
        """One example; a question without an answer is rejected."""
        question, context = padded(_text(row, "question")), padded(_text(row, "context"))
        found = row.get("answers")
        answers = [
            padded(answer) for answer in _texts(found.get("text") if isinstance(found, dict) else None, "answers")
        ]
        if not answers:
            raise Rejected("no answer")
        asked = (
            ("question:", question, "context:", context) if self.with_context else ("squad trivia question:", question)
        )
        yield {
            "inputs": _joined(*asked),
            "targets": answers[0],
            "id": row.get("id"),
            "context": context,
            "question": question,
            "answers": answers,
        }


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise Rejected(f"no field {name!r}")
    return value


def _texts(values: Any, name: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Rejected(f"no field {name!r}")
    return values


def span_of_answer(row: Row) -> Iterator[Row]:
    """The answer as its first and last word in the context, counted from 0.

    Words are what stands between single spaces when every character that is no letter, digit or underscore (of ASCII)
    is one, so that two spaces have an empty word between them. As in the released code the last place that the answer
    could stand in is not looked at; an answer that is found nowhere else is rejected.

    >>> next(span_of_answer({"context": "It is here in Rome now", "targets": "in Rome"}))["targets"]
    'start: 3 end: 4'
    """
    words, answer = (_NO_WORD.sub(" ", row[name]).split(" ") for name in ("context", "targets"))
    for start in range(len(words) - len(answer)):
        if words[start : start + len(answer)] == answer:
            yield {**row, "targets": f"start: {start} end: {start + len(answer) - 1}"}
            return
    raise Rejected("answer not found in the context")


def span_and_context(example: Mapping[str, Any]) -> dict[str, Any]:
    """What a span is judged by: the accepted answers and the context that its places count in."""
    return {"answers": list(example["answers"]), "context": example["context"]}


def first_name(example: Mapping[str, Any]) -> str:
    """The context's first run of capitalised words after its first word."""
    found = re.search(r"(?<=\S )[A-Z]\w*(?: [A-Z]\w*)*", example["context"])
    return found[0] if found else ""


def answered_contexts(row: Row) -> Iterator[Row]:
    """TriviaQA: an example for every context (first of the encyclopedia, then of the search) and alias found in it.

    The released code takes the padded alias for a regular expression and looks for it in the padded context, both with
    ASCII letters in lower case. A row is rejected if nothing is found, or if an alias is no regular expression.
    """
    aliases = [padded(alias) for alias in _texts(_inside(row, "answer", "normalized_aliases"), "answer")]
    pages, results = _inside(row, "entity_pages", "wiki_context"), _inside(row, "search_results", "search_context")
    contexts = [padded(context) for context in _texts([*(pages or ()), *(results or ())], "wiki_context")]
    question = padded(_text(row, "question"))
    made = [
        {"inputs": _joined("question:", question, "context:", context), "targets": alias}
        for context in contexts
        for alias in aliases
        if _occurs(alias.translate(_LOWER), context.translate(_LOWER))
    ]
    if not made:
        raise Rejected("no answer found in a context")
    yield from made


def _inside(row: Row, name: str, inner: str) -> Any:
    outer = row.get(name)
    return outer.get(inner) if isinstance(outer, dict) else None


def _occurs(alias: str, context: str) -> bool:
    if _PATTERN_CHARACTERS.isdisjoint(alias):
        return alias in context
    return read_as_pattern(f".*{alias}.*").fullmatch(context) is not None


def own_target(example: Mapping[str, Any]) -> list[str]:
    """The example's target as the only accepted answer."""
    return [example["targets"]]


SQUAD = FileSource(
    hub={
        "train": ("hf://datasets/rajpurkar/squad/plain_text/train-*.parquet",),
        "validation": ("hf://datasets/rajpurkar/squad/plain_text/validation-*.parquet",),
    },
    original={
        "train": ("squad/train-v1.1.json", "train-v1.1.json", "qa/squad_v1.1/train-44articles.json"),
        "validation": ("squad/dev-v1.1.json", "dev-v1.1.json", "qa/squad_v1.1/dev-part*.json"),
    },
)

TRIVIA_QA = FileSource(
    hub={
        "train": ("hf://datasets/mandarjoshi/trivia_qa/rc/train-*.parquet",),
        "validation": ("hf://datasets/mandarjoshi/trivia_qa/rc/validation-*.parquet",),
    },
    original={
        split: (f"trivia_qa/rc/{split}-*.parquet", f"trivia_qa/{split}*.parquet", f"trivia_qa/{split}*.jsonl")
        for split in ("train", "validation")
    },
)

SQUAD_SIZE = 87_599
TRIVIA_QA_SIZE = 138_384
"""Questions of the training set, as published; each makes an example of every text with its answer."""

TASKS = (
    Task(
        "squad",
        SQUAD,
        (questions, Question(with_context=True)),
        kind="supervised",
        version="1",
        description="A question and a text to the words of the text that answer it.",
        metrics=(squad_em, squad_f1),
        reference=all_answers,
        copy_rules={"first name in the context": first_name},
        rate_size=SQUAD_SIZE,
        evaluated=("validation",),
        lengths=(512, 97),
    ),
    Task(
        "squad_context_free",
        SQUAD,
        (questions, Question(with_context=False)),
        kind="supervised",
        version="1",
        description="A question to its answer, without the text that it is about.",
        metrics=(squad_em, squad_f1),
        reference=all_answers,
        rate_size=SQUAD_SIZE,
        evaluated=("validation",),
        lengths=(512, 97),
    ),
    Task(
        "squad_span",
        SQUAD,
        (questions, Question(with_context=True), span_of_answer),
        kind="supervised",
        version="1",
        description="A question and a text to the places of the first and the last word of the answer.",
        metrics=(span_squad_em, span_squad_f1),
        reference=span_and_context,
        rate_size=SQUAD_SIZE,
        evaluated=("validation",),
        lengths=(512, 97),
    ),
    Task(
        "trivia_qa",
        TRIVIA_QA,
        (answered_contexts,),
        kind="supervised",
        version="1",
        description="A trivia question and a text that was found for it to a name of the answer.",
        around_answer=True,
        rate_size=TRIVIA_QA_SIZE,
        metrics=(trivia_qa_em, trivia_qa_f1),
        reference=own_target,
        evaluated=("validation",),
        lengths=(512, 512),
    ),
)
