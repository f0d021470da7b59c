"""The loop alone: a small T5 with dropout and the plain engine; ranks are threads that meet where ranks add up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mixtura.models.t5 import T5Config, create_model, initialize
from mixtura.platform.data.features import global_fingerprint, row_fingerprints
from mixtura.platform.errors import TrainingError
from mixtura.platform.training import loop as loops
from mixtura.platform.training.engine import PlainEngine
from mixtura.platform.training.loop import Hooks, LoopSettings, StepReport, TrainingLoop, microbatches_per_step
from mixtura.platform.training.optimizer import OptimizerSettings

torch.set_num_threads(1)

ROWS, INPUTS, TARGETS = 5, 12, 8
TASKS = ("copy", "count", "rare")
ONLY_IN_RARE = 63
TOLERANCE = 1e-5
"""Between sums of fp32 numbers in another order, after a few steps."""


@dataclass
class FakeBatch:
    """Some rows of a global batch."""

    features: dict[str, npt.NDArray[np.int32]]
    rows: npt.NDArray[np.int64]
    segment_tasks: npt.NDArray[np.int32]

    @property
    def counters(self) -> dict[str, npt.NDArray[np.int64]]:
        counts = [int((self.segment_tasks == task).sum()) for task in range(len(TASKS))]
        return {"examples": np.array(counts, dtype=np.int64)}

    def fingerprints(self) -> npt.NDArray[np.uint64]:
        return row_fingerprints(self.features, self.segment_tasks)


def batch(step: int, rows: npt.NDArray[np.int64] | None = None) -> FakeBatch:
    """Rows of a step, a segment each, of unequal length; row r is of task r mod 3, `rare` has a token of its own."""
    rows = np.arange(ROWS) if rows is None else rows
    draw = np.random.default_rng(step)
    inputs = draw.integers(2, ONLY_IN_RARE, size=(ROWS, INPUTS), dtype=np.int32)
    targets = draw.integers(2, 8, size=(ROWS, TARGETS), dtype=np.int32)
    input_lengths, target_lengths = draw.integers(3, INPUTS + 1, ROWS), draw.integers(2, TARGETS + 1, ROWS)
    tasks = np.arange(ROWS, dtype=np.int32) % 3
    inputs[tasks == 2, 0] = ONLY_IN_RARE
    encoder = (np.arange(INPUTS) < input_lengths[:, None]).astype(np.int32)
    decoder = (np.arange(TARGETS) < target_lengths[:, None]).astype(np.int32)
    shifted = np.concatenate([np.zeros((ROWS, 1), np.int32), targets[:, :-1]], axis=1)
    features = {
        "encoder_input_tokens": inputs * encoder,
        "encoder_segment_ids": encoder,
        "encoder_positions": np.arange(INPUTS, dtype=np.int32) * encoder,
        "decoder_target_tokens": targets * decoder,
        "decoder_input_tokens": shifted * decoder,
        "decoder_loss_weights": decoder,
        "decoder_segment_ids": decoder,
        "decoder_positions": np.arange(TARGETS, dtype=np.int32) * decoder,
    }
    return FakeBatch({name: value[rows] for name, value in features.items()}, rows, tasks[rows, None])


def new_engine(kind: Callable[..., PlainEngine] = PlainEngine) -> PlainEngine:
    config = T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_heads=2,
        num_layers=1,
        num_decoder_layers=1,
        feed_forward="gated-gelu",
        tie_embeddings=False,
    )
    model = create_model(config)
    initialize(model, seed=1)
    return kind(model, optimizer=OptimizerSettings(), device=torch.device("cpu"))


SETTINGS = LoopSettings(
    steps=6,
    global_batch_size=ROWS,
    microbatches=1,
    microbatch_size=ROWS,
    inputs_length=INPUTS,
    targets_length=TARGETS,
    tasks=TASKS,
    seed=7,
    learning_rate=lambda step: 0.05,
    checkpoint_every=100,
)


@dataclass
class Recorded:
    """A loop with what it reported and saved."""

    settings: LoopSettings
    engine: PlainEngine
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.arange(ROWS))
    step: int = 0
    trained: dict[str, dict[str, int]] = field(default_factory=dict)
    stop_before_step: int | None = None
    reports: list[StepReport] = field(default_factory=list)
    saved: list[tuple[int, dict[str, dict[str, int]]]] = field(default_factory=list)
    drawn: int = 0

    def run(self) -> bool:
        self.drawn = self.step
        hooks = Hooks(
            next_batch=self._next_batch,
            global_fingerprint=global_fingerprint,
            on_step=self.reports.append,
            save=self._save,
            stop_requested=lambda: self.drawn == self.stop_before_step,
            text_of=lambda tokens: " ".join(map(str, tokens)),
        )
        return TrainingLoop(self.settings, self.engine, hooks, self.step, self.trained).run()

    def _next_batch(self) -> FakeBatch:
        self.drawn += 1
        return batch(self.drawn - 1, self.rows)

    def _save(self, step: int, trained: Mapping[str, Mapping[str, int]]) -> None:
        self.saved.append((step, {name: dict(counts) for name, counts in trained.items()}))

    @property
    def losses(self) -> list[float]:
        return [report.loss for report in self.reports]

    @property
    def fingerprints(self) -> list[str]:
        return [report.fingerprint for report in self.reports]


def undisturbed(**changed: Any) -> Recorded:
    recorded = Recorded(replace(SETTINGS, **changed), new_engine())
    assert recorded.run()
    return recorded


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_size_of_microbatches_changes_no_loss(size: int) -> None:
    whole = undisturbed()
    cut = undisturbed(microbatch_size=size, microbatches=microbatches_per_step([ROWS], size))
    assert cut.fingerprints == whole.fingerprints
    np.testing.assert_allclose(cut.losses, whole.losses, rtol=0, atol=TOLERANCE)
    for mine, other in zip(cut.reports, whole.reports, strict=True):
        assert mine.loss_by_task == pytest.approx(other.loss_by_task, abs=TOLERANCE)
        assert mine.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


def test_the_comparison_has_dropout_on_and_learns() -> None:
    whole, otherwise_seeded = undisturbed(), undisturbed(seed=8)
    assert whole.losses[0] - whole.losses[-1] > 0.5
    assert abs(whole.losses[0] - otherwise_seeded.losses[0]) > 100 * TOLERANCE


# ---- several ranks ---------------------------------------------------------------------------------------------------


class Meeting:
    """Adds up tensors of several threads, as an all-reduce adds up those of several ranks."""

    def __init__(self, ranks: int) -> None:
        self._brought: list[Tensor | None] = [None] * ranks
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._here = threading.local()

    def sum(self, values: Tensor) -> Tensor:
        self._brought[self._here.rank] = values.clone()
        self._barrier.wait()
        total = torch.stack([part for part in self._brought if part is not None]).sum(0)
        self._barrier.wait()
        return values.copy_(total)

    def run(self, ranks: list[Recorded]) -> None:
        """Run a loop for each rank; the first error of any is raised."""
        errors: list[BaseException] = []

        def enter(rank: int) -> None:
            self._here.rank = rank
            try:
                ranks[rank].run()
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=enter, args=(rank,)) for rank in range(len(ranks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def engine_of(meeting: Meeting) -> type[PlainEngine]:
    """A plain engine that adds up the gradients of all ranks."""

    class Summing(PlainEngine):
        def _step(self) -> float:
            for master in self._masters.values():
                meeting.sum(master.grad)
            return super()._step()

    return Summing


def on_ranks(
    monkeypatch: pytest.MonkeyPatch, rows_of_ranks: list[list[int]], size: int, **changed: Any
) -> list[Recorded]:
    meeting = Meeting(len(rows_of_ranks))
    monkeypatch.setattr(loops, "sum_over_ranks", meeting.sum)
    needed = microbatches_per_step([len(rows) for rows in rows_of_ranks], size)
    settings = replace(SETTINGS, microbatch_size=size, microbatches=needed, **changed)
    ranks = [Recorded(settings, new_engine(engine_of(meeting)), np.array(rows)) for rows in rows_of_ranks]
    meeting.run(ranks)
    return ranks


@pytest.mark.parametrize("rows_of_ranks", [[[0, 2, 4], [1, 3]], [[0, 3], [1, 4], [2]]])
def test_ranks_with_unequal_rows_give_the_loss_of_one(
    monkeypatch: pytest.MonkeyPatch, rows_of_ranks: list[list[int]]
) -> None:
    whole = undisturbed()
    ranks = on_ranks(monkeypatch, rows_of_ranks, size=1)
    for rank in ranks:
        assert rank.fingerprints == whole.fingerprints
        assert rank.reports[-1].trained == whole.reports[-1].trained
        np.testing.assert_allclose(rank.losses, whole.losses, rtol=0, atol=TOLERANCE)
    assert ranks[0].losses == ranks[1].losses


def test_a_wish_to_stop_on_one_rank_stops_all_after_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Meeting(2)
    monkeypatch.setattr(loops, "sum_over_ranks", meeting.sum)
    settings = replace(SETTINGS, microbatches=1)
    ranks = [Recorded(settings, new_engine(engine_of(meeting)), np.array(rows)) for rows in ([0, 2, 4], [1, 3])]
    ranks[0].stop_before_step = 3
    meeting.run(ranks)
    assert [[step for step, _ in rank.saved] for rank in ranks] == [[3], [3]]


# ---- not finite ------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_and_the_tasks() -> None:
    recorded = Recorded(SETTINGS, new_engine())
    recorded.step = 3
    embedding = dict(recorded.engine.module.named_parameters())["embedding.weight"]
    with torch.no_grad():
        embedding[ONLY_IN_RARE] = torch.inf
    before = {name: value.clone() for name, value in recorded.engine.module.named_parameters()}
    with pytest.raises(TrainingError) as raised:
        recorded.run()
    message = str(raised.value)
    assert "not finite at step 4, in rare: 1 of 5 rows of the batch, 2." in message
    assert "row 2, of rare: '63 " in message
    assert "mixtura stream show RECIPE --step 3" in message
    assert recorded.reports == []
    assert recorded.saved == []
    for name, value in recorded.engine.module.named_parameters():
        assert torch.equal(value, before[name])


def test_a_gradient_that_is_not_finite_names_the_step_and_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(SETTINGS, new_engine(), step=3)

    def refuse(*_: Any, **__: Any) -> float:
        raise TrainingError("the gradient of update 3 is not finite, so it was not applied")

    monkeypatch.setattr(recorded.engine, "step", refuse)
    with pytest.raises(TrainingError, match=r"step 4: the gradient .* of copy, count, rare; .* --step 3"):
        recorded.run()
    assert recorded.saved == []


# ---- saving and stopping ---------------------------------------------------------------------------------------------


def test_every_so_many_steps_and_the_last_are_saved_once() -> None:
    assert [step for step, _ in undisturbed(checkpoint_every=4).saved] == [4, 6]
    assert [step for step, _ in undisturbed(checkpoint_every=3).saved] == [3, 6]


def test_what_is_saved_counts_the_examples_stepped_on() -> None:
    recorded = undisturbed(checkpoint_every=3)
    assert recorded.saved[0] == (3, {"examples": {"copy": 6, "count": 6, "rare": 3}})
    assert recorded.saved[1] == (6, {"examples": {"copy": 12, "count": 12, "rare": 6}})


def test_a_wish_to_stop_saves_and_ends_after_the_step() -> None:
    recorded = Recorded(SETTINGS, new_engine(), stop_before_step=2)
    assert not recorded.run()
    assert [step for step, _ in recorded.saved] == [2]
    assert len(recorded.reports) == 2


def test_a_wish_to_stop_in_the_last_step_changes_nothing() -> None:
    recorded = Recorded(SETTINGS, new_engine(), stop_before_step=SETTINGS.steps)
    assert recorded.run()
    assert [step for step, _ in recorded.saved] == [SETTINGS.steps]


def test_a_loop_that_was_stopped_goes_on_as_if_it_had_not_been() -> None:
    whole = undisturbed()
    first = Recorded(SETTINGS, new_engine(), stop_before_step=2)
    first.run()
    step, trained = first.saved[0]
    second = Recorded(SETTINGS, new_engine(), step=step, trained=trained)
    second.engine.restore(*state_of(first.engine))
    assert second.run()
    assert first.losses + second.losses == whole.losses
    assert first.fingerprints + second.fingerprints == whole.fingerprints
    assert second.reports[-1].trained == whole.reports[-1].trained


def state_of(engine: PlainEngine) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], int]:
    """Weights, optimizer state and update count; in one process every fragment is a whole parameter."""
    weights: dict[str, Tensor] = {}
    state: dict[str, dict[str, Tensor]] = {}
    snapshot = engine.snapshot()
    for fragment in snapshot.fragments:
        weights[fragment.name] = fragment.tensors["master"].view(fragment.shape)
        kept = {kind: value.view(fragment.shape) for kind, value in fragment.tensors.items() if kind != "master"}
        state.setdefault(fragment.name, {}).update(kept)
    for path, value in snapshot.replicated.items():
        name, _, kind = path.rpartition("/")
        state.setdefault(name, {})[kind] = value
    return weights, {name: kinds for name, kinds in state.items() if kinds}, snapshot.optimizer_step


def test_a_loop_at_its_last_step_does_nothing() -> None:
    recorded = Recorded(SETTINGS, new_engine(), step=SETTINGS.steps)
    assert recorded.run()
    assert recorded.reports == recorded.saved == []


# ---- what is reported ------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_tasks_weighted_by_their_tokens() -> None:
    report = undisturbed(steps=1).reports[0]
    weights = batch(0).features["decoder_loss_weights"].sum(1)
    tokens = {task: int(weights[np.arange(ROWS) % 3 == number].sum()) for number, task in enumerate(TASKS)}
    assert report.target_tokens == sum(tokens.values())
    weighted = sum(report.loss_by_task[task] * tokens[task] for task in TASKS) / report.target_tokens
    assert report.loss == pytest.approx(weighted, rel=1e-12)


def test_the_normalizer_scales_the_gradient_and_not_the_reported_loss() -> None:
    tokens, padded = (undisturbed(steps=1, normalizer=name).reports[0] for name in ("target_tokens", "padded_targets"))
    assert padded.loss == tokens.loss
    share = tokens.target_tokens / (ROWS * TARGETS)
    assert padded.gradient_norm == pytest.approx(tokens.gradient_norm * share, rel=1e-5)


def test_a_constant_normalizer_is_the_number_that_was_given() -> None:
    tokens, constant = (
        undisturbed(steps=1, **changed).reports[0]
        for changed in ({}, {"normalizer": "constant", "normalizer_constant": 7.0})
    )
    assert constant.loss == tokens.loss
    assert constant.gradient_norm == pytest.approx(tokens.gradient_norm * tokens.target_tokens / 7, rel=1e-5)


@pytest.mark.parametrize("normalizer", ["target_tokens", "padded_targets", "constant"])
def test_every_normalizer_is_exact_over_microbatches_and_ranks(
    monkeypatch: pytest.MonkeyPatch, normalizer: str
) -> None:
    changed = {"normalizer": normalizer, "normalizer_constant": 9.0 if normalizer == "constant" else None}
    whole = undisturbed(**changed)
    cut = undisturbed(**changed, microbatch_size=2, microbatches=3)
    np.testing.assert_allclose(cut.losses, whole.losses, rtol=0, atol=TOLERANCE)
    for rank in on_ranks(monkeypatch, [[0, 2, 4], [1, 3]], size=2, **changed):
        np.testing.assert_allclose(rank.losses, whole.losses, rtol=0, atol=TOLERANCE)
        assert rank.reports[-1].gradient_norm == pytest.approx(whole.reports[-1].gradient_norm, rel=1e-4)


# ---- what else a recipe may ask for ----------------------------------------------------------------------------------


def test_norms_by_task_are_those_of_the_parts_of_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, measured = undisturbed(), undisturbed(gradient_norms_every=2)
    assert measured.losses == whole.losses
    assert [sorted(report.gradient_norm_by_task) for report in measured.reports] == [[], sorted(TASKS)] * 3
    # Alone in the loss, a task has the gradient that it has beside others.
    alone = undisturbed(steps=2, normalizer="constant", normalizer_constant=1.0, gradient_norms_every=1)
    for number, task in enumerate(TASKS):

        def only(step: int, rows: Any = None, number: int = number) -> FakeBatch:
            found = batch(step, rows)
            others = found.segment_tasks[:, 0] != number
            found.features["decoder_loss_weights"] = np.where(
                others[:, None], 0, found.features["decoder_loss_weights"]
            )
            return found

        recorded = Recorded(replace(SETTINGS, steps=1, normalizer="constant", normalizer_constant=1.0), new_engine())
        monkeypatch.setattr(recorded, "_next_batch", lambda only=only: only(0))
        recorded.run()
        expected = recorded.reports[0].gradient_norm
        assert alone.reports[0].gradient_norm_by_task[task] == pytest.approx(expected, rel=1e-5)


def test_norms_by_task_are_summed_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = undisturbed(gradient_norms_every=3)
    for rank in on_ranks(monkeypatch, [[0, 2, 4], [1, 3]], size=2, gradient_norms_every=3):
        for mine, other in zip(rank.reports, whole.reports, strict=True):
            assert mine.gradient_norm_by_task == pytest.approx(other.gradient_norm_by_task, rel=1e-3)


def test_frozen_parameters_stay_until_their_step() -> None:
    names = {"encoder.layers.0.feed_forward.wo.weight"}
    recorded = Recorded(replace(SETTINGS, frozen_at=lambda step: frozenset(names if step < 4 else ())), new_engine())
    parameter = recorded.engine.module.get_parameter(next(iter(names)))
    before, changed = parameter.detach().clone(), []
    recorded.reports = _Watching(lambda: changed.append(not torch.equal(parameter, before)))  # type: ignore[assignment]
    assert recorded.run()
    assert changed == [False] * 4 + [True] * 2


class _Watching(list[StepReport]):
    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look

    def append(self, report: StepReport) -> None:
        super().append(report)
        self._look()


@pytest.mark.parametrize("architecture", ["prefix_lm", "lm"])
def test_a_model_of_one_stack_learns_in_microbatches_as_in_one(architecture: str) -> None:
    def single(step: int, rows: Any = None) -> FakeBatch:
        found = batch(step, rows)
        features = {name: value for name, value in found.features.items() if name.startswith("decoder")}
        if architecture == "prefix_lm":
            features["decoder_causal_attention"] = (np.arange(TARGETS) < 2) * features["decoder_segment_ids"]
        return FakeBatch(features, found.rows, found.segment_tasks)

    def train(**changed: Any) -> list[float]:
        config = T5Config(64, 16, 4, 32, 2, 1, 1, architecture=architecture)  # type: ignore[arg-type]
        model = create_model(config)
        initialize(model, seed=1)
        engine = PlainEngine(model, optimizer=OptimizerSettings(), device=torch.device("cpu"))
        recorded = Recorded(replace(SETTINGS, features=model.features, **changed), engine)
        recorded._next_batch = lambda: single(len(recorded.reports))  # type: ignore[method-assign]
        assert recorded.run()
        return recorded.losses

    whole = train()
    assert whole[-1] < whole[0]
    np.testing.assert_allclose(train(microbatch_size=2, microbatches=3), whole, rtol=0, atol=TOLERANCE)
