"""How long the decoder's rows should be, by measurement: where targets are short, most of a row may stay empty."""

from __future__ import annotations

import numpy as np

from mixtura.platform.data.packing import pack
from mixtura.platform.data.ragged import Int64
from mixtura.platform.data.stream import MixtureStream

_BLOCKS = 16
_STEP = 8
"""Lengths are tried in steps of 8 positions, as matrix units like them."""


def measured_decoder_row(stream: MixtureStream) -> int:
    """The length of decoder rows that takes the fewest positions, encoder and decoder together, for each example.

    Only lengths that cut no more targets than `targets_length` does are tried. Short rows may close while the encoder's
    are still empty; packing sampled blocks at every length shows where that begins to cost more than it saves.
    """
    spec = stream.spec
    longest = max(
        (stream.reader(task).longest_targets for task, one in enumerate(spec.tasks) if one.rate_bits), default=0
    )
    least = min(spec.targets_length, longest + 1)
    tried = sorted({spec.targets_length, *range(-(-least // _STEP) * _STEP, spec.targets_length, _STEP)})
    there = _BLOCKS if spec.end is None else min(_BLOCKS, spec.end)
    blocks = [stream.example_lengths(block) for block in range(there)]
    cost = {length: _positions(stream, blocks, length) for length in tried}
    best: int = min(tried, key=lambda length: (cost[length], length))
    return best


def _positions(stream: MixtureStream, blocks: list[tuple[Int64, Int64]], length: int) -> int:
    spec, rows = stream.spec, 0
    for inputs, targets in blocks:
        rows += int(pack(spec.packing, inputs, targets, spec.inputs_length, length).max(initial=np.int64(-1))) + 1
    return rows * (spec.inputs_length + length)
