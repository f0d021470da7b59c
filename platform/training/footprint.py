"""What one worker keeps in memory for the weights and their optimizer, before there is an engine.

P trained and F frozen elements among W workers, in bytes; w is 4 for fp32 and 2 for bf16. Each line was counted on
DeepSpeed itself, and the tests do so again:

    stage, precision   weights         gradients       masters   moments of AdamW
    0, fp32            w (P + F)       4 P             -         8 P
    1, fp32            w (P + F)       4 P             4 P / W   8 P / W
    1, bf16            w (P + F)       4 P + w P       4 P / W   8 P / W
    2, any             w (P + F)       4 P / W         4 P / W   8 P / W
    3, any             w (P + F) / W   4 P / W         4 P / W   8 P / W     and small weights whole

Adafactor keeps, in place of moments, a row and a column of every matrix that is large enough to factor (each with as
many counts of what was summed), on every worker; and the second moment of all else, divided as the masters are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mixtura.platform.training.adafactor import factored_axes

_WIDTH = {"fp32": 4, "bf16": 2}
_FULL = 4


@dataclass(frozen=True)
class Weights:
    """The shapes of a model's parameters, those that are trained and those that are not."""

    trained: Mapping[str, tuple[int, ...]]
    frozen: Mapping[str, tuple[int, ...]]

    @property
    def trained_elements(self) -> int:
        """P above."""
        return sum(map(math.prod, self.trained.values()))

    @property
    def frozen_elements(self) -> int:
        """F above."""
        return sum(map(math.prod, self.frozen.values()))

    def small_elements(self, below: int) -> int:
        """Elements of those that have fewer than `below`."""
        sizes = map(math.prod, (*self.trained.values(), *self.frozen.values()))
        return sum(size for size in sizes if size < below)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one worker's weights and what belongs to them."""

    parameters: int
    gradients: int
    """Kept from the first microbatch of a step to its update."""
    optimizer: int
    """fp32 masters, and moments or factors."""
    buffers: int
    """Gradients on their way to where they are kept; at stage 3 gathered weights."""
    update: int
    """Needed on top in the update itself, when nothing of the forward pass is there any more."""


def state_bytes(
    weights: Weights,
    *,
    stage: int,
    workers: int,
    precision: str,
    optimizer: str,
    accumulating: bool = True,
    offload: bool = False,
    min_dim_size_to_factor: int = 128,
    bucket_elements: int = 50_000_000,
    live_elements: int = 1_000_000_000,
) -> StateBytes:
    """What a worker keeps at a ZeRO stage, with more than one microbatch a step if `accumulating`.

    With `offload` the optimizer's part is in the machine's own memory, and not counted. Gradients are reduced
    `bucket_elements` at a time; at stage 3 at most `live_elements` of gathered weights are kept for their next use.

    >>> weights = Weights({"wi": (1000, 500)}, {})
    >>> state_bytes(weights, stage=2, workers=4, precision="bf16", optimizer="adamw").optimizer  # 12 bytes / 4
    1500000
    """
    trained, frozen, width = weights.trained_elements, weights.frozen_elements, _WIDTH[precision]
    owned = trained if stage == 0 else -(-trained // workers)
    bf16 = precision == "bf16"
    parameters = width * (trained + frozen)
    if stage == 3 and workers > 1:
        parameters = width * (-(-(trained + frozen) // workers) + weights.small_elements(_PERSISTENT_ELEMENTS))
    gradients = {
        0: _FULL * trained,
        1: _FULL * trained + (width * trained if bf16 else 0),
        2: _FULL * owned,
        3: _FULL * owned,
    }[stage]
    masters = 0 if stage == 0 else _FULL * owned
    largest = max(map(math.prod, weights.trained.values()), default=0)
    bucket = max(min(bucket_elements, trained), largest)
    buffers = {
        0: 0,
        1: 0,
        # Where gradients are bf16, a bucket of them and its fp32 copy that is reduced; else a microbatch's gradients
        # are all there before they are added to those of the others.
        2: (width + _FULL) * bucket + _FULL * largest if bf16 else _FULL * (bucket + (owned if accumulating else 0)),
        # The bucket is there from the start, whatever the size of the model.
        3: _FULL * (bucket_elements + largest)
        + width * (bucket + (0 if workers == 1 else min(trained + frozen, live_elements))),
    }[stage]
    # At stages 0 and 1 gradients are copied together when the backward pass is over, to be reduced.
    reduced = {0: min(trained, _ALLREDUCE_ELEMENTS), 1: 0 if bf16 else owned}.get(stage, 0)
    flat = owned if stage == 3 else 0  # gradients are put behind each other for the update
    if offload:
        return StateBytes(parameters, gradients, 0, buffers, _FULL * reduced)
    return StateBytes(
        parameters=parameters,
        gradients=gradients,
        optimizer=masters + moment_bytes(weights.trained, optimizer, owned, min_dim_size_to_factor),
        buffers=buffers,
        update=max(_FULL * reduced, _FULL * flat + _update(owned, largest, optimizer)),
    )


_ALLREDUCE_ELEMENTS = 500_000_000
"""What DeepSpeed puts together at stage 0 to reduce it at once."""

_PERSISTENT_ELEMENTS = 100_000
"""Smaller weights are on every worker at stage 3, too (`stage3_param_persistence_threshold`)."""


def moment_bytes(
    shapes: Mapping[str, tuple[int, ...]], optimizer: str, owned: int, min_dim_size_to_factor: int = 128
) -> int:
    """The optimizer's own state where a worker updates `owned` elements.

    >>> moment_bytes({"wi": (1000, 500), "scale": (1000,)}, "adafactor", owned=501_000)  # 2 x 1,500 and 1,000 floats
    16000
    """
    if optimizer != "adafactor":
        return 2 * _FULL * owned
    total = sum(map(math.prod, shapes.values()))
    factors = plain = 0
    for shape in shapes.values():
        axes = factored_axes(shape, min_dim_size_to_factor)
        if axes is None:
            plain += math.prod(shape)
        else:
            factors += sum(math.prod(shape) // shape[axis] for axis in axes)
    return _FULL * (2 * factors + -(-plain * owned // total))


def _update(owned: int, largest: int, optimizer: str) -> int:
    """Working memory of an update: one gradient is squared at a time for its norm, and Adafactor makes all updates
    before it applies any."""
    squares = _FULL * min(owned, largest)
    return squares + (_FULL * owned if optimizer == "adafactor" else 0)
