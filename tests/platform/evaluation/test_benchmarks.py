"""A benchmark's average is that benchmark's, or says what is missing."""

from __future__ import annotations

import math

import pytest

from mixtura.platform.evaluation.benchmarks import GLUE, SUPER_GLUE, average, averages

GLUE_SCORES = {
    ("glue_cola", "matthews_corrcoef"): 53.84,
    ("glue_sst2", "accuracy"): 92.68,
    ("glue_mrpc", "f1"): 92.07,
    ("glue_mrpc", "accuracy"): 88.92,
    ("glue_stsb", "pearson_corrcoef"): 87.94,
    ("glue_stsb", "spearman_corrcoef"): 87.67,
    ("glue_qqp", "f1"): 88.56,
    ("glue_qqp", "accuracy"): 91.56,
    ("glue_mnli_matched", "accuracy"): 84.24,
    ("glue_mnli_mismatched", "accuracy"): 84.57,
    ("glue_qnli", "accuracy"): 90.48,
    ("glue_rte", "accuracy"): 76.28,
    ("glue_wnli", "accuracy"): 0.0,
}
SUPER_GLUE_SCORES = {
    ("super_glue_boolq", "accuracy"): 76.62,
    ("super_glue_cb", "mean_3class_f1"): 91.22,
    ("super_glue_cb", "accuracy"): 91.96,
    ("super_glue_copa", "accuracy"): 66.20,
    ("super_glue_multirc", "f1"): 66.13,
    ("super_glue_multirc", "exact_match"): 25.78,
    ("super_glue_record", "em"): 69.05,
    ("super_glue_record", "f1"): 68.16,
    ("super_glue_rte", "accuracy"): 75.34,
    ("super_glue_wic", "accuracy"): 68.04,
    ("super_glue_wsc", "accuracy"): 78.56,
}


def test_glue_averages_two_metrics_of_a_task_first_and_leaves_wnli_out() -> None:
    found = average(GLUE, GLUE_SCORES)
    assert found.parts["glue_mrpc"] == pytest.approx(90.495)
    assert found.parts["glue_mnli"] == pytest.approx(84.405)
    assert found.value == pytest.approx((53.84 + 92.68 + 90.495 + 87.805 + 90.06 + 84.405 + 90.48 + 76.28) / 8)
    assert found.complete
    assert str(found) == "GLUE 83.3 (8 of 8)"


def test_super_glue_averages_the_halves_of_cb_multirc_and_record_first() -> None:
    found = average(SUPER_GLUE, SUPER_GLUE_SCORES)
    assert found.parts["super_glue_multirc"] == pytest.approx(45.955)
    assert found.value == pytest.approx((76.62 + 91.59 + 66.20 + 45.955 + 68.605 + 75.34 + 68.04 + 78.56) / 8)
    assert str(found) == "SuperGLUE 71.4 (8 of 8)"


def test_missing_tasks_are_named_and_the_others_averaged() -> None:
    found = average(GLUE, {score: value for score, value in GLUE_SCORES.items() if score[0] != "glue_qqp"})
    assert found.value == pytest.approx((53.84 + 92.68 + 90.495 + 87.805 + 84.405 + 90.48 + 76.28) / 7)
    assert not found.complete
    assert str(found) == "GLUE 82.3 (7 of 8; missing: glue_qqp)"


def test_half_a_task_is_missing_and_the_lacking_half_is_named() -> None:
    lacking = [("glue_mnli_mismatched", "accuracy"), ("glue_stsb", "spearman_corrcoef")]
    found = average(GLUE, {score: value for score, value in GLUE_SCORES.items() if score not in lacking})
    assert found.missing == ("glue_stsb spearman_corrcoef", "glue_mnli_mismatched")
    assert "glue_mnli" not in found.parts


def test_an_undefined_score_counts_as_nothing_and_is_named() -> None:
    found = average(GLUE, {**GLUE_SCORES, ("glue_stsb", "pearson_corrcoef"): math.nan})
    assert found.parts["glue_stsb"] == pytest.approx(87.67 / 2)
    assert found.complete
    assert str(found) == "GLUE 77.8 (8 of 8; undefined, counted as 0: glue_stsb)"


def test_only_benchmarks_with_a_score_have_an_average() -> None:
    assert averages({("squad", "em"): 80.0}) == []
    assert [found.benchmark for found in averages({("super_glue_cb", "accuracy"): 50.0})] == ["SuperGLUE"]
    assert [found.benchmark for found in averages({**GLUE_SCORES, **SUPER_GLUE_SCORES})] == ["GLUE", "SuperGLUE"]


def test_without_a_whole_task_there_is_no_number() -> None:
    found = average(SUPER_GLUE, {("super_glue_cb", "accuracy"): 50.0})
    assert found.value is None
    assert str(found) == "SuperGLUE - (none of 8 tasks)"
