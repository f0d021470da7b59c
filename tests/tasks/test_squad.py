from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.data.task import Example, RejectedRow, Row, Task
from mixtura.tasks.squad import TASKS, padded

SQUAD, CONTEXT_FREE, SPAN, TRIVIA_QA = TASKS


def made(task: Task, row: Row) -> list[Row]:
    items = list(task.transform([row], "test", "validation"))
    assert all(isinstance(item, Example) for item in items), items
    return [item.fields for item in items if isinstance(item, Example)]


def reason(task: Task, row: Row) -> str:
    (item,) = task.transform([row], "test", "validation")
    assert isinstance(item, RejectedRow)
    return item.reason


def squad_row(question: str, context: str, *answers: str) -> Row:
    starts = [0] * len(answers)
    return {
        "id": "7",
        "title": "t",
        "question": question,
        "context": context,
        "answers": {"text": [*answers], "answer_start": starts},
    }


def trivia_row(aliases: list[str], wiki: list[str], search: list[str]) -> Row:
    return {
        "question": "Which city?",
        "question_id": "q1",
        "answer": {"value": "Paris", "normalized_aliases": aliases},
        "entity_pages": {"wiki_context": wiki, "title": ["t"] * len(wiki)},
        "search_results": {"search_context": search},
    }


def test_only_ascii_punctuation_is_set_apart_and_ends_stay() -> None:
    assert padded(" (O2) costs $5.00 ") == " ( O2 ) costs $ 5 . 00 "
    assert padded("“£5” — so…") == "“£5” — so…"
    assert padded("a_b\t\nc\u00a0d\x0be") == "a _ b c\u00a0d\x0be"


def test_inputs_name_question_and_context_and_answers_are_padded_too() -> None:
    (example,) = made(SQUAD, squad_row("Who?", "It's O'Neil.", "O'Neil", "he"))
    assert example == {
        "inputs": "question: Who ? context: It ' s O ' Neil . ",
        "targets": "O ' Neil",
        "id": "7",
        "context": "It ' s O ' Neil . ",
        "question": "Who ? ",
        "answers": ["O ' Neil", "he"],
    }
    assert SQUAD.answer(example) == ["O ' Neil", "he"]


def test_the_context_free_form_has_a_prefix_of_its_own_and_keeps_the_context_for_no_one_to_see() -> None:
    (example,) = made(CONTEXT_FREE, squad_row("Who?", "It's him.", "him"))
    assert example["inputs"] == "squad trivia question: Who ? "
    assert example["targets"] == "him"


@pytest.mark.parametrize("task", [SQUAD, CONTEXT_FREE, SPAN], ids=lambda task: task.name)
def test_a_question_without_answers_is_refused(task: Task) -> None:
    assert reason(task, squad_row("Who?", "Nobody.")) == "no answer"
    assert reason(task, {**squad_row("Who?", "Nobody."), "answers": None}) == "no field 'answers'"
    assert reason(task, {"context": "Nobody.", "answers": {"text": ["x"]}}) == "no field 'question'"


@pytest.mark.parametrize(
    ("context", "answer", "target"),
    [
        ("go go go stop", "go", "start: 0 end: 0"),
        ("Higher oxygen (O2) helps", "O2", "start: 4 end: 4"),
        ("Costs €5 or €6 now", "€6", "start: 4 end: 5"),
        ("a snake_case name", "snake_case", "start: 1 end: 3"),
        ("a Case b", "case", None),
        ("here in Rome", "in Rome", None),  # the last possible place is not looked at, as in the original
        ("Rome", "a long answer", None),
    ],
)
def test_spans_count_words_from_nought(context: str, answer: str, target: str | None) -> None:
    row = squad_row("Where?", context, answer)
    if target is None:
        assert reason(SPAN, row) == "answer not found in the context"
    else:
        (example,) = made(SPAN, row)
        assert example["targets"] == target
        assert SPAN.answer(example) == {"answers": [padded(answer)], "context": padded(context)}


def test_original_articles_give_the_rows_of_the_public_set() -> None:
    asked = [
        {
            "id": "1",
            "question": "Who?",
            "answers": [{"text": "Ann", "answer_start": 0}, {"text": "she", "answer_start": 9}],
        },
        {"id": "2", "question": "Why?", "answers": []},
        {"id": "3", "question": "How?", "answers": [{"text": "fast", "answer_start": 4}]},
    ]
    article = {"title": "A", "paragraphs": [{"context": "Ann ran fast.", "qas": asked}]}
    first, refused, last = SQUAD.transform([article], "test", "train")
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert isinstance(refused, RejectedRow)
    assert first.fields == made(SQUAD, {**squad_row("Who?", "Ann ran fast.", "Ann", "she"), "id": "1"})[0]
    assert (refused.reason, last.fields["id"]) == ("no answer", "3")
    assert reason(SQUAD, {"title": "A", "paragraphs": [{"context": "x"}]}) == "article is not in SQuAD's form"


def test_trivia_qa_pairs_every_context_with_every_alias_in_it() -> None:
    row = trivia_row(["paris", "city of light"], ["Paris, City of Light.", "None"], ["PARIS!"])
    assert made(TRIVIA_QA, row) == [
        {"inputs": "question: Which city ? context: Paris , City of Light . ", "targets": "paris"},
        {"inputs": "question: Which city ? context: Paris , City of Light . ", "targets": "city of light"},
        {"inputs": "question: Which city ? context: PARIS ! ", "targets": "paris"},
    ]
    assert TRIVIA_QA.answer({"targets": "paris"}) == ["paris"]
    assert reason(TRIVIA_QA, trivia_row(["rome"], ["Paris"], [])) == "no answer found in a context"
    assert (
        reason(TRIVIA_QA, {"question": "Who?", "answer": {"normalized_aliases": ["a"]}})
        == "no answer found in a context"
    )


def test_trivia_qa_s_aliases_are_regular_expressions_in_ascii_lower_case() -> None:
    assert [row["targets"] for row in made(TRIVIA_QA, trivia_row(["a.b"], ["a x b", "a.b", "axb"], []))] == [
        "a . b"
    ] * 2
    assert [row["targets"] for row in made(TRIVIA_QA, trivia_row(["rome|oslo"], ["in Rome ", "in oslo"], []))] == [
        "rome | oslo"
    ]
    assert reason(TRIVIA_QA, trivia_row(["é"], ["É"], [])) == "no answer found in a context"
    assert reason(TRIVIA_QA, trivia_row(["(paris", "oslo"], ["Oslo"], [])) == "text is no regular expression"


@pytest.mark.parametrize(("split", "articles", "questions"), [("validation", 48, 10_570), ("train", 44, 11_877)])
@pytest.mark.parametrize("task", [SQUAD, CONTEXT_FREE], ids=lambda task: task.name)
def test_every_question_of_the_original_files_is_an_example(
    shared: Path, task: Task, split: str, articles: int, questions: int
) -> None:
    bound = task.bound(str(shared / "data"), {})
    items = [item for shard in bound.shards(split) for item in bound.examples(shard)]
    assert len(items) == questions
    assert all(isinstance(item, Example) for item in items)
    shards = bound.shards(split)
    assert sum(len({item.row for item in bound.examples(shard)}) for shard in shards) == articles


def test_spans_of_the_original_files_are_found_but_at_ends(shared: Path) -> None:
    bound = SPAN.bound(str(shared / "data"), {})
    items = [item for shard in bound.shards("validation") for item in bound.examples(shard)]
    rejected = [item.reason for item in items if isinstance(item, RejectedRow)]
    assert len(items) == 10_570
    assert set(rejected) == {"answer not found in the context"}
    assert len(rejected) == 451  # at the end of the context, or with punctuation around them that padding doubles
