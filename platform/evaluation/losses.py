"""Losses as metrics: from log-probabilities of right answers, or of held-out text, to numbers with intervals.

An example comes as two numbers: the nats that a model needs for its target (minus the log-probability, end included),
and how many tokens or bytes that target has. The number of all is a ratio of sums, as in training, never a mean of
means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mixtura.platform.evaluation.metrics_face import CorpusMetric, Units, units_from_sums


def _of_sums(name: str, of_ratio: Callable[[Any], Any], description: str) -> CorpusMetric:
    def of_all(nats: Sequence[float], counts: Sequence[int]) -> float:
        return float(of_ratio(sum(nats) / max(1, sum(counts))))

    def units(nats: Sequence[float], counts: Sequence[int]) -> Units:
        both = np.array([nats, counts], dtype=np.float64).T
        return units_from_sums(both, lambda sums: of_ratio(sums[:, 0] / np.maximum(1.0, sums[:, 1])), scale=1.0)

    return CorpusMetric(name, of_all, higher_is_better=False, description=description, scale=1.0, units_of=units)


loss = _of_sums("loss", lambda ratio: ratio, "cross entropy, nats per target token")
"""
>>> round(loss([1.0, 3.0], [1, 3]), 2), round(loss([1.0, 5.0], [1, 3]), 2)
(1.0, 1.5)
"""

perplexity = _of_sums("perplexity", np.exp, "e to the loss")
"""
>>> round(perplexity([math.log(8.0) * 2], [2]), 6)
8.0
"""

bits_per_byte = _of_sums("bits_per_byte", lambda ratio: ratio / math.log(2.0), "bits for each UTF-8 byte of the target")
"""Comparable between vocabularies.

>>> round(bits_per_byte([math.log(2.0) * 6], [12]), 6)
0.5
"""
