"""Metrics of known answers, and means that can be taken apart into examples."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from mixtura.platform.errors import DataError
from mixtura.platform.evaluation.metrics import (
    METRICS,
    CorpusMetric,
    MeanMetric,
    accuracy,
    all_match,
    bag_f1,
    binary_f1,
    bleu,
    macro_f1,
    matthews,
    multirc_exact_match,
    multirc_f1,
    name_f1,
    name_parts,
    pearson,
    record_f1,
    rouge1,
    rouge2,
    rouge_l,
    span_squad_f1,
    spearman,
    squad_em,
    squad_f1,
    trivia_qa_em,
)


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
    with pytest.raises(DataError, match="1 predictions for 0 targets"):
        all_match(["a"], [])


def test_f1_of_one_class_wants_two_classes_and_names_the_metric_for_more() -> None:
    assert binary_f1([1, 7, 0, True], [1, 0, 1, 1]) == pytest.approx(100 * 2 * 2 / (3 + 3))
    with pytest.raises(DataError, match="classes 0 and 1.*got 'yes'.*macro_f1"):
        binary_f1(["yes"], ["yes"])
    assert macro_f1(["yes", "no", "?"], ["yes", "no", "no"]) == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_correlations_without_a_value_are_nan_and_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    for metric in (pearson, spearman):
        for predictions in ([2.0, 2.0, 2.0], [1.0, math.nan, 2.0]):
            assert math.isnan(metric(predictions, [1.0, 2.0, 3.0]))
        assert math.isnan(metric([1.0], [1.0]))
    assert math.isnan(pearson([1.0, math.inf, 2.0], [1.0, 2.0, 3.0]))
    assert matthews([1], [1]) == 0.0
    assert not recwarn.list


def test_a_correlation_of_text_is_refused() -> None:
    with pytest.raises(DataError, match="needs numbers.*'much'.*postprocess"):
        pearson(["much", "1"], [1.0, 2.0])


def test_pearson_of_known_numbers() -> None:
    assert pearson([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]) == pytest.approx(100 * 1 / math.sqrt(14 / 3 * 2))


def test_a_question_may_have_one_answer_given_as_text() -> None:
    assert squad_em(["The Cat!"], ["cat"]) == 100.0
    assert squad_f1(["the old cat"], [["dog", "cat"]]) == pytest.approx(200 / 3)
    assert trivia_qa_em(["well-known"], ["well known"]) == 100.0
    assert squad_em(["well-known"], ["well known"]) == 0.0
    with pytest.raises(DataError, match="at least one accepted answer"):
        squad_f1(["cat"], [[]])


def test_a_span_beyond_the_context_is_empty() -> None:
    target = {"context": "one two three", "answers": ["three"]}
    assert span_squad_f1(["start: 2 end: 2", "start: 7 end: 9", "start: 1", ""], [target] * 4) == 25.0


def test_the_first_example_of_a_group_counts_for_record() -> None:
    targets = [{"group": group, "value": [name]} for group, name in [([1, 2], "Ann"), ([1, 2], "Ann"), ([2, 2], "Bo")]]
    assert record_f1([{"value": "Ann"}, {"value": "x"}, {"value": "x"}], targets) == 50.0
    assert record_f1([{"value": "x"}, {"value": "Ann"}, {"value": "x"}], targets) == 0.0


def test_multirc_takes_all_answers_for_f1_and_whole_questions_for_exact_match() -> None:
    targets = [{"group": group, "value": value} for group, value in [(1, 1), (2, 0), (1, 0), (3, 1)]]
    predictions = [{"value": value} for value in (1, 0, 1, -1)]
    assert multirc_f1(predictions, targets) == pytest.approx(100 * 2 * 1 / (2 + 2))
    assert multirc_exact_match(predictions, targets) == pytest.approx(100 / 3)


def test_grouped_metrics_say_what_they_take() -> None:
    with pytest.raises(DataError, match="records with a 'value'.*'yes'"):
        multirc_f1(["yes"], [{"group": 1, "value": 1}])
    with pytest.raises(DataError, match="name their 'group'"):
        multirc_exact_match([{"value": 1}], [{"value": 1}])


def test_references_are_given_for_each_prediction_or_as_sacrebleu_takes_them() -> None:
    predictions = ["one two three four", "five six seven eight", "nine ten eleven twelve"]
    for_each = [["one two three four", "x"], ["y", "five six seven eight"], ["z", "nine ten eleven twelve"]]
    assert bleu(predictions, for_each) == pytest.approx(100)
    in_streams = [predictions, ["x", "y", "z"], ["u", "v", "w"]]
    assert bleu(predictions, in_streams) == pytest.approx(100)


def test_every_metric_of_the_registry_is_described_in_one_sentence() -> None:
    for name, metric in METRICS.items():
        assert metric.description.endswith("."), name
        assert len(metric.description) < 100, name
    assert len({id(metric) for metric in METRICS.values()}) == len(METRICS)
