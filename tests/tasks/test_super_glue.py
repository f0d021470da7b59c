"""SuperGLUE's tasks and DPR: nested records, pronouns in stars, and the traps of the original's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.task import BadRecord, Example, Rejected, Row, Task
from mixtura.tasks import coreference, get_task
from mixtura.tasks.coreference import blocks, spans_of, starred_ambiguous_pronoun
from mixtura.tasks.super_glue import TASKS, commonest_entity, first_entity


def made(task: Task, row: Row, split: str = "train") -> list[Any]:
    """Examples, and the reasons of what was left out."""
    items = task.transform([row], "here", split)
    return [item.fields if isinstance(item, Example) else item.reason for item in items]


def test_the_tasks_are_those_of_the_benchmark_and_the_unused_form_of_wsc() -> None:
    named = ["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc", "wsc_marked", "axb", "axg"]
    assert [task.name for task in TASKS] == [f"super_glue_{name}" for name in named]


def test_rates_come_from_the_published_sizes() -> None:
    sizes = {task.name.removeprefix("super_glue_"): task.rate_size for task in TASKS if task.benchmark}
    assert sizes == {
        "boolq": 9_427,
        "cb": 250,
        "copa": 400,
        "multirc": 27_243,
        "record": 138_854,
        "rte": 2_490,
        "wic": 5_428,
        "wsc": 259,
    }
    assert get_task("dpr").rate_size == 1_322
    assert all(task.lengths == (512, 62) for task in (*TASKS, get_task("dpr")))


# Classes


@pytest.mark.parametrize(
    ("label", "target"),
    [(0, "entailment"), (1, "contradiction"), (2, "neutral"), ("neutral", "neutral"), (-1, "<unk>")],
)
def test_cb_has_an_order_of_classes_of_its_own(label: object, target: str) -> None:
    row = {"premise": "P", "hypothesis": "H", "label": label, "idx": 4}
    assert made(get_task("super_glue_cb"), row) == [
        {"inputs": "cb hypothesis: H premise: P", "targets": target, "idx": 4}
    ]


@pytest.mark.parametrize(("label", "target"), [(True, "True"), (False, "False"), (1, "True"), ("False", "False")])
def test_truth_is_read_however_it_is_written(label: object, target: str) -> None:
    row = {"sentence1": "A", "sentence2": "B", "word": "w", "start1": 0, "label": label, "idx": 1}
    assert made(get_task("super_glue_wic"), row) == [
        {"inputs": "wic sentence1: A sentence2: B word: w", "targets": target, "idx": 1}
    ]


def test_the_first_sentence_of_axb_is_its_premise() -> None:
    row = {"sentence1": "P", "sentence2": "H", "label": "not_entailment", "idx": 1, "logic": "Negation"}
    expected = {"inputs": "rte hypothesis: H premise: P", "targets": "not_entailment", "idx": 1}
    assert made(get_task("super_glue_axb"), row, "test") == [expected]


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_a_row_without_its_texts_is_left_out_under_a_reason(task: Task) -> None:
    (reason,) = made(task, {"label": 1})
    assert reason.startswith("no field ")


# MultiRC


def passage(*questions: Row) -> Row:
    text = "<b>Sent 1: </b>Ann met Bob.<br><b>Sent 2: </b>Bob left.<br>"
    return {"idx": 3, "version": 1.1, "passage": {"text": text, "questions": list(questions)}}


def test_every_answer_of_a_nested_passage_is_an_example() -> None:
    answers = [{"text": "Bob", "idx": 20, "label": 1}, {"text": "<B>Ann</B>", "idx": 21, "label": 0}]
    rows = made(
        get_task("super_glue_multirc"),
        passage(
            {"question": "Who left?", "idx": 10, "answers": answers},
            {"question": "Why?", "idx": 11, "answers": [{"text": "No reason", "idx": 22}]},
        ),
    )
    text = "paragraph: Sent 1: Ann met Bob. Sent 2: Bob left. "
    assert [(row["inputs"], row["targets"]) for row in rows] == [
        (f"multirc question: Who left? answer: Bob {text}", "True"),
        (f"multirc question: Who left? answer: <B>Ann</B> {text}", "False"),
        (f"multirc question: Why? answer: No reason {text}", "<unk>"),
    ]
    ids = [(row["idx/paragraph"], row["idx/question"], row["idx/answer"]) for row in rows]
    assert ids == [(3, 10, 20), (3, 10, 21), (3, 11, 22)]
    assert set(rows[0]) == {"inputs", "targets", "idx/paragraph", "idx/question", "idx/answer"}


def test_answers_to_one_question_are_scored_together() -> None:
    task = get_task("super_glue_multirc")
    examples = [{"targets": "True", "idx/question": 7}, {"targets": "False", "idx/question": 7}]
    predictions = [task.postprocess(text, example) for text, example in zip(("True", "yes"), examples, strict=True)]
    targets = [task.answer(example) for example in examples]
    assert predictions == [{"value": 1}, {"value": -1}]
    assert targets == [{"value": 1, "group": 7}, {"value": 0, "group": 7}]
    assert {metric.name: metric(predictions, targets) for metric in task.metrics} == {
        "f1": pytest.approx(200 / 3),
        "exact_match": 0.0,
    }


def test_a_passage_without_questions_is_left_out_under_a_reason() -> None:
    assert made(get_task("super_glue_multirc"), passage()) == ["questions_of made nothing of it"]


# ReCoRD


def test_a_nested_passage_gives_sorted_entities_and_one_example_for_each_different_answer() -> None:
    text = "Bob saw Ann.\n@highlight\nAnn saw Bob\n@highlight\nThe end"
    spans = [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 24, "end": 26}]
    answers = [{"text": "Bob", "start": 0, "end": 2}, {"text": "Ann", "start": 8, "end": 10}, {"text": "Bob"}]
    row = {
        "source": "x",
        "passage": {"text": text, "entities": spans},
        "qas": [{"query": "@placeholder ran", "answers": answers, "idx": 9}, {"query": "@placeholder hid", "idx": 10}],
        "idx": 4,
    }
    rows = made(get_task("super_glue_record"), row)
    end = "entities: Ann, Bob passage: Bob saw Ann. Ann saw Bob. The end"
    ran = {
        "inputs": f"record query: @placeholder ran {end}",
        "answers": ["Ann", "Bob"],
        "idx/passage": 4,
        "idx/query": 9,
    }
    hid = {"inputs": f"record query: @placeholder hid {end}", "answers": [], "idx/passage": 4, "idx/query": 10}
    assert rows == [{**ran, "targets": "Ann"}, {**ran, "targets": "Bob"}, {**hid, "targets": "<unk>"}]


@pytest.mark.parametrize(
    ("passage", "text"),
    [
        ("a.\n@highlight\nb", "a. b"),
        ("a?\n@highlight\nb!\n@highlight\nc", "a? b! c"),
        ("\"a\"\n@highlight\n'b'\n@highlight\nc", "\"a\" 'b' c"),
        ("a,\n@highlight\nb;\n@highlight\nc", "a,. b;. c"),
        ("a”\n@highlight\nb", "a”. b"),
        ("a. \n@highlight\nb", "a. . b"),
        ("@highlight\na\n@highlight", "@highlight\na\n@highlight"),
        ("a.\n@highlight\n\n@highlight\nb", "a. . b"),
        ("a\nb\n@highlight\nc", "a\nb. c"),
    ],
)
def test_highlights_become_sentences(passage: str, text: str) -> None:
    row = {"passage": passage, "query": "q", "entities": [], "answers": ["x"], "idx": {"passage": 0, "query": 1}}
    (example,) = made(get_task("super_glue_record"), row)
    assert example["inputs"] == f"record query: q entities:  passage: {text}"


def test_public_answers_stay_in_their_order_also_where_they_repeat() -> None:
    row = {"passage": "p", "query": "q", "entities": ["b", "a"], "answers": ["b", "a", "b"], "idx": {"query": 1}}
    rows = made(get_task("super_glue_record"), row)
    assert [example["targets"] for example in rows] == ["b", "a", "b"]
    assert {example["inputs"] for example in rows} == {"record query: q entities: b, a passage: p"}


def test_rules_to_beat_name_the_first_and_the_commonest_entity() -> None:
    example = {"inputs": "record query: q entities: Ann, Bob passage: Bob saw Ann . Bob ran"}
    assert (first_entity(example), commonest_entity(example)) == ("Ann", "Bob")


# Winograd schemas


def schema(text: str, index: int, pronoun: str, label: object = 1, **more: Any) -> Row:
    return {"text": text, "span1_index": 0, "span1_text": "Ann", "span2_index": index, "span2_text": pronoun} | {
        "label": label,
        "idx": 5,
        **more,
    }


@pytest.mark.parametrize(
    ("row", "inputs"),
    [
        (schema("Ann hid it .", 2, "it"), "wsc: Ann hid *it* ."),
        (schema("Ann hid it", 2, "it"), "wsc: Ann hid *it* "),
        (schema("Ann hid it and it rang", 4, "it"), "wsc: Ann hid it and *it* rang"),
        (schema("Ann  hid it .", 3, "it"), "wsc: Ann  hid *it* ."),
        (schema("Ann hid X in X X it .", 6, "it"), "wsc: Ann hid *it* in *it* X *it* ."),
        (schema("X hid it X", 2, "it"), "wsc: X hid *it* X"),
        (schema("Ann hid X, it .", 3, "it"), "wsc: Ann hid X, *it* ."),
        (schema("Ann hid \\1 it .", 3, "it"), "wsc: Ann hid \\1 *it* ."),
        (schema("Ann hid it\nhere .", 2, "it\nhere"), "wsc: Ann hid *it\nhere* ."),
    ],
)
def test_the_word_at_its_index_gets_stars(row: Row, inputs: str) -> None:
    expected = {"inputs": inputs, "targets": "Ann", "label": 1, "idx": 5}
    assert made(get_task("super_glue_wsc"), row) == [expected]


def test_a_lone_x_stays_where_that_is_asked_for() -> None:
    kept = get_task("super_glue_wsc").with_options({"lone_x": "kept"})
    (example,) = made(kept, schema("Ann hid X in X X it .", 6, "it"))
    assert example["inputs"] == "wsc: Ann hid X in X X *it* ."
    assert kept.identity != get_task("super_glue_wsc").identity


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (schema("It rang .", 0, "It"), "pronoun is the first word or outside the text"),
        (schema("Ann hid it", 3, "it"), "pronoun is the first word or outside the text"),
        (schema("Ann hid it", -1, "it"), "pronoun is the first word or outside the text"),
        (schema("Ann hid It .", 2, "it"), "pronoun is not the word at its index"),
        (schema("Ann hid it, so", 2, "it"), "pronoun is not the word at its index"),
        (schema("Ann  hid it .", 2, "it"), "pronoun is not the word at its index"),
    ],
)
def test_a_pronoun_that_is_not_where_it_should_be_is_refused(row: Row, reason: str) -> None:
    assert made(get_task("super_glue_wsc"), row) == [reason]
    assert made(get_task("super_glue_wsc"), row, "validation") == [reason]


@pytest.mark.parametrize(("label", "trained"), [(1, True), (True, True), (0, False), (False, False), (-1, True)])
def test_only_what_the_pronoun_means_is_trained_on_and_everything_is_evaluated(label: object, trained: bool) -> None:
    task, row = get_task("super_glue_wsc"), schema("Ann hid it .", 2, "it", label)
    examples = made(task, row, "validation")
    assert [example["targets"] for example in examples] == ["Ann"]
    assert made(task, row, "train") == (examples if trained else ["phrase is not what the pronoun means"])


def test_the_two_texts_that_the_original_knows_get_their_stars_at_another_place() -> None:
    pony, pebble = coreference._KNOWN_PLACES
    (first,) = made(get_task("super_glue_wsc"), schema(pony, 22, "him"))
    assert first["inputs"].endswith('over. John laughed out quite loud. "Good for *him* ," he said.')
    (second,) = made(get_task("super_glue_wsc"), schema(pebble, 30, "it"))
    assert second["inputs"].endswith("they might want to use *it* , but really for now, what more could they wish for?")
    assert made(get_task("super_glue_wsc"), schema(pony + " ", 22, "him")) == ["pronoun is not the word at its index"]


def test_nested_spans_are_mended_as_in_the_public_data_and_public_ones_are_not() -> None:
    text = "Ann lost the cup when a tall man took it from her ."

    def mended(span: str, index: int) -> str:
        target = {"span1_index": index, "span1_text": span, "span2_index": 9, "span2_text": "it"}
        (row,) = spans_of({"text": text, "target": target, "label": True, "idx": 1})
        assert "target" not in row
        return str(row["span1_text"])

    assert mended("The cup", 2) == "the cup"
    assert mended("the cup.", 2) == "the cup"
    assert mended("A tall\nman", 5) == "a tall man"
    assert mended("ann", 0) == "Ann"
    assert mended("Bob and Zoe", 0) == "Bob and Zoe"
    assert mended("The cup", 99) == "The cup"
    public = {"text": text, "span1_text": "The cup", "span1_index": 2}
    assert list(spans_of(public)) == [public]


@pytest.mark.parametrize(
    ("spans", "inputs"),
    [
        (("the cup", 2, "it", 7), "wsc text: Ann hid * the cup * , and Bob saw # it # ."),
        (("it", 8, "Ann", 0), "wsc text: # Ann # hid the cup , and Bob saw * it * ."),
        (("the cu", 2, "it", 8), "wsc text: Ann hid * the cu *p , and Bob saw # it # ."),
        (("The cup", 2, "it", 8), "wsc text: Ann hid the cup , and Bob saw it ."),
        (("cup", 2, "it", 8), "wsc text: Ann hid the cup , and Bob saw it ."),
    ],
)
def test_both_spans_are_marked_where_they_stand(spans: tuple[str, int, str, int], inputs: str) -> None:
    named = dict(zip(("span1_text", "span1_index", "span2_text", "span2_index"), spans, strict=True))
    row = schema("Ann hid the cup , and Bob saw it .", 0, "") | named
    if "the cup" in spans:
        row["span2_index"] = 8
    assert made(get_task("super_glue_wsc_marked"), row) == [{"inputs": inputs, "targets": "True", "idx": 5}]


# WNLI as WSC


@pytest.mark.parametrize(
    ("premise", "hypothesis", "inputs", "targets"),
    [
        ("The fox met the owl. It ran.", "The owl ran.", "The fox met the owl. *It* ran.", "The owl"),
        ("Ann gave Bob her hat, and she left.", "Ann left.", "Ann gave Bob her hat, and *she* left.", "Ann"),
        (
            "I like the pillar but I can't see it.",
            "I can't see the pillar.",
            "I like the pillar but I can't see *it* .",
            "the pillar",
        ),
        (
            "The man held the boy in his arms.",
            "The man held the boy in the man's arms.",
            "The man held the boy in *his* arms.",
            "the man",
        ),
        ("The cats met; they ran home.", "The cats' ran home.", "The cats met; *they* ran home.", "The cats"),
        ("Did they go? Yes, he went.", "Yes, Mr. Bean went.", "Did they go? Yes, *he* went.", "Mr. Bean"),
        ("He hid, he ran.", "Nothing fits.", "*He* hid, he ran.", ""),
        ("He ran.", "Bob ran.", "*He* ran.", "Bob"),
        ("Ann ran to him!", "Ann ran to Bob!", "Ann ran to *him* !", "Bob"),
        ("Ann (who ran) saw it.", "Ann (who ran) saw the sea.", "Ann (who ran) saw *it* .", "the sea"),
    ],
)
def test_the_pronoun_is_the_one_that_the_second_sentence_replaces(
    premise: str, hypothesis: str, inputs: str, targets: str
) -> None:
    row = {"sentence1": premise, "sentence2": hypothesis, "label": "1", "idx": 2}
    expected = {"premise": premise, "hypothesis": hypothesis, "label": 1, "idx": 2}
    assert made(get_task("glue_wnli"), row) == [{**expected, "inputs": f"wsc: {inputs}", "targets": targets}]


@pytest.mark.parametrize(
    ("premise", "hypothesis", "reason"),
    [
        ("Ann ran.", "Ann ran.", "no pronoun in the first sentence"),
        ("It ran home.", "The big  owl ran home.", "phrase is not in the second sentence"),
        ("Up  it ran.", "Up the owl ran.", "two spaces before the pronoun"),
    ],
)
def test_a_pair_that_has_no_such_pronoun_is_refused(premise: str, hypothesis: str, reason: str) -> None:
    assert made(get_task("glue_wnli"), {"sentence1": premise, "sentence2": hypothesis}) == [reason]


WORDS = st.lists(st.sampled_from("he It his, a the cat owl's ran! the".split()), min_size=1, max_size=8).map(" ".join)  # noqa: SIM905


@given(WORDS, WORDS)
def test_exactly_one_word_gets_stars_and_the_phrase_is_from_the_second_sentence(premise: str, hypothesis: str) -> None:
    row = {"sentence1": premise, "sentence2": hypothesis}
    if not {"he", "it", "his"} & set(premise.lower().replace(",", "").split()):
        with pytest.raises(Rejected, match="no pronoun in the first sentence"):
            next(starred_ambiguous_pronoun(row))
        return
    (example,) = starred_ambiguous_pronoun(row)
    stripped = example["inputs"].removeprefix("wsc: ").replace("*", "")
    assert stripped.replace(" ,", ",") == premise
    assert example["inputs"].count("*") == 2
    assert example["targets"] in hypothesis


# Definite Pronoun Resolution


@pytest.mark.parametrize(
    ("sentence", "pronoun", "text"),
    [
        ("The dog saw the cat, it ran, it hid.", "it", "The dog saw the cat, *it* ran, it hid."),
        ("Ann said it was she.", "she", "Ann said it was *she*."),
        ("He ran, he hid.", "He", "He ran, he hid."),
        ("Ann saw it; it ran", "it", "Ann saw it; *it* ran"),
        ("Ann saw it! And it", "it", "Ann saw it! And it"),
        ("Ann saw Its cat", "it", "Ann saw Its cat"),
        ("Ann met the man who ran", "the man", "Ann met *the man* who ran"),
        ("Ann met a.b today", "a.b", "Ann met *a.b* today"),
    ],
)
def test_the_first_pronoun_between_spaces_gets_stars(sentence: str, pronoun: str, text: str) -> None:
    row = {"sentence": sentence, "pronoun": pronoun, "candidates": ["Ann", "Bob"], "label": 1}
    assert made(get_task("dpr"), row) == [{"inputs": f"wsc: {text}", "targets": "Bob"}]


@pytest.mark.parametrize("label", [-3, 2])
def test_a_label_beyond_the_candidates_is_left_out(label: int) -> None:
    row = {"sentence": "Ann ran", "pronoun": "it", "candidates": ["Ann", "Bob"], "label": label}
    assert made(get_task("dpr"), row) == ["label is none of the candidates"]


def test_a_negative_label_of_dpr_takes_candidates_from_the_end() -> None:
    row = {"sentence": "Ann ran", "pronoun": "it", "candidates": ["Ann", "Bob"], "label": -1}
    assert made(get_task("dpr"), row)[0]["targets"] == "Bob"


@pytest.mark.parametrize(
    ("span", "inputs"),
    [
        ("The (old) dog", "wsc text: The (old) dog barked because it was cold ."),
        ("The .old. dog", "wsc text: * The (old) dog * barked because # it # was cold ."),
        ("The", "wsc text: * The * (old) dog barked because # it # was cold ."),
    ],
)
def test_spans_are_read_as_regular_expressions(span: str, inputs: str) -> None:
    text = "The (old) dog barked because it was cold ."
    row = {"text": text, "span1_text": span, "span1_index": 0, "span2_text": "it", "span2_index": 5, "label": 1}
    assert made(get_task("super_glue_wsc_marked"), row)[0]["inputs"] == inputs


@pytest.mark.parametrize("span", ["C++", "(she", "a{2}+", "(?=x)"])
def test_spans_that_are_no_regular_expression_are_left_out(span: str) -> None:
    row = {
        "text": f"{span} ran",
        "span1_text": span,
        "span1_index": 0,
        "span2_text": "it",
        "span2_index": 1,
        "label": 1,
    }
    assert made(get_task("super_glue_wsc_marked"), row) == ["text is no regular expression"]


def test_a_pronoun_of_dpr_is_read_as_a_regular_expression() -> None:
    row = {"sentence": "Ann saw bxc .", "pronoun": "b.c", "candidates": ["Ann", "Bob"], "label": 0}
    assert made(get_task("dpr"), row)[0]["inputs"] == "wsc: Ann saw *bxc* ."


def test_blocks_of_text_become_records_and_damaged_ones_are_told() -> None:
    lines = ["Ann met Bob.", "it", "Ann, Bob", "Bob", "", "Cut off", "it", "", "", "Ann ran.", "it", "Ann,Bob", "Zoe"]
    assert list(blocks(lines)) == [
        {"sentence": "Ann met Bob.", "pronoun": "it", "candidates": ["Ann", "Bob"], "label": 1},
        BadRecord("not four lines", "Cut off\nit"),
        BadRecord("answer is no candidate", "Ann ran.\nit\nAnn,Bob\nZoe"),
    ]


def test_nested_lines_of_a_folder_are_read_through_the_task(tmp_path: Path) -> None:
    (tmp_path / "WSC").mkdir()
    target = {"span1_index": 3, "span1_text": "The cup", "span2_index": 1, "span2_text": "it"}
    row = {"text": "As it fell the cup broke .", "target": target, "idx": 0, "label": True}
    (tmp_path / "WSC/val.jsonl").write_text(json.dumps(row), encoding="utf-8")
    task = get_task("super_glue_wsc").bound(str(tmp_path), {})
    assert task.splits == ("validation",)
    (item,) = task.examples(task.shards("validation")[0])
    assert isinstance(item, Example)
    expected = {"inputs": "wsc: As *it* fell the cup broke .", "targets": "the cup", "label": 1, "idx": 0}
    assert item.fields == expected
