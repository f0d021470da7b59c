"""How batches are counted, the same for every side: in the consumer, with the clock running.

Every side of `benchmarks/stream.py` is a process of its own in an environment of its own, so nothing but NumPy is used
here. A side makes an iterator of batches with SeqIO's feature names, and prints what `rate` says of it as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def rate(batches: Iterator[Mapping[str, Any]], seconds: float, warmup: int) -> dict[str, float]:
    """What comes out of `batches` for so many seconds, after `warmup` batches that are not counted.

    Padding is token 0. A batch of packed rows says by its segment ids how many examples it has; one without segment ids
    has one example a row. `core` is the share of the time for which this process had its core: less than 1 where
    something else ran beside it.
    """
    for _ in range(warmup):
        next(batches)
    totals = dict.fromkeys(("rows", "examples", "tokens", "target_tokens", "positions", "target_positions"), 0)
    started, worked = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - started) < seconds:
        batch = next(batches)
        inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
        segments = batch.get("encoder_segment_ids")
        totals["rows"] += len(inputs)
        totals["examples"] += len(inputs) if segments is None else int(segments.max(axis=1).sum())
        totals["tokens"] += np.count_nonzero(inputs)
        totals["target_tokens"] += np.count_nonzero(targets)
        totals["positions"] += inputs.size
        totals["target_positions"] += targets.size
    return {
        "tokens_per_s": totals["tokens"] / elapsed,
        "examples_per_s": totals["examples"] / elapsed,
        "rows_per_s": totals["rows"] / elapsed,
        "encoder_fill": totals["tokens"] / totals["positions"],
        "decoder_fill": totals["target_tokens"] / totals["target_positions"],
        "core": (time.process_time() - worked) / elapsed,
    }
