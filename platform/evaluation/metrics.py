"""Numbers for answers. Every metric is on T5's scale from 0 to 100 and takes all predictions and targets of a split.

A metric that is a mean over examples can say what each example scored (`scores`); others (correlations, F1 of a class,
BLEU) are computed from all answers at once. Either way `units` says how the number follows from which examples were
drawn, which makes its interval cheap. Predictions and targets are what a task's postprocess and `answer` give:

    classes      0, 1, 2 ... or any values; -1 for an answer that is no class
    numbers      floats; NaN and infinity are allowed and make a correlation NaN
    texts        the text; for BLEU a list of references may stand in place of one
    questions    the text, and a list of accepted answers as target
    groups       {"value": ...}, and {"group": ..., "value": ...} as target: all answers to one question

Two metrics may share a `name`, as F1 of classes and F1 of answers do: it is what a task's table shows. `METRICS` has
them by names of their own.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from mixtura.platform.evaluation import metrics_classes as classes
from mixtura.platform.evaluation import metrics_text as text
from mixtura.platform.evaluation.metrics_face import (
    SCALE,
    Answers,
    CorpusMetric,
    MeanMetric,
    Units,
)
from mixtura.platform.evaluation.metrics_text import (
    BootstrapMedian,
    bag_f1,
    name_part_f1,
    name_parts,
    rouge_f1,
)

__all__ = [
    "METRICS",
    "SCALE",
    "BootstrapMedian",
    "CorpusMetric",
    "MeanMetric",
    "Units",
    "accuracy",
    "all_match",
    "bag_f1",
    "binary_f1",
    "bleu",
    "bootstrap_rouge1",
    "bootstrap_rouge2",
    "bootstrap_rouge_lsum",
    "cb_f1",
    "exact_match",
    "macro_f1",
    "matthews",
    "max_edits",
    "mean_edits",
    "median_edits",
    "min_edits",
    "multirc_exact_match",
    "multirc_f1",
    "name_f1",
    "name_part_f1",
    "name_parts",
    "pearson",
    "ranked",
    "record_em",
    "record_f1",
    "rouge1",
    "rouge2",
    "rouge_f1",
    "rouge_l",
    "rouge_lsum",
    "sequence_accuracy",
    "span_squad_em",
    "span_squad_f1",
    "spearman",
    "squad_em",
    "squad_f1",
    "sum_edits",
    "trivia_qa_em",
    "trivia_qa_f1",
]


def _equal(prediction: Any, target: Any) -> float:
    return float(prediction == target)


# Classes

accuracy = MeanMetric("accuracy", _equal, description="Share of answers equal to the target.")
sequence_accuracy = MeanMetric("sequence_accuracy", _equal, description="Share of texts equal to the target.")
exact_match = MeanMetric("exact_match", _equal, description="Share of texts equal to the target, letter for letter.")
binary_f1 = CorpusMetric(
    "f1",
    classes.binary_f1,
    units_of=classes.binary_f1_units,
    description="F1 of class 1 of two; an answer that is neither class is wrong.",
)
macro_f1 = CorpusMetric(
    "macro_f1",
    classes.macro_f1,
    units_of=classes.macro_f1_units,
    description="Mean of the F1 of every class among the targets.",
)
cb_f1 = CorpusMetric(
    "mean_3class_f1",
    functools.partial(classes.macro_f1, classes=range(3)),
    units_of=functools.partial(classes.macro_f1_units, classes=range(3)),
    description="Mean of the F1 of classes 0, 1 and 2; one that is on neither side counts 0.",
)
matthews = CorpusMetric(
    "matthews_corrcoef",
    classes.matthews,
    units_of=classes.matthews_units,
    description="Matthews' correlation of classes; an answer that is no class is one of its own.",
)

# Numbers

pearson = CorpusMetric(
    "pearson_corrcoef",
    classes.pearson,
    units_of=classes.pearson_units,
    description="Pearson's correlation of numbers; NaN where a side does not vary.",
)
spearman = CorpusMetric(
    "spearman_corrcoef",
    classes.spearman,
    units_of=classes.spearman_units,
    description="Spearman's correlation of ranks; NaN where a side does not vary.",
)

# Questions and groups

squad_em = MeanMetric(
    "em",
    functools.partial(text.answer_em, text.squad_text),
    description="Share of answers equal to an accepted one, but for case, punctuation and articles (SQuAD).",
)
squad_f1 = MeanMetric(
    "f1",
    functools.partial(text.answer_f1, text.squad_text),
    description="F1 of words with the best accepted answer, normalised as in squad_em.",
)
trivia_qa_em = MeanMetric(
    "em",
    functools.partial(text.answer_em, text.trivia_text),
    description="As squad_em, but punctuation parts words (TriviaQA).",
)
trivia_qa_f1 = MeanMetric(
    "f1",
    functools.partial(text.answer_f1, text.trivia_text),
    description="As squad_f1, but punctuation parts words (TriviaQA).",
)
span_squad_em = MeanMetric(
    "em", text.span_em, description="squad_em of the words that 'start: 3 end: 5' points to in the target's context."
)
span_squad_f1 = MeanMetric(
    "f1", text.span_f1, description="squad_f1 of the words that 'start: 3 end: 5' points to in the target's context."
)


def _once_a_group(metric: MeanMetric, description: str) -> CorpusMetric:
    """A mean over groups, of which only the first example counts."""
    return CorpusMetric(
        metric.name,
        functools.partial(text.first_of_group, metric.of_example),
        units_of=functools.partial(text.first_of_group_units, metric.of_example),
        description=description,
    )


record_em = _once_a_group(squad_em, "squad_em, counting the first example of each group only (ReCoRD).")
record_f1 = _once_a_group(squad_f1, "squad_f1, counting the first example of each group only (ReCoRD).")
multirc_f1 = CorpusMetric(
    "f1",
    classes.grouped_f1,
    units_of=classes.grouped_f1_units,
    description="F1 of class 1 over the answers of all groups (MultiRC).",
)
multirc_exact_match = CorpusMetric(
    "exact_match",
    classes.group_exact_match,
    units_of=classes.group_exact_match_units,
    description="Share of groups with every answer right (MultiRC).",
)
all_match = CorpusMetric(
    "exact_match",
    classes.all_match,
    units_of=classes.all_match_units,
    of_nothing=SCALE,
    description="100 if every answer of the split is right, else 0.",
)

# Generated text

bleu = CorpusMetric(
    "bleu", text.bleu, units_of=text.bleu_units, description="Corpus BLEU by sacrebleu, tokenised as 'intl'."
)


def _rouge(kind: str, what: str) -> MeanMetric:
    return MeanMetric(kind, functools.partial(rouge_f1, kind), description=f"ROUGE F1 of {what}, mean over examples.")


rouge1 = _rouge("rouge1", "single words")
rouge2 = _rouge("rouge2", "pairs of words")
rouge_l = _rouge("rougeL", "the longest common subsequence")
rouge_lsum = _rouge("rougeLsum", "the longest common subsequences of sentences")


bootstrap_rouge1, bootstrap_rouge2, bootstrap_rouge_lsum = (
    BootstrapMedian(mean, place, description=f"{mean.name} as the original reports it: the median of 1000 draws.")
    for place, mean in enumerate((rouge1, rouge2, rouge_lsum))
)

mean_edits = MeanMetric(
    "mean_edit", text.word_edits, higher_is_better=False, scale=1.0, description="Words to change, mean over examples."
)


def _edits(name: str, combine: Callable[[list[float]], float], what: str) -> CorpusMetric:
    return CorpusMetric(
        name,
        functools.partial(text.all_word_edits, combine),
        higher_is_better=False,
        scale=1.0,
        description=f"Words to change, {what} examples.",
    )


median_edits = _edits("median_edit", statistics.median, "median over")
min_edits = _edits("min_edit", min, "least of all")
max_edits = _edits("max_edit", max, "most of all")
sum_edits = _edits("sum_edit", sum, "sum over")

name_f1 = MeanMetric("name_f1", name_part_f1, description="F1 of the words in programmers' names.")


def ranked(what: str, num_classes: int | None = None, *, normalize_by_target_length: bool = False) -> CorpusMetric:
    """One number of `rank_classification`: `accuracy`; `f1`, `auc-roc` or `auc-pr` of two candidates, and so on.

    Predictions are log likelihoods of candidates, so a task that decodes text cannot use it.

    >>> ranked("accuracy")([-2.0, -1.0], [((0, 0), False, 1.0, 3), ((0, 1), True, 1.0, 3)])
    100.0
    """

    def of_all(predictions: Answers, targets: Answers) -> float:
        found = classes.rank_classification(
            predictions, targets, num_classes=num_classes, normalize_by_target_length=normalize_by_target_length
        )
        return found.get(what, float("nan"))

    return CorpusMetric(what, of_all, scale=1.0, description=f"{what} of the candidate that the model finds likeliest.")


METRICS: Mapping[str, MeanMetric | CorpusMetric | BootstrapMedian] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "sequence_accuracy": sequence_accuracy,
    "f1": binary_f1,
    "macro_f1": macro_f1,
    "mean_3class_f1": cb_f1,
    "matthews_corrcoef": matthews,
    "pearson_corrcoef": pearson,
    "spearman_corrcoef": spearman,
    "squad_em": squad_em,
    "squad_f1": squad_f1,
    "span_squad_em": span_squad_em,
    "span_squad_f1": span_squad_f1,
    "trivia_qa_em": trivia_qa_em,
    "trivia_qa_f1": trivia_qa_f1,
    "record_em": record_em,
    "record_f1": record_f1,
    "multirc_f1": multirc_f1,
    "multirc_exact_match": multirc_exact_match,
    "all_match": all_match,
    "bleu": bleu,
    "rouge1": rouge1,
    "rouge2": rouge2,
    "rougeL": rouge_l,
    "rougeLsum": rouge_lsum,
    "bootstrap_rouge1": bootstrap_rouge1,
    "bootstrap_rouge2": bootstrap_rouge2,
    "bootstrap_rougeLsum": bootstrap_rouge_lsum,
    "mean_edit": mean_edits,
    "median_edit": median_edits,
    "min_edit": min_edits,
    "max_edit": max_edits,
    "sum_edit": sum_edits,
    "name_f1": name_f1,
}
"""Every metric that a task may name, by a name that no other has."""
