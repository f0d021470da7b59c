"""Every metric gives the number that the original code gave, on all of its worked answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixtura.platform.data.task import Metric
from mixtura.platform.errors import DataError
from mixtura.platform.evaluation import metrics

OURS: dict[str, Sequence[Metric]] = {
    "accuracy": [metrics.accuracy],
    "all_match": [metrics.all_match],
    "bleu": [metrics.bleu],
    "cb_f1": [metrics.cb_f1],
    "cola_matthews": [metrics.matthews],
    "edit_distance": [
        metrics.mean_edits,
        metrics.median_edits,
        metrics.min_edits,
        metrics.max_edits,
        metrics.sum_edits,
    ],
    "f1_score_with_invalid": [metrics.binary_f1],
    "multirc_exact_match": [metrics.multirc_exact_match],
    "multirc_f1": [metrics.multirc_f1],
    "pearson_corrcoef": [metrics.pearson],
    "record_dedup_squad": [metrics.record_em, metrics.record_f1],
    "rouge": [metrics.bootstrap_rouge1, metrics.bootstrap_rouge2, metrics.bootstrap_rouge_lsum],
    "rouge_mean": [metrics.rouge1, metrics.rouge2, metrics.rouge_lsum],
    "sequence_accuracy": [metrics.sequence_accuracy],
    "span_squad": [metrics.span_squad_em, metrics.span_squad_f1],
    "spearman_corrcoef": [metrics.spearman],
    "squad": [metrics.squad_em, metrics.squad_f1],
    "trivia_qa": [metrics.trivia_qa_em, metrics.trivia_qa_f1],
}
"""The original's function, and what we have for each number that it returns."""

OF_TASKS: dict[str, str | Sequence[Metric]] = {
    "cola": "cola_matthews",
    "stsb": [metrics.pearson, metrics.spearman],
    "mrpc": [metrics.binary_f1, metrics.accuracy],
    "qqp": [metrics.binary_f1, metrics.accuracy],
    "cb": [metrics.cb_f1, metrics.accuracy],
    "multirc": [metrics.multirc_f1, metrics.multirc_exact_match],
    "record": "record_dedup_squad",
    "squad": "squad",
    "squad_context_free": "squad",
    "squad_span": "span_squad",
    "trivia_qa": "trivia_qa",
    "cnndm": "rouge",
    "ende": "bleu",
    "enfr": "bleu",
    "enro": "bleu",
}
"""Tasks of the original by what they are judged by; all others by accuracy."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ours(row: dict[str, Any]) -> Sequence[Metric]:
    if row["metric"] == "rank_classification":
        options = row["kwargs"]
        classes, by_length = options.get("num_classes"), options.get("normalize_by_target_length", False)
        return [
            metrics.ranked(name, classes, normalize_by_target_length=by_length)
            for name in row.get("result", {"accuracy": 0.0})
        ]
    return OURS[row["metric"]]


def assert_equal(found: dict[str, float], expected: dict[str, Any], row: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in found.items():
        wanted = float(expected[name])
        same = math.isnan(value) if math.isnan(wanted) else math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-9)
        assert same, f"{name} is {value}, not {wanted}, for {row}"


def test_every_number_is_the_original_codes(shared: Path) -> None:
    rows = rows_of(shared / "golden/metrics.jsonl")
    assert rows
    for row in rows:
        if "error" in row:
            for metric in ours(row):
                with pytest.raises(DataError):
                    metric(row["predictions"], row["targets"])
            continue
        assert_equal(
            {metric.name: metric(row["predictions"], row["targets"]) for metric in ours(row)}, row["result"], row
        )


def test_the_numbers_of_whole_tasks_are_the_original_codes(shared: Path) -> None:
    rows = rows_of(shared / "golden/evaluate.jsonl")
    assert rows
    for row in rows:
        chosen = OF_TASKS.get(row["task"], "accuracy")
        judges = OURS[chosen] if isinstance(chosen, str) else chosen
        assert_equal(
            {metric.name: metric(row["predictions"], row["targets"]) for metric in judges}, row["metrics"], row
        )


def test_bootstrapped_rouge_is_seeded_and_leaves_numpys_generator_alone() -> None:
    texts = ["a", "b c", "d e f", "g h i j", "x"], ["a", "b", "d e x", "g y", "k"]
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    found = [metric(*texts) for metric in OURS["rouge"]]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert found == [metric(*texts) for metric in OURS["rouge"]]
    assert found[0] == pytest.approx(metrics.rouge1(*texts), abs=3)


def test_each_bootstrapped_rouge_draws_after_those_before_it() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import BootstrapAggregator

    predictions, targets = ["a b", "b c", "d e f", "g h i j", "x y"], ["a b c", "b", "d e x", "g h y", "k y"]
    scorer, aggregator = RougeScorer(["rouge1", "rouge2", "rougeLsum"]), BootstrapAggregator()
    for prediction, target in zip(predictions, targets, strict=True):
        aggregator.add_scores(scorer.score(target, prediction))
    np.random.seed(0)  # noqa: NPY002
    expected = {name: 100 * score.mid.fmeasure for name, score in aggregator.aggregate().items()}
    assert {metric.name: metric(predictions, targets) for metric in OURS["rouge"]} == pytest.approx(expected, abs=1e-9)
