"""A task turns rows into examples, and says of every other row why it made none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from mixtura.platform.data.preprocessors import TextToText
from mixtura.platform.data.task import Example, Rejected, RejectedRow, Row, Shard, Task
from mixtura.platform.errors import DataError, UnknownNameError


class Numbers:
    splits = ("train", "test")

    def shards(self, split: str) -> Sequence[Shard]:
        return [Shard(f"{split}-0", (0, 3)), Shard(f"{split}-1", (3, 6))]

    def read(self, shard: Shard) -> Iterator[Row]:
        first, last = shard.locator
        return ({"number": number} for number in range(int(first), int(last)))

    def fingerprint(self, split: str) -> str:
        return "numbers"


def divisors(row: Row) -> Iterator[Row]:
    if row["number"] == 0:
        raise Rejected("everything divides zero")
    for divisor in range(1, row["number"] + 1):
        if row["number"] % divisor == 0:
            yield {"inputs": f"divide number: {row['number']}", "targets": str(divisor)}


def drop_ones(row: Row) -> Iterator[Row]:
    if row["targets"] == "1":
        raise Rejected("one divides everything")
    yield row


def nothing(row: Row) -> Iterator[Row]:
    return iter(())


def task_of(*preprocessors: object, kind: str = "supervised") -> Task:
    return Task("divide", Numbers(), preprocessors, kind=kind, version="1", description="")  # type: ignore[arg-type]


def test_one_row_may_make_several_examples() -> None:
    made = [item for item in task_of(divisors).examples(Shard("test-1", (4, 5))) if isinstance(item, Example)]
    assert [(item.row, item.fields["targets"]) for item in made] == [(0, "1"), (0, "2"), (0, "4")]


def test_every_row_is_used_or_rejected_under_a_name() -> None:
    items = list(task_of(divisors, drop_ones).examples(Shard("test-0", (0, 3))))
    assert {item.row for item in items} == {0, 1, 2}
    reasons = Counter(item.reason for item in items if isinstance(item, RejectedRow))
    assert reasons == {"everything divides zero": 1, "one divides everything": 2}


def test_a_rejected_row_says_where_it_was_and_how_it_begins() -> None:
    (item,) = task_of(divisors).examples(Shard("test-0", (0, 1)))
    assert item == RejectedRow(0, "everything divides zero", "test-0", '{"number": 0}')


def test_a_step_that_makes_nothing_is_named_as_the_reason() -> None:
    items = list(task_of(divisors, nothing).examples(Shard("test-0", (1, 2))))
    assert [item.reason for item in items if isinstance(item, RejectedRow)] == ["nothing made nothing of it"]


def test_steps_do_not_change_the_source_rows() -> None:
    def spoil(row: Row) -> Iterator[Row]:
        row["number"] = -1
        yield {"inputs": "", "targets": ""}

    rows = [{"number": 7}]
    list(task_of(spoil).transform(rows, "here"))
    assert rows == [{"number": 7}]


def test_examples_without_text_fields_are_refused_with_what_was_found() -> None:
    with pytest.raises(DataError, match=r"needs? the text fields inputs and targets.*\['number'\]"):
        list(task_of(lambda row: [row]).examples(Shard("test-0", (0, 1))))
    with pytest.raises(DataError, match="unsupervised.*text"):
        list(task_of(divisors, kind="unsupervised").examples(Shard("test-0", (1, 2))))


def test_an_unknown_split_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no split 'tests' in task 'divide'; nearest: 'test'"):
        task_of(divisors).shards("tests")


def test_the_right_answer_is_the_targets_postprocessed_unless_the_task_says_otherwise() -> None:
    plain = task_of(divisors)
    assert plain.answer({"targets": "4"}) == "4"
    several = Task("several", Numbers(), (), "supervised", "1", "", reference=lambda example: example["answers"])
    assert several.answer({"targets": "4", "answers": ["4", "four"]}) == ["4", "four"]


def test_fields_stand_in_alphabetical_order_and_the_rest_of_the_row_stays() -> None:
    step = TextToText("rte", {"sentence2": "b", "sentence1": "a"}, target="label")
    (made,) = step({"a": "x", "b": "y", "label": "z", "idx": 3})
    assert made["inputs"] == "rte sentence1: x sentence2: y"
    assert made["targets"] == "z"
    assert made["idx"] == 3
