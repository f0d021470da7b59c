"""What costs nothing to reach: the trivial answers that a result has to beat before it means anything.

Three kinds, each scored like a model's answers: the most frequent training output, the best constant among the training
outputs that occur more than once, and the task's own copy rules (the first words of the input ...), which fall back to
the most frequent output where there is nothing to copy. The best constant and the best rule are picked on the very
split that is judged, which favours the baseline and never the model. A task that was never trained on has no training
outputs, so it has copy rules only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

CONSTANTS = 100
"""How many of the most frequent training outputs are tried as a constant answer."""
CHARACTERS_JUDGED = 10_000_000
"""Fewer constants are tried where the targets' characters, once for each constant, would be more: half a minute for the
slowest metrics."""

_SHOWN_CHARACTERS = 60


class _Metric(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...

    def __call__(self, predictions: Sequence[Any], targets: Sequence[Any]) -> float: ...


class _Task(Protocol):
    """What is needed of `mixtura.platform.data.task.Task`."""

    @property
    def metrics(self) -> Sequence[_Metric]: ...

    @property
    def copy_rules(self) -> Mapping[str, Callable[[Mapping[str, Any]], str]]: ...

    @property
    def postprocess(self) -> Callable[[str, Mapping[str, Any]], Any]: ...

    def answer(self, example: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Baseline:
    """A trivial rule and what it reaches."""

    rule: str
    value: float


def trivial_baselines(
    task: _Task, training_targets: Iterable[str] | Mapping[str, int], examples: Sequence[Mapping[str, Any]]
) -> dict[str, Baseline]:
    """The best trivial rule for each of the task's metrics, by the metric's name.

    A metric that no rule gives a value (no constant correlates with anything) is left out, and so is every metric of a
    task without training outputs and copy rules.

    `examples` are the fields of the judged split; `training_targets` are the outputs that training saw, or how often
    it saw each.
    """
    targets = [task.answer(example) for example in examples]
    best: dict[str, Baseline] = {}
    for rule, texts in _rules(task, training_targets, examples):
        answers = [task.postprocess(text, example) for text, example in zip(texts, examples, strict=True)]
        for metric in task.metrics:
            found = Baseline(rule, metric(answers, targets))
            if math.isnan(found.value):
                continue
            if metric.name not in best or _beats(found, best[metric.name], metric):
                best[metric.name] = found
    return best


def _beats(found: Baseline, best: Baseline, metric: _Metric) -> bool:
    return found.value > best.value if metric.higher_is_better else found.value < best.value


def _rules(
    task: _Task, training_targets: Iterable[str] | Mapping[str, int], examples: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, list[str]]]:
    """Every rule's name and its answers."""
    constants = _constants(training_targets, sum(len(example["targets"]) for example in examples))
    for rank, text in enumerate(constants):
        shown = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
        yield f"{'always' if rank else 'most frequent:'} {shown!r}", [text] * len(examples)
    instead = constants[0] if constants else ""
    for name, rule in task.copy_rules.items():
        yield f"copy: {name}", [rule(example) or instead for example in examples]


def _constants(training_targets: Iterable[str] | Mapping[str, int], characters: int) -> list[str]:
    """The most frequent output, then others that repeat. Equally frequent ones come in alphabetical order."""
    counts = Counter(training_targets)
    frequent = sorted(counts, key=lambda text: (-counts[text], text))
    affordable = max(1, min(CONSTANTS, CHARACTERS_JUDGED // max(1, characters)))
    return [text for rank, text in enumerate(frequent[:affordable]) if rank == 0 or counts[text] > 1]
