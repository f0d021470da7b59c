"""What is evaluated: the examples of a split, pieces of held-out text, and what training saw of a task."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtura.platform.data.answer_window import answer_window
from mixtura.platform.data.cache import TokenCache, open_cache
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.ragged import Int64, offsets_of
from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.data.task_reader import Copy, TaskReader
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.evaluation.evaluator import EvaluationExample, Ids, TextExample
from mixtura.platform.random_bits import key, order

_FREQUENT_TARGETS = 1000


def load_examples(
    cache: TokenCache, inputs_length: int, targets_length: int, limit: int | None, *, around_answer: bool = False
) -> list[EvaluationExample]:
    """The examples of a split, trimmed as in training; with a limit, a fixed choice of them by chance."""
    examples: list[EvaluationExample] = []
    for shard in range(cache.count):
        table = cache.table(shard)
        columns = (table.column(name) for name in ("inputs", "targets", "fields"))
        for ids, targets, fields in zip(*columns, strict=True):
            tokens, right = ids.values.to_numpy(), targets.values.to_numpy()
            if around_answer:
                window = answer_window(tokens, right, inputs_length - 1, key("window", len(examples)))
                tokens = tokens if window is None else np.asarray(window)
            sides = with_eos(tokens, inputs_length), with_eos(right, targets_length)
            examples.append(EvaluationExample(*sides, json.loads(fields.as_py())))
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.sort(order(key("evaluation examples", cache.name, cache.split), len(examples))[:limit])
    return [examples[place] for place in chosen]


def with_eos(tokens: npt.NDArray[Any], length: int) -> Ids:
    """At most so many ids, the last of which is EOS: as in training."""
    return np.append(tokens[: length - 1], EOS_ID).astype(np.int32)


def text_examples(spec: StreamSpec, vocabulary: Vocabulary, copies: Copies | None = None) -> list[TextExample]:
    """The first pieces of a stream's only task, trimmed as in training."""
    (task,) = spec.tasks
    reader = TaskReader(spec, task, copies)
    drawn = reader.draw(0, reader.order.size)
    wanted = [_Side.of(lengths, most) for lengths, most in zip(drawn.lengths, spec.limits_of(task), strict=True)]
    drawn.copy(wanted[0].copy, wanted[1].copy)
    sizes = vocabulary.piece_bytes
    pairs = zip(*(side.rows() for side in wanted), strict=True)
    return [TextExample(inputs, targets, int(sizes[targets].sum())) for inputs, targets in pairs]


@dataclass(frozen=True)
class _Side:
    """The inputs or the targets of examples, one after the other; with EOS, where there is room for any."""

    copy: Copy
    offsets: Int64

    @classmethod
    def of(cls, lengths: Int64, most: int) -> _Side:
        """Room for examples of these lengths without EOS, of which at most `most` tokens with EOS are wanted."""
        with_eos = np.minimum(lengths + 1, most)
        offsets = offsets_of(with_eos)
        values = np.full(int(offsets[-1]), EOS_ID, dtype=np.int32)
        return cls(Copy(values, offsets[:-1], np.maximum(with_eos - 1, 0)), offsets)

    def rows(self) -> Iterator[Ids]:
        """The ids of each example."""
        for start, end in itertools.pairwise(self.offsets.tolist()):
            yield self.copy.out[start:end]


def training_targets(place: str, vocabulary: Vocabulary, copies: Copies | None = None) -> Counter[str]:
    """The most frequent outputs that training saw, as text, with how often. Only those are turned into text."""
    cache = open_cache(place, "train", copies)
    counts: Counter[bytes] = Counter()
    for shard in range(cache.count):
        for ids in cache.table(shard).column("targets"):
            counts[ids.values.to_numpy().tobytes()] += 1
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_FREQUENT_TARGETS]
    texts: Counter[str] = Counter()
    for ids, count in frequent:
        texts[vocabulary.decode(np.frombuffer(ids, np.int32))] += count
    return texts
