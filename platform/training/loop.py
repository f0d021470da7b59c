"""One rank's training loop: take the next batch, microbatches forward and backward, step, report, save, stop.

The loss of a step is a sum over the target tokens of the global batch divided by one global number, so it does not
depend on how many ranks share the batch or how large a microbatch is. Ranks may hold unequal numbers of rows; all run
equally many microbatches, and a rank that has no rows left runs one of padding with zero weight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from mixtura.platform import random_bits
from mixtura.platform.errors import TrainingError
from mixtura.platform.training.engine import Engine
from mixtura.platform.training.gradient_norms import gradient_norm
from mixtura.platform.training.loss import linear_cross_entropy, sum_by_task

_MOST_NAMED = 8
_MOST_CHARACTERS = 200
_OF_THE_LOSS = ("decoder_target_tokens", "decoder_loss_weights", "decoder_segment_ids")


class Batch(Protocol):
    """This rank's rows of one global batch."""

    @property
    def features(self) -> Mapping[str, npt.NDArray[np.int32]]:
        """SeqIO's names to [rows, length]."""

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Number of every row within the global batch."""

    @property
    def segment_tasks(self) -> npt.NDArray[np.int32]:
        """Task of segment k + 1 in column k."""

    @property
    def counters(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Examples, tokens ..., each [tasks]."""

    def fingerprints(self) -> npt.NDArray[np.uint64]:
        """A hash of every row."""


@dataclass(frozen=True)
class LoopSettings:
    """The numbers that a loop needs."""

    steps: int
    global_batch_size: int
    microbatches: int
    microbatch_size: int
    inputs_length: int
    targets_length: int
    tasks: tuple[str, ...]
    seed: int
    learning_rate: Callable[[int], float]
    features: tuple[str, ...] = (
        "encoder_input_tokens",
        "encoder_segment_ids",
        "decoder_input_tokens",
        "decoder_segment_ids",
    )
    """What the model takes, by SeqIO's names."""
    normalizer: str = "target_tokens"
    normalizer_constant: float | None = None
    frozen_at: Callable[[int], frozenset[str]] = lambda _: frozenset()
    """Names of the parameters that a step, counted from 0, leaves as they are."""
    gradient_norms_every: int | None = None
    """Steps between two measurements of the gradient of each task alone."""
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    checkpoint_every: int = 1000


@dataclass(frozen=True)
class StepReport:
    """What one step says of itself; losses are cross entropy in nats for each target token."""

    step: int
    """Steps done, this one included."""
    loss: float
    loss_by_task: dict[str, float]
    learning_rate: float
    gradient_norm: float
    gradient_norm_by_task: dict[str, float]
    """Where it was measured: the norm of the gradient of that part of the loss which is the task's."""
    target_tokens: int
    trained: dict[str, dict[str, int]]
    """What was stepped on since step 0: examples, tokens, trimmed tokens ..., each by task."""
    fingerprint: str
    """Hash of the global batch."""
    data_wait_s: float
    step_s: float


@dataclass
class Hooks:
    """What happens around the steps; every rank calls all of them, in the same order."""

    next_batch: Callable[[], Batch]
    global_fingerprint: Callable[[npt.NDArray[np.uint64]], str]
    on_step: Callable[[StepReport], None]
    save: Callable[[int, Mapping[str, Mapping[str, int]]], None]
    """Save a checkpoint of this step, with what was stepped on so far; and what follows from it."""
    stop_requested: Callable[[], bool] = lambda: False
    text_of: Callable[[npt.NDArray[np.int32]], str] | None = None
    """Token ids as a person reads them, for messages about an example."""


@dataclass
class _Totals:
    """Sums over all ranks of what a global batch holds."""

    target_tokens: int
    stop: bool
    counters: dict[str, list[int]]
    """By counter, one number a task."""
    fingerprints: npt.NDArray[np.uint64]


@dataclass
class TrainingLoop:
    """The loop of one rank, resumable at any step."""

    settings: LoopSettings
    engine: Engine
    hooks: Hooks
    step: int = 0
    trained: dict[str, dict[str, int]] = field(default_factory=dict)

    def run(self) -> bool:
        """Train to the last step; returns whether it got there, or was asked to stop before."""
        while self.step < self.settings.steps:
            started = time.perf_counter()
            batch = self.hooks.next_batch()
            waited = time.perf_counter() - started
            totals = self._totals(batch)
            losses, norm, norms = self._update(batch, totals)
            self._count(totals)
            self.step += 1
            self._report(losses, (norm, norms), totals, waited, time.perf_counter() - started)
            last = self.step == self.settings.steps
            if last or totals.stop or self.step % self.settings.checkpoint_every == 0:
                self.hooks.save(self.step, self.trained)
            if totals.stop and not last:
                return False
        return True

    def _totals(self, batch: Batch) -> _Totals:
        """One sum over the ranks: tokens, the wish to stop, counters, and each row's fingerprint in its place."""
        rows = np.zeros(self.settings.global_batch_size, dtype=np.uint64)
        rows[batch.rows] = batch.fingerprints()
        tokens = int((batch.features["decoder_loss_weights"] > 0).sum())
        names, counts = list(batch.counters), np.stack(list(batch.counters.values()))
        head = np.array([tokens, self.hooks.stop_requested()], dtype=np.int64)
        values = torch.from_numpy(np.concatenate([head, counts.reshape(-1), rows.view(np.int64)]))
        summed = sum_over_ranks(values.to(self.engine.device)).cpu().numpy()
        counters = summed[2 : 2 + counts.size].reshape(counts.shape).tolist()
        fingerprints = summed[2 + counts.size :].view(np.uint64)
        return _Totals(int(summed[0]), bool(summed[1]), dict(zip(names, counters, strict=True)), fingerprints)

    def _update(self, batch: Batch, totals: _Totals) -> tuple[npt.NDArray[np.float64], float, dict[str, float]]:
        """Forward, backward and one optimizer update.

        Returns [2, tasks], the loss sums and target tokens by task; the gradient's norm, and each task's.
        """
        settings = self.settings
        divisor = self._divisor(totals)
        norms = self._norms_by_task(batch, totals, divisor)
        sums = torch.zeros(2, len(settings.tasks), dtype=torch.float64, device=self.engine.device)
        finite: list[Tensor] = []
        self.engine.begin_step(settings.microbatches)
        for microbatch in self._microbatches(batch):
            weights = microbatch["decoder_loss_weights"]
            loss, per_token = self._loss(self.engine.forward, microbatch, weights, microbatch["positions"])
            self.engine.backward(loss / divisor)
            sums += sum_by_task(per_token, weights, microbatch["tasks"], len(settings.tasks))
            finite.append(torch.isfinite(per_token).all(-1))
        sums = sum_over_ranks(sums).cpu()
        if not bool(torch.isfinite(sums).all()):
            raise self._not_finite(batch, sums, torch.cat(finite).cpu().numpy())
        return sums.numpy(), self._step(batch), norms

    def _step(self, batch: Batch) -> float:
        step = self.step
        try:
            return self.engine.step(self.settings.learning_rate(step), frozen=self.settings.frozen_at(step))
        except TrainingError as error:
            tasks = sorted({int(task) for task in batch.segment_tasks.flatten() if task >= 0})
            names = ", ".join(self.settings.tasks[task] for task in tasks)
            raise TrainingError(
                f"step {step + 1}: {error}. The rows of this rank are of {names}; the last checkpoint is untouched, "
                f"and `mixtura stream show RECIPE --step {step}` prints the batch"
            ) from error

    def _divisor(self, totals: _Totals) -> float:
        """What the loss of the whole global batch is divided by."""
        settings = self.settings
        match settings.normalizer:
            case "padded_targets":
                return settings.global_batch_size * settings.targets_length
            case "constant" if settings.normalizer_constant is not None:
                return settings.normalizer_constant
            case _:
                return max(1, totals.target_tokens)

    def _loss(
        self, forward: Callable[..., Any], microbatch: Mapping[str, Tensor], weights: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The summed loss of a microbatch, and the cross entropy of each of its tokens."""
        head = partial(
            linear_cross_entropy,
            targets=microbatch["decoder_target_tokens"],
            weights=weights,
            positions=positions,
            z_loss=self.settings.z_loss,
            label_smoothing=self.settings.label_smoothing,
        )
        features = {name: microbatch[name] for name in (*self.settings.features, "dropout_keys")}
        loss, per_token = forward(**features, head=head)
        return loss, per_token

    def _norms_by_task(self, batch: Batch, totals: _Totals, divisor: float) -> dict[str, float]:
        """The norm of each task's share of the gradient, where this step measures it."""
        every = self.settings.gradient_norms_every
        if every is None or (self.step + 1) % every:
            return {}

        def losses(task: int) -> Iterator[Tensor]:
            for microbatch in self._microbatches(batch):
                weights = microbatch["decoder_loss_weights"] * (microbatch["tasks"] == task)
                yield self._loss(self.engine.module, microbatch, weights, None)[0] / divisor

        present = [task for task, count in enumerate(totals.counters["examples"]) if count]
        return {
            self.settings.tasks[task]: gradient_norm(self.engine.module, losses(task), sum_over_ranks)
            for task in present
        }

    def _microbatches(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        size, device = self.settings.microbatch_size, self.engine.device
        seeded = random_bits.key("dropout", self.settings.seed)
        keys = random_bits.derive(seeded, self.step, batch.rows).view(np.int64)
        for start in range(0, self.settings.microbatches * size, size):
            rows = slice(start, start + size)
            names = dict.fromkeys((*self.settings.features, *_OF_THE_LOSS))
            arrays: dict[str, npt.NDArray[Any]] = {name: batch.features[name][rows] for name in names}
            arrays["tasks"] = tasks_of_tokens(batch.segment_tasks[rows], arrays["decoder_segment_ids"])
            arrays["dropout_keys"] = keys[rows]
            if not len(arrays["dropout_keys"]):
                arrays = self._padding_row(names)
            arrays["positions"] = np.flatnonzero(arrays["decoder_loss_weights"])
            yield {name: torch.from_numpy(np.ascontiguousarray(value)).to(device) for name, value in arrays.items()}

    def _padding_row(self, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        inputs = np.zeros((1, self.settings.inputs_length), dtype=np.int32)
        targets = np.zeros((1, self.settings.targets_length), dtype=np.int32)
        features = {name: inputs if name.startswith("encoder") else targets for name in names}
        return {**features, "tasks": np.full_like(targets, -1), "dropout_keys": np.zeros(1, np.int64)}

    def _not_finite(self, batch: Batch, sums: Tensor, finite: npt.NDArray[np.bool_]) -> TrainingError:
        """What to say of a loss that is not finite, with the examples it comes from; every rank asks for it."""
        settings, local = self.settings, np.flatnonzero(~finite[: len(batch.rows)])
        bad = torch.zeros(settings.global_batch_size, dtype=torch.int64, device=self.engine.device)
        bad[torch.from_numpy(batch.rows[local]).to(bad.device)] = 1
        rows = sum_over_ranks(bad).cpu().nonzero().squeeze(-1).tolist()
        tasks = [task for task, value in zip(settings.tasks, sums[0].tolist(), strict=True) if not np.isfinite(value)]
        shown = ", ".join(map(str, rows[:_MOST_NAMED])) + (", ..." if len(rows) > _MOST_NAMED else "")
        lines = [
            f"the loss is not finite at step {self.step + 1}, in {', '.join(tasks)}: {len(rows)} of "
            f"{settings.global_batch_size} rows of the batch, {shown}. The last checkpoint is untouched.",
            *self._examples(batch, local[:_MOST_NAMED]),
            f"Lower schedule.factor, or look at the batch with `mixtura stream show RECIPE --step {self.step}`",
        ]
        return TrainingError("\n".join(lines))

    def _examples(self, batch: Batch, local: npt.NDArray[np.intp]) -> Iterator[str]:
        """The rows of this rank that a message is about: their tasks, and what the first of their text is."""
        for row in local:
            names = dict.fromkeys(self.settings.tasks[task] for task in batch.segment_tasks[row] if task >= 0)
            text = ""
            if self.hooks.text_of is not None:
                tokens = batch.features[self.settings.features[0]][row]
                text = f": {self.hooks.text_of(tokens[tokens > 0])[:_MOST_CHARACTERS]!r}"
            yield f"  row {batch.rows[row]}, of {', '.join(names)}{text}"

    def _count(self, totals: _Totals) -> None:
        for name, counts in totals.counters.items():
            by_task = self.trained.setdefault(name, dict.fromkeys(self.settings.tasks, 0))
            for task, count in zip(self.settings.tasks, counts, strict=True):
                by_task[task] += count

    def _report(
        self,
        losses: npt.NDArray[np.float64],
        norms: tuple[float, dict[str, float]],
        totals: _Totals,
        waited_s: float,
        step_s: float,
    ) -> None:
        by_task = {
            task: float(loss / tokens)
            for task, loss, tokens in zip(self.settings.tasks, losses[0], losses[1], strict=True)
            if tokens
        }
        self.hooks.on_step(
            StepReport(
                step=self.step,
                loss=float(losses[0].sum() / max(1.0, losses[1].sum())),
                loss_by_task=by_task,
                learning_rate=self.settings.learning_rate(self.step - 1),
                gradient_norm=norms[0],
                gradient_norm_by_task=norms[1],
                target_tokens=totals.target_tokens,
                trained={name: dict(counts) for name, counts in self.trained.items()},
                fingerprint=self.hooks.global_fingerprint(totals.fingerprints),
                data_wait_s=waited_s,
                step_s=step_s,
            )
        )


def tasks_of_tokens(segment_tasks: npt.NDArray[np.int32], segment_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The task of every position, -1 at padding.

    segment_tasks [rows, segments] and segment_ids [rows, length], where segment k + 1 is in column k.

    >>> tasks_of_tokens(np.array([[3, 0]], np.int32), np.array([[1, 1, 2, 0]], np.int32)).tolist()
    [[3, 3, 0, -1]]
    """
    padded = np.concatenate([np.full((len(segment_tasks), 1), -1, dtype=np.int64), segment_tasks], axis=1)
    return np.take_along_axis(padded, segment_ids.astype(np.int64), axis=1)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a small tensor over all ranks, on every rank."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


def microbatches_per_step(rows_per_rank: Sequence[int], microbatch_size: int) -> int:
    """Microbatches that every rank runs: as many as the rank with the most rows needs.

    >>> microbatches_per_step([12, 8], microbatch_size=5)
    3
    """
    return -(-max(rows_per_rank) // microbatch_size)
