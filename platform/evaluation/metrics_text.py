"""Numbers for answers that are text: SQuAD's exact match and F1, BLEU, ROUGE, edit distance, names of programs."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixtura.platform.errors import DataError
from mixtura.platform.evaluation.metrics_face import (
    SCALE,
    Answers,
    Floats,
    MeanMetric,
    Units,
    groups_of,
    units_from_sums,
    units_of_mean,
    values_of,
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


# Answers to questions

_PUNCTUATION = frozenset(string.punctuation)
_TRIVIA_PUNCTUATION = _PUNCTUATION | frozenset("\u2018\u2019\u00b4`_")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def _bare(text: str, punctuation: frozenset[str], instead: str) -> str:
    text = "".join(instead if character in punctuation else character for character in text.lower())
    return " ".join(_ARTICLES.sub(" ", text).split())


@functools.lru_cache(maxsize=1 << 16)
def squad_text(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without ASCII punctuation, articles and superfluous spaces.

    >>> squad_text(" The U.S.  Army!")
    'us army'
    """
    return _bare(text, _PUNCTUATION, "")


@functools.lru_cache(maxsize=1 << 16)
def trivia_text(text: str) -> str:
    """An answer as TriviaQA compares it: as SQuAD, but punctuation and quotes part words.

    >>> trivia_text("the state-of-the-art")
    'state of art'
    """
    return _bare(text, _TRIVIA_PUNCTUATION, " ")


def _accepted(answers: Any) -> Sequence[str]:
    """The accepted answers of a question, given as a list or as the only one."""
    found: Sequence[str] = [answers] if isinstance(answers, str) else answers
    if len(found) == 0:
        raise DataError("em and f1 need at least one accepted answer for each question: one has an empty list")
    return found


def answer_em(normal: Callable[[str], str], predicted: str, answers: Any) -> float:
    """1 if the prediction equals an accepted answer, both in normal form."""
    found = normal(predicted)
    return float(any(found == normal(answer) for answer in _accepted(answers)))


def answer_f1(normal: Callable[[str], str], predicted: str, answers: Any) -> float:
    """The best F1 of words with an accepted answer, both in normal form; nothing in common is 0, even two empty texts.

    >>> answer_f1(squad_text, "red blue blue", ["red red blue"]), answer_f1(squad_text, "", [""])
    (0.6666666666666666, 0.0)
    """
    found = normal(predicted).split()
    return max(bag_f1(found, normal(answer).split()) if found else 0.0 for answer in _accepted(answers))


def span_text(predicted: str, context: str) -> str:
    """The words of a context that a prediction like `start: 3 end: 5` points to (both ends are in it, from 0).

    The second and fourth word of the prediction count; without two such numbers it points to nothing.

    >>> span_text("start: 1 end: 2", "One two, three four-five six.")
    'two three'
    """
    try:
        _, start, _, end, *_ = re.sub(r"\W", " ", predicted).split()
        return " ".join(re.sub(r"\W", " ", context).split()[int(start) : int(end) + 1])
    except ValueError:
        return ""


def span_em(predicted: str, target: Mapping[str, Any]) -> float:
    """SQuAD's exact match for a prediction that points to words of the target's `context`."""
    return answer_em(squad_text, span_text(predicted, target["context"]), target["answers"])


def span_f1(predicted: str, target: Mapping[str, Any]) -> float:
    """SQuAD's F1 for a prediction that points to words of the target's `context`."""
    return answer_f1(squad_text, span_text(predicted, target["context"]), target["answers"])


def _first_scores(of_example: Callable[[Any, Any], float], predictions: Answers, targets: Answers) -> Floats:
    """Scores of the first example of each group: the others are copies, made for training."""
    _, places = np.unique(groups_of(targets), return_index=True)
    found, wanted = values_of(predictions), values_of(targets)
    return np.array([of_example(found[place], wanted[place]) for place in places])


def first_of_group(of_example: Callable[[Any, Any], float], predictions: Answers, targets: Answers) -> float:
    """The mean of `of_example` over the first example of each group.

    >>> wanted = [{"group": [1, 1], "value": ["Anna"]}, {"group": [1, 1], "value": ["Anna"]}]
    >>> first_of_group(lambda found, answers: float(found in answers), [{"value": "Bob"}, {"value": "Anna"}], wanted)
    0.0
    """
    return float(_first_scores(of_example, predictions, targets).mean())


def first_of_group_units(of_example: Callable[[Any, Any], float], predictions: Answers, targets: Answers) -> Units:
    """Whole groups, by the score of their first example."""
    return units_of_mean(SCALE * _first_scores(of_example, predictions, targets))


# BLEU

_ORDERS = 4


@functools.cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # `force` only keeps it from warning of texts that look tokenised; `effective_order` from warning of sentences.
    return BLEU(tokenize="intl", smooth_method="exp", force=True, effective_order=True)


def _references(targets: Answers, predictions: Answers) -> list[tuple[str, ...]]:
    """The references of each prediction.

    Targets are texts, or lists of them: either as sacrebleu takes them (lists as long as the predictions, each with
    one reference for every prediction), or one list for each prediction.
    """
    if isinstance(targets[0], str):
        return [(target,) for target in targets]
    if all(len(target) == len(predictions) for target in targets):
        return list(zip(*targets, strict=True))
    return [tuple(target) for target in targets]


@functools.lru_cache(maxsize=1 << 14)
def _sentence_statistics(prediction: str, references: tuple[str, ...]) -> tuple[int, ...]:
    """Lengths of prediction and nearest reference, then right and all n-grams of 1 to 4 words."""
    score = _bleu().sentence_score(prediction, references)
    return (score.sys_len, score.ref_len, *score.counts, *score.totals)


def _bleu_statistics(predictions: Answers, targets: Answers) -> Floats:
    """Those of all sentences: [examples, 10]."""
    pairs = zip(predictions, _references(targets, predictions), strict=True)
    return np.array([_sentence_statistics(*pair) for pair in pairs], dtype=np.float64)


def bleu(predictions: Answers, targets: Answers) -> float:
    """Corpus BLEU by sacrebleu, `intl` tokenisation, exponential smoothing, case kept; 0 without a common word."""
    from sacrebleu.metrics.bleu import BLEU

    sums = [int(value) for value in _bleu_statistics(predictions, targets).sum(axis=0)]
    predicted, wanted, right, every = sums[0], sums[1], sums[2 : 2 + _ORDERS], sums[2 + _ORDERS :]
    return float(BLEU.compute_bleu(right, every, predicted, wanted, smooth_method="exp").score) / SCALE


def bleu_units(predictions: Answers, targets: Answers) -> Units:
    """Sentences, by their lengths and n-grams."""
    return units_from_sums(_bleu_statistics(predictions, targets), _bleu_of_sums)


def _bleu_of_sums(sums: Floats) -> Floats:
    """Brevity penalty times the geometric mean of precisions; the k-th order without a match counts 1 / 2^k matches."""
    predicted, wanted, right, every = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + _ORDERS], sums[:, 2 + _ORDERS :]
    missing = right == 0
    matches = np.where(missing, 0.5 ** np.cumsum(missing, axis=1), right)
    possible = (every > 0).all(axis=1) & ~missing.all(axis=1)
    logs = np.log(matches / np.where(every > 0, every, 1.0)).mean(axis=1)
    penalty = np.minimum(0.0, 1.0 - wanted / np.where(predicted > 0, predicted, 1.0))
    return np.where(possible, np.exp(logs + penalty), 0.0)


# ROUGE


@functools.cache
def _rouge(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    class RememberingTokenizer(DefaultTokenizer):  # type: ignore[misc]
        """The same answers cut once: baselines compare one constant with every target."""

        tokenize = functools.lru_cache(maxsize=1 << 14)(DefaultTokenizer.tokenize)

    return RougeScorer([kind], tokenizer=RememberingTokenizer(use_stemmer=False))


@functools.lru_cache(maxsize=1 << 14)
def rouge_f1(kind: str, predicted: str, wanted: str) -> float:
    """ROUGE F1 of one pair by Google's scorer, without stemming, as T5 reports it (`kind` is rouge1, rouge2, rougeL).

    For `rougeLsum` sentences have to be on lines of their own, so ` . ` becomes ` .` and a newline first.
    """
    if kind == "rougeLsum":
        predicted, wanted = predicted.replace(" . ", " .\n"), wanted.replace(" . ", " .\n")
    return float(_rouge(kind).score(wanted, predicted)[kind].fmeasure)


@dataclass(frozen=True)
class BootstrapMedian:
    """The median of a mean over draws of the examples, as the original reports ROUGE; near the plain `mean`.

    The draws are rouge_score's own, from a seed; numpy's global generator is left as it was. The original draws for
    several means one after the other, of which this is number `place` from 0, so its draws begin after theirs.
    """

    mean: MeanMetric
    place: int = 0
    seed: int = 0
    description: str = ""

    @property
    def name(self) -> str:
        """That of the mean."""
        return self.mean.name

    @property
    def higher_is_better(self) -> bool:
        """As with the mean."""
        return self.mean.higher_is_better

    def scores(self, predictions: Answers, targets: Answers) -> None:
        """None: the number is not the mean of what examples score."""

    def units(self, predictions: Answers, targets: Answers) -> Units:
        """Those of the mean."""
        return self.mean.units(predictions, targets)

    def __call__(self, predictions: Answers, targets: Answers) -> float:
        """The median of 1000 means."""
        from rouge_score.scoring import BootstrapAggregator, Score

        aggregator = BootstrapAggregator()
        for score in self.mean.scores(predictions, targets):
            aggregator.add_scores({place: Score(score, score, score) for place in range(self.place + 1)})
        before = np.random.get_state()  # noqa: NPY002 (the library draws from it)
        try:
            np.random.seed(self.seed)  # noqa: NPY002
            return float(aggregator.aggregate()[self.place].mid.fmeasure)
        finally:
            np.random.set_state(before)  # noqa: NPY002


# Words changed


@functools.lru_cache(maxsize=1 << 14)
def word_edits(predicted: str, wanted: str) -> float:
    """How many words must be put in, left out or exchanged to make one text the other, in lower case (Levenshtein).

    >>> word_edits("a c", "A b c"), word_edits("y z", "x")
    (1.0, 2.0)
    """
    found, words = (re.split(r"\W", text.lower()) for text in (predicted, wanted))
    row = list(range(len(words) + 1))
    for place, word in enumerate(found, start=1):
        before, row[0] = row[0], place
        for column, other in enumerate(words, start=1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (word != other))
    return float(row[-1])


def all_word_edits(combine: Callable[[list[float]], float], predictions: Answers, targets: Answers) -> float:
    """One number for the edits of all examples: their median, sum, smallest or largest."""
    return float(combine([word_edits(*pair) for pair in zip(predictions, targets, strict=True)]))


# Names of programs


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
