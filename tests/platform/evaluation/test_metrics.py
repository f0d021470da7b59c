"""Metrics give the original code's numbers, and means can be taken apart into examples."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mixtura.platform.errors import DataError
from mixtura.platform.evaluation.metrics import (
    CorpusMetric,
    MeanMetric,
    accuracy,
    bag_f1,
    name_f1,
    name_parts,
    rouge1,
    rouge2,
    rouge_l,
    rouge_lsum,
)


def golden(shared: Path, metric: str) -> list[dict[str, Any]]:
    lines = (shared / "golden/metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["metric"] == metric]


def test_accuracy_is_the_original_codes(shared: Path) -> None:
    rows = golden(shared, "accuracy")
    assert rows
    for row in rows:
        assert accuracy(row["predictions"], row["targets"]) == pytest.approx(row["result"]["accuracy"], rel=1e-6)


def test_rouge_is_the_original_codes_before_bootstrapping(shared: Path) -> None:
    rows = golden(shared, "rouge_mean")
    assert rows
    for row in rows:
        for metric in (rouge1, rouge2, rouge_lsum):
            found = metric(row["predictions"], row["targets"])
            assert found == pytest.approx(row["result"][metric.name], rel=1e-6)


def test_rouge_of_known_pairs() -> None:
    assert rouge1(["the cat sat"], ["the cat sat on the mat"]) == pytest.approx(100 * 2 * 3 / 9)
    assert rouge2(["the cat sat"], ["the cat sat on the mat"]) == pytest.approx(100 * 2 * 2 / 7)
    assert rouge_l(["mat the cat"], ["the cat mat"]) == pytest.approx(100 * 2 / 3)
    assert rouge1(["Cats!"], ["cat"]) == 0.0


def test_names_are_compared_by_their_words() -> None:
    assert name_parts("XMLHttpRequest_v2") == ["xml", "http", "request", "v", "2"]
    assert name_f1(["setDebugLevel", "close", ""], ["set_debug_level", "open", "x"]) == pytest.approx(100 / 3)
    assert name_f1(["get_name"], ["get_file_name"]) == pytest.approx(80)


def test_repeating_a_word_does_not_raise_its_f1() -> None:
    assert bag_f1(["a", "a", "a"], ["a"]) == pytest.approx(0.5)
    assert bag_f1([], ["a"]) == 0.0


@pytest.mark.parametrize("metric", [accuracy, name_f1, rouge1, rouge_l])
def test_a_mean_is_the_mean_of_its_examples(metric: MeanMetric) -> None:
    predictions, targets = ["get the name", "close", "a b"], ["get name", "close", "c"]
    assert metric(predictions, targets) == pytest.approx(fmean(metric.scores(predictions, targets)))
    assert metric(targets, targets) == pytest.approx(100)


def test_a_corpus_metric_has_no_scores_of_examples() -> None:
    everything = CorpusMetric("all_right", lambda predictions, targets: float(predictions == targets))
    assert everything(["a", "b"], ["a", "b"]) == 100.0
    assert everything.scores(["a"], ["a"]) is None


def test_missing_predictions_are_refused_with_both_counts() -> None:
    with pytest.raises(DataError, match="accuracy needs one prediction for each target.*1 predictions for 2 targets"):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(DataError, match="at least one"):
        rouge1([], [])
