"""Numbers for answers that are classes or numbers: F1, Matthews' and other correlations, ranked answers.

The number itself comes from scikit-learn and scipy; beside it stands the same number from sums, for intervals.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtura.platform.errors import DataError
from mixtura.platform.evaluation.metrics_face import (
    SCALE,
    Answers,
    Floats,
    Units,
    groups_of,
    units_from_sums,
    units_of_mean,
    values_of,
)

_LARGEST_TABLE = 5_000_000


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    """`above / below`, and `otherwise` where `below` is 0."""
    return np.asarray(np.divide(above, below, out=np.full(below.shape, otherwise), where=below != 0))


# F1


def _binary(predictions: Answers, targets: Answers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Classes 0 and 1; a prediction that is neither becomes the opposite of its target, so that it is wrong."""
    strange = next((target for target in targets if target not in (0, 1)), None)
    if strange is not None:
        raise DataError(
            f"f1 needs the classes 0 and 1 as targets: got {strange!r}. "
            "For more classes, or classes given as text, use macro_f1"
        )
    wanted = [int(target) for target in targets]
    found = [int(answer) if answer in (0, 1) else 1 - right for answer, right in zip(predictions, wanted, strict=True)]
    return np.array(found), np.array(wanted)


def binary_f1(predictions: Answers, targets: Answers) -> float:
    """F1 of class 1; an invalid prediction counts as wrong, and without any 1 on either side it is 0.

    >>> binary_f1([7, 1], [0, 1])
    0.6666666666666666
    """
    from sklearn.metrics import f1_score

    found, wanted = _binary(predictions, targets)
    return float(f1_score(wanted, found, zero_division=0.0))


def _f1_statistics(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> Floats:
    return np.stack([found & wanted, found.astype(np.int64) + wanted], axis=-1).astype(np.float64)


def _f1_value(sums: Floats) -> Floats:
    return _ratio(2 * sums[..., 0], sums[..., 1], 0.0)


def binary_f1_units(predictions: Answers, targets: Answers) -> Units:
    """Single examples, by how many 1 are right and how many there are on both sides."""
    return units_from_sums(_f1_statistics(*_binary(predictions, targets)), _f1_value)


def grouped_f1(predictions: Answers, targets: Answers) -> float:
    """F1 over all answers, whatever their group."""
    return binary_f1(values_of(predictions), values_of(targets))


def grouped_f1_units(predictions: Answers, targets: Answers) -> Units:
    """Whole groups: the answers to one question are drawn together."""
    groups = groups_of(targets)
    single = _f1_statistics(*_binary(values_of(predictions), values_of(targets)))
    statistics = np.zeros((groups.max() + 1, single.shape[1]))
    np.add.at(statistics, groups, single)
    return units_from_sums(statistics, _f1_value)


def macro_f1(predictions: Answers, targets: Answers, classes: Sequence[Any] | None = None) -> float:
    """The plain mean of the F1 of each class: those given, or those among the targets. An absent class counts 0.

    >>> macro_f1([0, 0, 2, 1], [0, 1, 2, 1], range(3))
    0.7777777777777777
    """
    from sklearn.metrics import f1_score

    labels, found, wanted = _numbered(predictions, targets, classes)
    return float(f1_score(wanted, found, labels=range(labels), average="macro", zero_division=0.0))


def macro_f1_units(predictions: Answers, targets: Answers, classes: Sequence[Any] | None = None) -> Units | None:
    """Single examples, by class; None where a table of examples and classes would be too large."""
    labels, found, wanted = _numbered(predictions, targets, classes)
    if labels * len(wanted) > _LARGEST_TABLE:
        return None
    each = np.arange(labels)
    single = _f1_statistics(found[:, None] == each, wanted[:, None] == each)
    return units_from_sums(
        single.reshape(len(wanted), -1), lambda sums: _f1_value(sums.reshape(-1, labels, 2)).mean(axis=-1)
    )


def _numbered(
    predictions: Answers, targets: Answers, classes: Sequence[Any] | None
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many classes count, and both sides as their numbers; what is no such class is -1."""
    counted = dict.fromkeys(targets if classes is None else classes)
    numbers = {label: number for number, label in enumerate(counted)}
    found, wanted = ([numbers.get(answer, -1) for answer in side] for side in (predictions, targets))
    return len(numbers), np.array(found), np.array(wanted)


# Matthews


def matthews(predictions: Answers, targets: Answers) -> float:
    """Matthews' correlation coefficient; an answer that is no class is a class of its own.

    >>> matthews([1, 0, 1, 0], [1, 0, 1, 0]), matthews([1, 1, 1], [1, 1, 0])
    (1.0, 0.0)
    """
    from sklearn.metrics import matthews_corrcoef

    labels, found, wanted = _numbered(predictions, targets, [*predictions, *targets])
    return 0.0 if labels == 1 else float(matthews_corrcoef(wanted, found))


def matthews_units(predictions: Answers, targets: Answers) -> Units | None:
    """Single examples: whether right, and one column a class for each side (Gorodkin 2004); None as above."""
    labels, found, wanted = _numbered(predictions, targets, [*predictions, *targets])
    if labels * len(wanted) > _LARGEST_TABLE:
        return None
    each = np.arange(labels)
    columns = [(found == wanted)[:, None], found[:, None] == each, wanted[:, None] == each]

    def value(sums: Floats) -> Floats:
        right, found, wanted = sums[:, 0], sums[:, 1 : labels + 1], sums[:, labels + 1 :]
        total = wanted.sum(axis=-1)
        together = right * total - (found * wanted).sum(axis=-1)
        spread = (total**2 - (found**2).sum(axis=-1)) * (total**2 - (wanted**2).sum(axis=-1))
        return _ratio(together, np.sqrt(spread), 0.0)

    return units_from_sums(np.concatenate(columns, axis=1).astype(np.float64), value)


# Correlations


def _numbers(predictions: Answers, targets: Answers) -> tuple[Floats, Floats]:
    try:
        return np.asarray(predictions, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a correlation needs numbers: got predictions like {predictions[0]!r} and targets like {targets[0]!r}. "
            "Let the task's postprocess turn text into numbers"
        ) from error


def _correlation(which: str, predictions: Answers, targets: Answers) -> float:
    from scipy import stats

    found, wanted = _numbers(predictions, targets)
    if len(wanted) < 2:
        return float("nan")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of sides that do not vary: NaN says it
        return float(getattr(stats, which)(wanted, found).statistic)


def pearson(predictions: Answers, targets: Answers) -> float:
    """Pearson's correlation; NaN where a side does not vary or has an entry that is no finite number."""
    return _correlation("pearsonr", predictions, targets)


def spearman(predictions: Answers, targets: Answers) -> float:
    """Pearson's correlation of ranks, ties sharing the mean of their ranks; NaN where a side does not vary.

    >>> round(spearman([4.0, -1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]), 9)
    -0.2
    """
    return _correlation("spearmanr", predictions, targets)


def _correlation_of_sums(sums: Floats) -> Floats:
    """From the sums of 1, x, y, x², y² and x · y."""
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    x_spread, y_spread = count * xx - x * x, count * yy - y * y
    # A side that does not vary leaves a rounding error of the size below, and no correlation.
    varies = (x_spread > 1e-12 * count * xx) & (y_spread > 1e-12 * count * yy)
    spread = np.sqrt(np.where(varies, x_spread * y_spread, 0.0))
    return np.asarray(np.clip(_ratio(count * xy - x * y, spread, np.nan), -1.0, 1.0))


def _standard(values: Floats) -> Floats:
    """Mean 0 and largest size 1, so that squares neither cancel nor overflow."""
    centred = values - values.mean()
    size = np.abs(centred).max()
    return np.asarray(centred / size) if size > 0 else centred


def pearson_units(predictions: Answers, targets: Answers) -> Units:
    """Single examples, by the sums of both sides, their squares and product."""
    found, wanted = _numbers(predictions, targets)
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return _undefined(len(wanted))
    x, y = _standard(found), _standard(wanted)
    return units_from_sums(np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1), _correlation_of_sums)


def spearman_units(predictions: Answers, targets: Answers) -> Units:
    """Single examples, ranked anew in every draw."""
    sides = _numbers(predictions, targets)
    if any(np.isnan(side).any() for side in sides):
        return _undefined(len(targets))
    levels = [np.unique(side, return_inverse=True)[1].astype(np.int64) for side in sides]

    def values(drawn: Floats) -> Floats:
        x, y = (_ranks(drawn, level) for level in levels)
        sums = [np.einsum("du,du->d", drawn, column) for column in (x, y, x * x, y * y, x * y)]
        return SCALE * _correlation_of_sums(np.stack([drawn.sum(axis=1), *sums], axis=-1))

    return Units(len(targets), values)


def _ranks(drawn: Floats, level: npt.NDArray[np.int64]) -> Floats:
    """Each unit's rank in each draw, from -1 to 1 about the middle: [draws, units]. `level` orders the units."""
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    many = np.add.reduceat(drawn[:, order], starts, axis=1)
    middle = np.cumsum(many, axis=1) - many / 2
    total = drawn.sum(axis=1, keepdims=True)
    return np.asarray((2 * middle / total - 1)[:, level])


def _undefined(count: int) -> Units:
    return Units(count, lambda drawn: np.full(len(drawn), np.nan))


# Groups and ranked answers


def all_match(predictions: Answers, targets: Answers) -> float:
    """1 if every answer is right; no answers are all right."""
    return float(np.array_equal(np.asarray(targets, dtype=object), np.asarray(predictions, dtype=object)))


def all_match_units(predictions: Answers, targets: Answers) -> Units:
    """Single examples: a draw is all right while it has no wrong one."""
    pairs = zip(predictions, targets, strict=True)
    wrong = np.array([not np.array_equal(found, wanted) for found, wanted in pairs], dtype=np.float64)
    return Units(len(wrong), lambda drawn: SCALE * (drawn @ wrong == 0))


def _groups_all_right(predictions: Answers, targets: Answers) -> Floats:
    groups = groups_of(targets)
    right = np.ones(groups.max() + 1)
    for group, found, wanted in zip(groups, values_of(predictions), values_of(targets), strict=True):
        right[group] *= found == wanted
    return right


def group_exact_match(predictions: Answers, targets: Answers) -> float:
    """The share of groups with all answers right.

    >>> wanted = [{"group": 1, "value": 1}, {"group": 1, "value": 0}, {"group": 2, "value": 1}]
    >>> group_exact_match([{"value": 1}, {"value": 0}, {"value": 0}], wanted)
    0.5
    """
    return float(_groups_all_right(predictions, targets).mean())


def group_exact_match_units(predictions: Answers, targets: Answers) -> Units:
    """Whole groups."""
    return units_of_mean(SCALE * _groups_all_right(predictions, targets))


def rank_classification(
    scores: Sequence[float],
    targets: Answers,
    *,
    num_classes: int | None = None,
    normalize_by_target_length: bool = False,
) -> dict[str, float]:
    """Numbers where the answer is the candidate that a model finds most likely.

    A target is ((example, candidate), is it right, the example's weight, its tokens); a score is the candidate's log
    likelihood. Without `num_classes` examples may have any number of candidates and only `accuracy` is told; with two
    candidates there are `f1`, `auc-roc` and `auc-pr` of the second, with more the mean F1 of all.
    """
    if any(len(target) != 4 or np.size(target[0]) != 2 for target in targets):
        raise DataError("rank classification takes targets ((example, candidate), right, weight, length)")
    rows = sorted(zip(targets, scores, strict=True), key=lambda row: tuple(row[0][0]))
    likely = [score / target[3] if normalize_by_target_length else score for target, score in rows]
    candidates = [
        (target[0][0], float(target[1]), float(target[2]), score)
        for (target, _), score in zip(rows, likely, strict=True)
    ]
    examples = [list(rows) for _, rows in itertools.groupby(candidates, key=lambda row: row[0])]
    right = [[row[1] for row in rows] for rows in examples]
    weights = np.array([rows[0][2] for rows in examples])
    chosen = np.array([int(np.argmax(np.array([row[3] for row in rows], dtype=np.float32))) for rows in examples])
    hits = np.array([labels[choice] for labels, choice in zip(right, chosen, strict=True)])
    accuracy = {"accuracy": SCALE * float(np.average(hits, weights=weights))}
    if num_classes is None or any(sum(labels) > 1 for labels in right):
        return accuracy
    if any(len(labels) != num_classes for labels in right):
        raise DataError(f"rank classification was told of {num_classes} candidates, but an example has another number")
    likelihoods = np.array([[row[3] for row in rows] for rows in examples], dtype=np.float32)
    return accuracy | _of_ranked(np.array(right), chosen, likelihoods, weights)


def _of_ranked(
    right: Floats, chosen: npt.NDArray[np.int64], likelihoods: npt.NDArray[np.float32], weights: Floats
) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    classes = right.shape[1]
    if classes > 2:
        chosen_columns = np.eye(classes)[chosen]
        mean = f1_score(right, chosen_columns, average="macro", sample_weight=weights, zero_division=0.0)
        return {f"mean_{classes}class_f1": SCALE * float(mean)}
    chances = np.exp(likelihoods - likelihoods.max(axis=1, keepdims=True))
    second = (chances / chances.sum(axis=1, keepdims=True))[:, 1]
    f1 = f1_score(right.argmax(axis=1), chosen, sample_weight=weights, zero_division=0.0)
    return {
        "f1": SCALE * float(f1),
        "auc-roc": SCALE * float(roc_auc_score(right[:, 1], second, sample_weight=weights)),
        "auc-pr": SCALE * float(average_precision_score(right[:, 1], second, sample_weight=weights)),
    }
