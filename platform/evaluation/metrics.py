"""Numbers for answers. Every metric is on T5's scale from 0 to 100 and takes all predictions and targets of a split.

A metric that is a mean over examples can say what each example scored (`scores`), which makes its interval cheap;
others (correlations, F1 of a class) are computed from all answers at once.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mixtura.platform.errors import DataError

SCALE = 100.0


@dataclass(frozen=True)
class MeanMetric:
    """100 times the mean of `of_example(prediction, target)`, a number in [0, 1].

    >>> accuracy(["cat", "dog"], ["cat", "cat"])
    50.0
    """

    name: str
    of_example: Callable[[Any, Any], float]
    higher_is_better: bool = True

    def scores(self, predictions: Sequence[Any], targets: Sequence[Any]) -> list[float]:
        """What each example scored, on the same scale as their mean."""
        _check_lengths(self.name, predictions, targets)
        return [
            SCALE * self.of_example(prediction, target) for prediction, target in zip(predictions, targets, strict=True)
        ]

    def __call__(self, predictions: Sequence[Any], targets: Sequence[Any]) -> float:
        """The mean over all examples."""
        scores = self.scores(predictions, targets)
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class CorpusMetric:
    """100 times `of_all(predictions, targets)`, for numbers that are no mean over examples."""

    name: str
    of_all: Callable[[Sequence[Any], Sequence[Any]], float]
    higher_is_better: bool = True

    def scores(self, predictions: Sequence[Any], targets: Sequence[Any]) -> None:
        """None: there is nothing to say about single examples."""

    def __call__(self, predictions: Sequence[Any], targets: Sequence[Any]) -> float:
        """The number for all examples together."""
        _check_lengths(self.name, predictions, targets)
        return SCALE * self.of_all(predictions, targets)


def _check_lengths(name: str, predictions: Sequence[Any], targets: Sequence[Any]) -> None:
    if len(predictions) != len(targets) or not targets:
        raise DataError(
            f"{name} needs one prediction for each target and at least one: "
            f"got {len(predictions)} predictions for {len(targets)} targets"
        )


def bag_f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two bags of words: 2 · common / (predicted + wanted), counting repeated words as often as both have them.

    >>> bag_f1(["get", "file", "size"], ["get", "size"])
    0.8
    """
    if not predicted and not wanted:
        return 1.0
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


def name_parts(name: str) -> list[str]:
    """The words of a programmer's name, in lower case.

    >>> name_parts("__init__"), name_parts("readHTTPHeader2"), name_parts("set_debug_level")
    (['init'], ['read', 'http', 'header', '2'], ['set', 'debug', 'level'])
    """
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def name_part_f1(predicted: str, wanted: str) -> float:
    """F1 of the words in two names, as in work on naming functions (Allamanis et al. 2015 and later).

    >>> name_part_f1("get_file_size", "getsize")
    0.0
    >>> name_part_f1("getFile", "get_file")
    1.0
    """
    return bag_f1(name_parts(predicted), name_parts(wanted))


@functools.cache
def _rouge(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    class RememberingTokenizer(DefaultTokenizer):  # type: ignore[misc]
        """The same answers cut once: baselines compare one constant with every target."""

        tokenize = functools.lru_cache(maxsize=1 << 14)(DefaultTokenizer.tokenize)

    return RougeScorer([kind], tokenizer=RememberingTokenizer(use_stemmer=False))


def rouge_f1(kind: str, predicted: str, wanted: str) -> float:
    """ROUGE F1 of one pair by Google's scorer, without stemming, as T5 reports it (`kind` is rouge1, rouge2, rougeL).

    For `rougeLsum` sentences have to be on lines of their own, so ` . ` becomes ` .` and a newline first.
    """
    if kind == "rougeLsum":
        predicted, wanted = predicted.replace(" . ", " .\n"), wanted.replace(" . ", " .\n")
    return float(_rouge(kind).score(wanted, predicted)[kind].fmeasure)


accuracy = MeanMetric("accuracy", lambda prediction, target: float(prediction == target))
name_f1 = MeanMetric("name_f1", name_part_f1)
rouge1 = MeanMetric("rouge1", functools.partial(rouge_f1, "rouge1"))
rouge2 = MeanMetric("rouge2", functools.partial(rouge_f1, "rouge2"))
rouge_l = MeanMetric("rougeL", functools.partial(rouge_f1, "rougeL"))
rouge_lsum = MeanMetric("rougeLsum", functools.partial(rouge_f1, "rougeLsum"))
