"""A baseline is the best of what costs nothing, judged like a model's answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from mixtura.platform.data.task import Row, Shard, Task
from mixtura.platform.evaluation.baselines import Baseline, trivial_baselines
from mixtura.platform.evaluation.metrics import MeanMetric, accuracy, multirc_exact_match, multirc_f1, name_f1, pearson

error = MeanMetric("error", lambda prediction, target: float(prediction != target), higher_is_better=False)


class Nowhere:
    splits = ("train",)

    def shards(self, split: str) -> Sequence[Shard]:
        return ()

    def read(self, shard: Shard) -> Iterator[Row]:
        return iter(())

    def fingerprint(self, split: str) -> str:
        return ""


def first_word(example: Mapping[str, Any]) -> str:
    return str(example["inputs"]).split(maxsplit=1)[0] if example["inputs"] else ""


def task_of(*metrics: MeanMetric, **fields: Any) -> Task:
    return Task("naming", Nowhere(), (), "supervised", "1", "", metrics, **fields)


def examples_of(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"inputs": inputs, "targets": targets} for inputs, targets in pairs]


def test_the_most_frequent_training_output_is_a_baseline() -> None:
    examples = examples_of(("x", "a"), ("y", "a"), ("z", "b"))
    best = trivial_baselines(task_of(accuracy), ["a", "a", "b"], examples)
    assert best == {"accuracy": Baseline("most frequent: 'a'", 200 / 3)}


def test_a_constant_may_beat_the_most_frequent_output() -> None:
    examples = examples_of(("x", "get_name"), ("y", "get_size"))
    best = trivial_baselines(task_of(name_f1), ["close", "close", "close", "get_name", "get_name"], examples)
    assert best == {"name_f1": Baseline("always 'get_name'", 75.0)}


def test_a_copy_rule_is_judged_like_answers_and_falls_back_where_it_copies_nothing() -> None:
    examples = examples_of(("a b", "a"), ("c d", "c"), ("", "e"), ("f", "g"))
    best = trivial_baselines(task_of(accuracy, copy_rules={"first word": first_word}), ["e", "a", "e"], examples)
    assert best == {"accuracy": Baseline("copy: first word", 75.0)}


def test_answers_are_postprocessed_like_a_models() -> None:
    task = task_of(accuracy, postprocess=lambda text, example: text.lower())
    assert trivial_baselines(task, ["YES"], examples_of(("x", "Yes")))["accuracy"].value == 100.0


def test_every_metric_has_its_own_best_rule_and_lower_may_be_better() -> None:
    examples = examples_of(("x", "set_b"), ("y", "set_c"), ("z", "a"))
    best = trivial_baselines(task_of(error, name_f1), ["a", "a", "a", "set_b", "set_b", "set_c"], examples)
    assert best["error"] == Baseline("most frequent: 'a'", 200 / 3)
    assert best["name_f1"] == Baseline("always 'set_b'", 50.0)


def test_equally_frequent_outputs_are_tried_in_alphabetical_order() -> None:
    examples = examples_of(("x", "a"), ("y", "b"))
    for order in (["a", "b"], ["b", "a"]):
        assert trivial_baselines(task_of(accuracy), order, examples)["accuracy"].rule == "most frequent: 'a'"


def test_a_task_that_was_never_trained_has_copy_rules_only() -> None:
    examples = examples_of(("a b", "a"), ("", "c"))
    assert trivial_baselines(task_of(accuracy), [], examples) == {}
    best = trivial_baselines(task_of(accuracy, copy_rules={"first word": first_word}), [], examples)
    assert best == {"accuracy": Baseline("copy: first word", 50.0)}


def test_only_outputs_that_repeat_are_tried_beside_the_most_frequent() -> None:
    examples = examples_of(("x", "once"), ("y", "once"), ("z", "often"))
    best = trivial_baselines(task_of(accuracy), ["often", "often", "once"], examples)
    assert best["accuracy"] == Baseline("most frequent: 'often'", pytest.approx(100 / 3))


def test_fewer_constants_are_tried_where_targets_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Any] = []

    def of_example(prediction: Any, target: Any) -> float:
        judged.append(prediction)
        return 0.0

    monkeypatch.setattr("mixtura.platform.evaluation.baselines.CHARACTERS_JUDGED", 30)
    examples = examples_of(("x", "ten_chars_"), ("y", ""))
    training = [text for text in "abcdefgh" for _ in range(2)]
    trivial_baselines(task_of(MeanMetric("seen", of_example)), training, examples)
    assert judged == ["a", "a", "b", "b", "c", "c"]


def test_what_no_rule_gives_a_value_has_no_baseline() -> None:
    task = task_of(pearson, postprocess=lambda text, example: float(text))
    assert trivial_baselines(task, ["1.0", "1.0", "2.0"], examples_of(("x", "1.0"), ("y", "2.0"))) == {}


def test_answers_may_be_records_of_groups() -> None:
    def answer(text: str, example: Mapping[str, Any]) -> dict[str, Any]:
        return {"value": ["False", "True"].index(text), "group": example["inputs"]}

    task = task_of(multirc_f1, multirc_exact_match, postprocess=answer)
    examples = examples_of(("1", "True"), ("1", "False"), ("2", "False"))
    assert trivial_baselines(task, ["False"] * 2 + ["True"] * 2, examples) == {
        "f1": Baseline("always 'True'", 50.0),
        "exact_match": Baseline("most frequent: 'False'", 50.0),
    }
