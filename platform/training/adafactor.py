"""T5's Adafactor (Shazeer and Stern 2018) on whole tensors, and with the same numbers on ZeRO's flat partitions.

For a matrix with gradient g at update t, counted from 0:

    decay  = 1 - (t + 1)^-0.8
    row    = decay * row    + (1 - decay) * mean over columns of (g^2 + 1e-30)
    column = decay * column + (1 - decay) * mean over rows    of (g^2 + 1e-30)
    u      = g / sqrt(row / mean(row)) / sqrt(column)
    u      = u / max(1, RMS(u))
    w      = w - learning_rate * max(RMS(w), 1e-3) * u

Rows, columns and both RMS are of the whole matrix, but ZeRO hands the optimizer one flat vector, cut anywhere, in
which no matrix can be seen. The engine's partition map (`Layout`) says which elements of which matrix lie there; every
rank sums over its own, and two small all-reduces in a step (sums and weight norms; then update norms) complete them.
The factors are on every rank, since they are small; what is kept per element is only where the element is.

No momentum, no weight decay, no bias correction, no global clipping. The weight's scale applies to a given learning
rate too. A tensor is factored over its two largest dimensions if both have at least `min_dim_size_to_factor`
elements; T5's attention matrices are stored two-dimensional, and it is in that shape that they are factored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.platform.errors import CheckpointError
from mixtura.platform.training.layout import Layout, StateOfParameters, cut, gradient_piece, piece, state_of
from mixtura.platform.training.partitioned import PartitionedOptimizer, Placed, squared_norms
from mixtura.platform.training.snapshot import Fragment


def factored_axes(shape: Sequence[int], min_dim_size: int | None) -> tuple[int, int] | None:
    """The two largest dimensions, in order, if both are large enough to factor over; of equals the first.

    >>> factored_axes((512, 384), 128), factored_axes((512, 64), 128), factored_axes((2, 300, 200), 128)
    ((0, 1), None, (1, 2))
    """
    if min_dim_size is None or len(shape) < 2:
        return None
    first, second = sorted(range(len(shape)), key=lambda axis: -shape[axis])[:2]
    return (min(first, second), max(first, second)) if shape[second] >= min_dim_size else None


@dataclass(frozen=True)
class _Matrix:
    """A factored parameter: where its means lie in the buffer of all means, and which part of it lies here.

    `low` < `high` are the factored axes. `row` has the parameter's shape without axis `high`, `column` without `low`.
    A fragment is handled as a *slab*: the slices along axis 0 that it touches, `first` to `last`, of which `lead`
    elements at the beginning (and perhaps some at the end) are zeros here and have their values on other ranks.
    """

    holder: Tensor
    fragment: Fragment
    low: int
    high: int
    begin: int
    row_shape: tuple[int, ...]
    column_shape: tuple[int, ...]
    first: int
    last: int
    lead: int

    @classmethod
    def of(cls, holder: Tensor, fragment: Fragment, axes: tuple[int, int], begin: int) -> _Matrix:
        low, high = axes
        shape, width = fragment.shape, fragment.numel // fragment.shape[0]
        first, end = fragment.start // width, fragment.start + fragment.length
        row_shape, column_shape = shape[:high] + shape[high + 1 :], shape[:low] + shape[low + 1 :]
        lead = fragment.start - first * width
        return cls(holder, fragment, low, high, begin, row_shape, column_shape, first, -(-end // width), lead)

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.row_shape) + math.prod(self.column_shape)

    def row(self, buffer: Tensor) -> Tensor:
        return buffer[self.begin : self.begin + math.prod(self.row_shape)].view(self.row_shape)

    def column(self, buffer: Tensor) -> Tensor:
        return buffer[self.begin + math.prod(self.row_shape) : self.end].view(self.column_shape)

    def row_slab(self, buffer: Tensor) -> Tensor:
        return self.row(buffer)[self.first : self.last]

    def column_slab(self, buffer: Tensor) -> Tensor:
        column = self.column(buffer)
        return column if self.low == 0 else column[self.first : self.last]

    def to_slab(self, values: Tensor) -> Tensor:
        """Flat values of the fragment -> [slices, ...]; without a copy where the fragment is whole slices."""
        shape = (self.last - self.first, *self.fragment.shape[1:])
        if values.numel() != math.prod(shape):
            padded = values.new_zeros(math.prod(shape))
            padded[self.lead : self.lead + values.numel()] = values
            values = padded
        return values.view(shape)

    def from_slab(self, slab: Tensor) -> Tensor:
        """[slices, ...] -> flat values of the fragment."""
        return slab.view(-1)[self.lead : self.lead + self.fragment.length]


class Adafactor(PartitionedOptimizer):
    """T5's Adafactor; `update_count` is t above, and goes on counting when a model is fine-tuned.

    A parameter that is frozen for a while keeps its means, while t counts on as for all others.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float = 0.01,
        min_dim_size_to_factor: int | None = 128,
        decay_exponent: float = 0.8,
        clipping_threshold: float | None = 1.0,
        scale_by_parameter: bool = True,
        epsilon_square: float = 1e-30,
        epsilon_scale: float = 1e-3,
        clip_gradient_norm: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr}, clip_gradient_norm)
        self.min_dim_size_to_factor = min_dim_size_to_factor
        self.decay_exponent = decay_exponent
        self.clipping_threshold = clipping_threshold
        self.scale_by_parameter = scale_by_parameter
        self.epsilon_square = epsilon_square
        self.epsilon_scale = epsilon_scale

    def _allocate(self, layout: Layout) -> None:
        self._matrices: dict[int, _Matrix] = {}
        self._plain: list[Placed] = []
        end = 0
        for index, (holder, fragment) in enumerate(layout):
            axes = factored_axes(fragment.shape, self.min_dim_size_to_factor)
            if axes is not None:
                matrix = _Matrix.of(holder, fragment, axes, begin=end)
                self._matrices[index], end = matrix, matrix.end
            elif fragment.length:
                self._plain.append((index, holder, fragment))
        device = layout.holders[0].device
        self._numels = torch.tensor([float(fragment.numel) for _, fragment in layout], device=device)
        self._sizes = [fragment.length for _, _, fragment in self._plain]
        self._second_moment = torch.zeros(sum(self._sizes), device=device)
        self._factors = torch.zeros(end, device=device)
        self._terms = torch.empty_like(self._factors)  # how many squares each sum has
        for matrix in self._matrices.values():
            matrix.row(self._terms).fill_(matrix.fragment.shape[matrix.high])
            matrix.column(self._terms).fill_(matrix.fragment.shape[matrix.low])

    # ---- a step ------------------------------------------------------------------------------------------------------

    def _update(self, layout: Layout, trained: Sequence[Placed]) -> None:
        here = torch.tensor([index for index, _, _ in trained], dtype=torch.int64, device=self._numels.device)
        weights = [piece(holder, fragment) for _, holder, fragment in trained]
        matrices = {index: self._matrices[index] for index, _, _ in trained if index in self._matrices}
        slabs = {
            index: matrix.to_slab(gradient_piece(matrix.holder, matrix.fragment)) for index, matrix in matrices.items()
        }
        mixing = (self.update_count + 1) ** -self.decay_exponent
        scales = self._update_factors(layout, slabs, here, weights, mixing)
        of_index = self._plain_updates(mixing) | self._factored_updates(slabs)
        updates = [of_index[index] for index, _, _ in trained]
        multipliers = self._multipliers(layout, here, updates, scales)
        for weight, update, multiplier in zip(weights, updates, multipliers.unbind(), strict=True):
            weight.addcmul_(update, multiplier)

    def _update_factors(
        self, layout: Layout, slabs: Mapping[int, Tensor], here: Tensor, weights: Sequence[Tensor], mixing: float
    ) -> Tensor:
        """First reduction: sums over rows and columns, and the weights' norms; returns RMS(w) of all parameters."""
        factors = self._factors.numel()
        sums = self._factors.new_zeros(factors + self._numels.numel())
        for index, slab in slabs.items():
            square, matrix = slab.square(), self._matrices[index]
            torch.sum(square, matrix.high, out=matrix.row_slab(sums))
            torch.sum(square, matrix.low, out=matrix.column_slab(sums))
        if weights:
            sums[factors:].index_copy_(0, here, squared_norms(weights))
        layout.reduce(sums)
        means = sums[:factors].div_(self._terms).add_(self.epsilon_square)
        for matrix in self._matrices.values():
            if matrix.fragment.name in self.frozen:
                means[matrix.begin : matrix.end] = self._factors[matrix.begin : matrix.end]
        self._factors.lerp_(means, mixing)
        return sums[factors:].div_(self._numels).sqrt_()

    def _factored_updates(self, slabs: Mapping[int, Tensor]) -> dict[int, Tensor]:
        inverse = self._factors.rsqrt()
        updates = {}
        for index, slab in slabs.items():
            matrix = self._matrices[index]
            mean = matrix.row(self._factors).mean(matrix.low, keepdim=True)
            row = (matrix.row(inverse) * mean.sqrt_())[matrix.first : matrix.last].unsqueeze(matrix.high)
            update = (slab * row).mul_(matrix.column_slab(inverse).unsqueeze(matrix.low))
            updates[index] = matrix.from_slab(update)
        return updates

    def _plain_updates(self, mixing: float) -> dict[int, Tensor]:
        if not self._plain:
            return {}
        gradient = torch.cat([gradient_piece(holder, fragment) for _, holder, fragment in self._plain])
        square = gradient.square().add_(self.epsilon_square)
        squares = square.split_with_sizes(self._sizes)
        for fragment, moment, mine in zip(self._plain, self._moments(), squares, strict=True):
            if fragment[2].name in self.frozen:
                mine.copy_(moment)
        self._second_moment.lerp_(square, mixing)
        updates = gradient.mul_(self._second_moment.rsqrt()).split_with_sizes(self._sizes)
        return {index: update for (index, _, _), update in zip(self._plain, updates, strict=True)}

    def _multipliers(self, layout: Layout, here: Tensor, updates: Sequence[Tensor], scales: Tensor) -> Tensor:
        """Second reduction: the updates' norms; returns what each local update is multiplied with."""
        step = torch.full_like(self._numels, -float(self.param_groups[0]["lr"]))
        if self.scale_by_parameter:
            step *= scales.clamp(min=self.epsilon_scale)
        if self.clipping_threshold is not None:
            norms = torch.zeros_like(self._numels)
            if updates:
                norms.index_copy_(0, here, squared_norms(updates))
            rms = layout.reduce(norms).div_(self._numels).sqrt_()
            step /= rms.div_(self.clipping_threshold).clamp_(min=1.0)
        return step[here]

    # ---- state -------------------------------------------------------------------------------------------------------

    def local_state(self) -> dict[str, dict[str, Tensor]]:
        """What is kept per element: flat `second_moment` of the fragments here whose parameters are not factored."""
        self._bound()
        moments = zip(self._plain, self._moments(), strict=True)
        return {fragment.name: {"second_moment": moment} for (_, _, fragment), moment in moments}

    def _moments(self) -> Sequence[Tensor]:
        return self._second_moment.split_with_sizes(self._sizes) if self._plain else ()

    def replicated_state(self) -> dict[str, Tensor]:
        """What every rank has: `NAME/row` and `NAME/column` of factored parameters."""
        self._bound()
        state = {}
        for matrix in self._matrices.values():
            state[f"{matrix.fragment.name}/row"] = matrix.row(self._factors)
            state[f"{matrix.fragment.name}/column"] = matrix.column(self._factors)
        return state

    def load_state(self, state: StateOfParameters, update_count: int) -> None:
        """Take state in coordinates of whole parameters, written at any stage and world size."""
        self._bound()
        for matrix in self._matrices.values():
            for key, factor in (("row", matrix.row(self._factors)), ("column", matrix.column(self._factors))):
                source = state_of(state, matrix.fragment.name, key)
                if source.shape != factor.shape:
                    raise CheckpointError(
                        f"{key!r} of parameter {matrix.fragment.name!r} has shape {tuple(source.shape)} in the "
                        f"checkpoint, but {tuple(factor.shape)} here: it is of another model"
                    )
                factor.copy_(source)
        for (_, _, fragment), moment in zip(self._plain, self._moments(), strict=True):
            moment.copy_(cut(state_of(state, fragment.name, "second_moment"), fragment))
        self.update_count = update_count
