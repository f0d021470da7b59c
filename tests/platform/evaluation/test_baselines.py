"""A baseline is the best of what costs nothing, judged like a model's answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixtura.platform.data.task import Row, Shard, Task
from mixtura.platform.evaluation.baselines import Baseline, trivial_baselines
from mixtura.platform.evaluation.metrics import MeanMetric, accuracy, name_f1

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
    best = trivial_baselines(task_of(name_f1), ["close", "close", "get_name"], examples)
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
    best = trivial_baselines(task_of(error, name_f1), ["a", "a", "set_b", "set_c"], examples)
    assert best["error"] == Baseline("most frequent: 'a'", 200 / 3)
    assert best["name_f1"] == Baseline("always 'set_b'", 50.0)


def test_equally_frequent_outputs_are_tried_in_alphabetical_order() -> None:
    examples = examples_of(("x", "a"), ("y", "b"))
    for order in (["a", "b"], ["b", "a"]):
        assert trivial_baselines(task_of(accuracy), order, examples)["accuracy"].rule == "most frequent: 'a'"
