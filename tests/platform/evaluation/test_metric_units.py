"""A metric's number for drawn examples is the number that it gives for those examples written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixtura.platform.evaluation import metrics
from mixtura.platform.evaluation.metrics import METRICS
from mixtura.platform.random_bits import integers, key, uniform

COUNT = 60


def drawn(name: str, bound: int, count: int = COUNT) -> list[int]:
    return integers(key("units", name), np.arange(count), bound).astype(int).tolist()


def texts(name: str, words: int) -> list[str]:
    letters = np.array(drawn(name, 6, COUNT * words)).reshape(COUNT, words)
    return [" ".join("abcdef"[letter] for letter in row) for row in letters]


def answers_for(name: str) -> tuple[list[Any], list[Any]]:
    """Predictions and targets of the form that a metric takes, half right."""
    classes = [number - 1 for number in drawn("predicted", 4)], drawn("wanted", 3)
    binary = [number - 1 for number in drawn("predicted", 3)], drawn("wanted", 2)
    if name in {"f1", "multirc_f1", "multirc_exact_match"}:
        if name == "f1":
            return binary
        groups = drawn("groups", 12)
        values = [wanted if place % 3 else found for place, (found, wanted) in enumerate(zip(*binary, strict=True))]
        return (
            [{"value": value} for value in values],
            [{"group": [group], "value": wanted} for group, wanted in zip(groups, binary[1], strict=True)],
        )
    if "class" in name or name in {"matthews_corrcoef", "macro_f1", "accuracy", "all_match"}:
        return classes
    if "corrcoef" in name:
        return [0.2 * number for number in drawn("numbers", 9)], [float(number) for number in drawn("others", 6)]
    found, wanted = texts("found", 8), texts("right", 8)
    found = [right if place % 4 == 0 else text for place, (text, right) in enumerate(zip(found, wanted, strict=True))]
    if name.startswith("span"):
        return (
            [f"start: {start} end: {start + 1}" for start in drawn("starts", 4)],
            [{"context": text, "answers": [text[4:7], text[:7]]} for text in wanted],
        )
    accepted = [[text, other] for text, other in zip(wanted, texts("third", 3), strict=True)]
    if name.startswith("record"):
        groups = [[number, 0] for number in drawn("groups", 20)]
        return (
            [{"value": text} for text in found],
            [{"group": group, "value": answers} for group, answers in zip(groups, accepted, strict=True)],
        )
    return found, accepted if name.startswith(("squad", "trivia")) else wanted


@pytest.mark.parametrize("name", METRICS)
def test_drawn_once_each_the_units_give_the_metrics_own_number(name: str) -> None:
    metric, answers = METRICS[name], answers_for(name)
    units, value = metric.units(*answers), metric(*answers)
    assert name in {"all_match", "min_edit"} or value > 0
    if units is not None:
        tolerance = 3 if name.startswith("bootstrap") else 1e-9
        assert units.values(np.ones((1, units.count)))[0] == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize(
    "name", [name for name in METRICS if "rouge" not in name and not name.startswith(("multirc", "record"))]
)
def test_drawn_examples_count_as_often_as_they_are_drawn(name: str) -> None:
    metric, (predictions, targets) = METRICS[name], answers_for(name)
    units = metric.units(predictions, targets)
    if units is None:
        return
    assert units.count == COUNT
    draws = [drawn(f"draw {number}", COUNT) for number in range(5)]
    counts = np.array([np.bincount(draw, minlength=COUNT) for draw in draws], dtype=np.float64)
    written_out = [metric([predictions[p] for p in draw], [targets[p] for p in draw]) for draw in draws]
    assert units.values(counts) == pytest.approx(written_out, abs=1e-9)


@pytest.mark.parametrize("name", ["multirc_f1", "multirc_exact_match", "record_em", "record_f1"])
def test_groups_are_drawn_whole(name: str) -> None:
    metric, (predictions, targets) = METRICS[name], answers_for(name)
    units = metric.units(predictions, targets)
    groups = list(dict.fromkeys(target["group"][0] for target in targets))
    assert units is not None
    assert units.count == len(groups)
    draw = drawn("groups drawn", len(groups), len(groups))
    written_out: tuple[list[Any], list[Any]] = [], []
    for copy, group in enumerate(draw):
        for prediction, target in zip(predictions, targets, strict=True):
            if target["group"][0] == groups[group]:
                written_out[0].append(prediction)
                written_out[1].append({**target, "group": (copy, group)})
    counts = np.bincount(draw, minlength=len(groups))[None].astype(np.float64)
    assert units.values(counts)[0] == pytest.approx(metric(*written_out), abs=1e-9)


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [
        (["zzz"], ["the cat sat on the mat"]),
        (["the"], ["the cat sat"]),
        (["the cat sat down here"], ["the cat sat here down"]),
        (["", "the cat sat on the mat"], ["", "the cat sat on a mat"]),
        (["", ""], ["a b c d", "e f g h"]),
    ],
)
def test_bleu_of_sums_is_sacrebleus_in_odd_cases(predictions: list[str], targets: list[str]) -> None:
    from sacrebleu import corpus_bleu

    expected = corpus_bleu(predictions, [targets], tokenize="intl").score
    units = metrics.bleu.units(predictions, targets)
    assert units is not None
    assert metrics.bleu(predictions, targets) == pytest.approx(expected, abs=1e-9)
    assert units.values(np.ones((1, len(targets))))[0] == pytest.approx(expected, abs=1e-9)


def test_bleu_of_a_corpus_is_sacrebleus() -> None:
    from sacrebleu import corpus_bleu

    wanted = [f"{text}, {number}.5 {text}!" for number, text in enumerate(texts("bleu", 7))]
    found = [text if uniform(key("keep"), place) < 0.3 else text[:-6] for place, text in enumerate(wanted)]
    assert metrics.bleu(found, wanted) == pytest.approx(corpus_bleu(found, [wanted], tokenize="intl").score, abs=1e-9)


@pytest.mark.parametrize("metric", [metrics.matthews, metrics.macro_f1])
def test_classes_without_number_are_counted_anew_for_each_draw(metric: metrics.CorpusMetric) -> None:
    every = [str(number) for number in range(3000)]
    assert metric.units(every, every) is None
    assert metric(every, every) == pytest.approx(100)


def test_units_of_a_side_that_does_not_vary_are_undefined_in_every_draw() -> None:
    for metric in (metrics.pearson, metrics.spearman):
        units = metric.units([0.1, 0.1, 0.1], [1.0, 2.0, 3.0])
        assert units is not None
        assert np.isnan(units.values(np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]]))).all()


def test_many_resamples_of_large_splits_take_seconds() -> None:
    from time import perf_counter

    from mixtura.platform.evaluation.intervals import bootstrap_interval

    count = 10_000
    targets = [float(number) for number in drawn("large", 26, count)]
    predictions = [target + number for target, number in zip(targets, drawn("noise", 9, count), strict=True)]
    started = perf_counter()
    bootstrap_interval(metrics.spearman, predictions, targets)
    assert perf_counter() - started < 10
