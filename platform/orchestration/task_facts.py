"""What there is to say about a task's data: sources, sizes, examples, labels, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixtura.platform.data.task import Example, RejectedRow, Task
from mixtura.platform.data.vocabulary import Vocabulary

SHOWN_EXAMPLES = 3
_MOST_LABELS = 30
_BINS = 8
_ROWS_AT_ONCE = 1000

Count = Callable[[Sequence[str]], list[int]]


@dataclass
class _Split:
    """What was seen of one split."""

    rows: int = 0
    whole: bool = True
    examples: list[dict[str, Any]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)


def task_facts(task: Task, vocabulary: Path | None, limit: int) -> dict[str, Any]:
    """Everything that `mixtura tasks show` prints, as plain values.

    Lengths count the EOS that training appends where a vocabulary is given, and are words otherwise.
    """
    task.check_source()
    unit, count = ("tokens", _token_counter(vocabulary)) if vocabulary else ("words", _count_words)
    splits = {split: _read(task, split, limit) for split in task.splits}
    first = splits.get("train") or next(iter(splits.values()), _Split())
    return {
        "task": task.name,
        "description": task.description,
        "kind": task.kind,
        "benchmark": task.benchmark,
        "trained": task.trained,
        "evaluated_by": list(task.evaluated_by),
        "metrics": [metric.name for metric in task.metrics],
        "declared size": task.rate_size,
        "options": {
            name: {
                "description": option.description,
                "values": list(option.values),
                "chosen": task.chosen.get(name, option.default),
            }
            for name, option in task.options.items()
        },
        "splits": {split: _split_facts(task, split, seen) for split, seen in splits.items()},
        "examples": first.examples[:SHOWN_EXAMPLES],
        "labels": _labels(first.examples),
        "unit": unit,
        "lengths": [
            _lengths(name, [example[name] for example in first.examples], place, task, count)
            for place, name in enumerate(_texts(task))
            if first.examples
        ],
    }


def _texts(task: Task) -> tuple[str, ...]:
    return ("text",) if task.kind == "unsupervised" else ("inputs", "targets")


def _read(task: Task, split: str, limit: int) -> _Split:
    seen = _Split()
    for item in _items(task, split):
        if seen.rows >= limit and item.row + 1 > seen.rows:
            seen.whole = False
            break
        if isinstance(item, RejectedRow):
            seen.rejected[item.reason] += 1
        else:
            seen.examples.append(item.fields)
        seen.rows = max(seen.rows, item.row + 1)
    return seen


def _items(task: Task, split: str) -> Iterator[Example | RejectedRow]:
    """All items of a split, their rows numbered through its shards."""
    start = 0
    for shard in task.shards(split):
        last = -1
        for item in task.examples(shard):
            last = max(last, item.row)
            yield _moved(item, start)
        start += last + 1


def _moved(item: Example | RejectedRow, by: int) -> Example | RejectedRow:
    return replace(item, row=item.row + by) if by else item


def _split_facts(task: Task, split: str, seen: _Split) -> dict[str, Any]:
    return {
        "from": [shard.name for shard in task.shards(split)],
        "rows": seen.rows,
        "whole": seen.whole,
        "examples": len(seen.examples),
        "left out": dict(seen.rejected),
        "answers known": split in task.evaluated or (split == "train" and task.trained),
    }


def _labels(examples: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    counts = Counter(example.get("targets") for example in examples)
    if not counts or None in counts or len(counts) > _MOST_LABELS:
        return None
    return {str(label): number for label, number in counts.most_common()}


def _lengths(name: str, texts: Sequence[str], place: int, task: Task, count: Count) -> dict[str, Any]:
    """Quantiles, a histogram over equal steps of the logarithm, and the share that the original's limit would cut."""
    parts = (texts[at : at + _ROWS_AT_ONCE] for at in range(0, len(texts), _ROWS_AT_ONCE))
    lengths = np.array([length for part in parts for length in count(part)])
    edges = np.unique(np.geomspace(max(1, lengths.min()), lengths.max() + 1, _BINS + 1).round().astype(int))
    numbers, _ = np.histogram(lengths, edges)
    limit = task.lengths[place] if task.lengths else None
    return {
        "field": name,
        "median": int(np.median(lengths)),
        "longest": int(lengths.max()),
        "histogram": [
            {"from": int(low), "to": int(high) - 1, "examples": int(number)}
            for low, high, number in zip(edges, edges[1:], numbers, strict=False)
        ],
        "limit": limit,
        "cut": None if limit is None else float((lengths > limit).mean()),
    }


def _token_counter(path: Path) -> Count:
    vocabulary = Vocabulary(path)
    return lambda texts: (vocabulary.encode_batch(texts).lengths + 1).tolist()


def _count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]
