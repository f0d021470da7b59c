"""The optimizers: the original's numbers on whole tensors, and the same numbers wherever the tensors are cut."""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixtura.platform.errors import CheckpointError, ConfigError, UnknownNameError
from mixtura.platform.training.adafactor import Adafactor
from mixtura.platform.training.layout import Layout, cut, piece, whole_layout
from mixtura.platform.training.optimizer import AdamW, OptimizerSettings, create_optimizer
from mixtura.platform.training.snapshot import Fragment

torch.set_num_threads(1)

SHAPES = {
    "embedding": (23, 6),
    "query": (5, 8),
    "norm": (6,),
    "one": (1,),
    "scalar": (),
    "narrow": (3, 40),
    "cube": (3, 7, 9),
    "deep": (6, 2, 5),
    "output": (6, 23),
}
NAMES = ["adafactor", "adamw", "adamw_rms"]


# ---- whole tensors ---------------------------------------------------------------------------------------------------


def adafactor_answers(shared: Path) -> list[dict]:
    rows = [json.loads(line) for line in (shared / "golden/mesh.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "adafactor" and "beta1" not in row["kwargs"]]


def as_ours(weight: torch.nn.Parameter, row: dict) -> Adafactor:
    arguments = row["kwargs"]
    smallest = arguments.get("min_dim_size_to_factor", 128) if arguments.get("factored", True) else None
    return Adafactor(
        [weight],
        min_dim_size_to_factor=smallest,
        clipping_threshold=arguments.get("clipping_threshold", 1.0),
        scale_by_parameter=arguments.get("multiply_by_parameter_scale", True),
    )


def original_learning_rate(row: dict, step: int) -> float:
    """Where no rate is given the original takes min(1/sqrt(t + 1), 0.01), and 1/20 of it without parameter scale."""
    if row["learning_rate"] is not None:
        return row["learning_rate"]
    return min(1 / math.sqrt(step + 1), 0.01) * (1 if row["kwargs"].get("multiply_by_parameter_scale", True) else 0.05)


def test_adafactor_equals_the_original_step_by_step(shared: Path) -> None:
    answers = adafactor_answers(shared)
    assert len(answers) == 18
    for row in answers:
        weight = torch.nn.Parameter(torch.tensor(row["result"]["start"]))
        optimizer = as_ours(weight, row)
        for step, (gradient, expected) in enumerate(zip(row["result"]["grads"], row["result"]["params"], strict=True)):
            weight.grad = torch.tensor(gradient)
            optimizer.param_groups[0]["lr"] = original_learning_rate(row, step)
            optimizer.step()
            wanted = torch.tensor(expected)
            torch.testing.assert_close(weight.data, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def test_means_decay_as_in_the_original(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "golden/mesh.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["kind"] == "decay" and row["offset"] == 0]
    for step, decay in zip(row["steps"], row["result"], strict=True):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = Adafactor([weight])
        optimizer.bind(whole_layout([("weight", weight)]))
        optimizer.load_state({"weight": {"second_moment": torch.ones(2)}}, update_count=step)
        weight.grad = torch.zeros(2)
        optimizer.step()
        assert optimizer.local_state()["weight"]["second_moment"][0].item() == pytest.approx(decay, rel=1e-6, abs=1e-12)


def test_the_state_of_a_factored_matrix_is_a_row_and_a_column() -> None:
    weight = torch.nn.Parameter(torch.randn(130, 140))
    optimizer = create_optimizer(OptimizerSettings(), [weight])
    weight.grad = torch.randn(130, 140)
    optimizer.step()
    assert {name: tuple(value.shape) for name, value in optimizer.replicated_state().items()} == {
        "0/row": (130,),
        "0/column": (140,),
    }
    assert optimizer.local_state() == {}


def test_a_missing_gradient_counts_as_zero() -> None:
    weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizers = [Adafactor([weight], min_dim_size_to_factor=2) for weight in weights]
    weights[1].grad = torch.zeros(4, 4)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(weights[0], weights[1])


def test_adamw_is_that_of_pytorch() -> None:
    weights = [torch.nn.Parameter(torch.ones(7)) for _ in range(2)]
    ours = AdamW([weights[0]], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.01)
    theirs = torch.optim.AdamW([weights[1]], lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.01)
    for step in range(5):
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            weight.grad = torch.arange(7.0) - step
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)


def scaled_adamw(weight: Tensor, gradients: list[Tensor], rate: float, decay: float) -> Tensor:
    """AdamW with a rate scaled by RMS(w), written out in double precision."""
    weight, first, second = weight.double(), torch.zeros(()), torch.zeros(())
    for count, gradient in enumerate(gradients, start=1):
        scale = max(float(weight.square().mean().sqrt()), 1e-3)
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        corrected = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        weight = weight * (1 - rate * decay) - rate * scale * corrected
    return weight


@pytest.mark.parametrize("size", [3.0, 1e-5, 0.0])
def test_the_rate_of_adamw_rms_is_scaled_by_the_size_of_each_matrix(size: float) -> None:
    starts = [size * value for value in (torch.randn(5, 8), torch.randn(9), torch.randn(1))]
    gradients = [[torch.randn_like(start) for start in starts] for _ in range(6)]
    weights = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = create_optimizer(OptimizerSettings("adamw_rms", weight_decay=0.1), weights)
    optimizer.param_groups[0]["lr"] = 0.02
    for of_step in gradients:
        for weight, gradient in zip(weights, of_step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    for weight, start, *of_weight in zip(weights, starts, *gradients, strict=True):
        expected = scaled_adamw(start, of_weight, 0.02, 0.1)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_clipped_by_the_norm_of_all_together(name: str) -> None:
    pairs = []
    for clip, factor in ((1.0, 1.0), (None, 1 / 13)):
        weights = [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))]
        optimizer = create_optimizer(OptimizerSettings(name, clip_gradient_norm=clip), weights)
        weights[0].grad, weights[1].grad = torch.full((4, 4), 3.0 * factor), torch.full((4,), 2.5 * factor)
        optimizer.step()
        pairs.append((weights, optimizer.gradient_norm))
    (clipped, norm), (scaled, _) = pairs
    assert norm == pytest.approx(13.0)  # of 16 times 3 squared and 4 times 2.5 squared
    for one, other in zip(clipped, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_changes_nothing(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = create_optimizer(OptimizerSettings(name), [weight])
    weight.grad = torch.tensor([1.0, float("inf"), 0.0, 0.0])
    optimizer.step()
    assert math.isinf(optimizer.gradient_norm)
    assert weight.tolist() == [1.0] * 4
    assert not any(value.any() for state in optimizer.local_state().values() for value in state.values())
    assert optimizer.update_count == 0


def test_what_an_optimizer_has_not_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ConfigError, match=r"optimizer\.name=adamw"):
        create_optimizer(OptimizerSettings(weight_decay=0.1), [weight])
    with pytest.raises(UnknownNameError, match="'adamw'"):
        create_optimizer(OptimizerSettings(name="adam"), [weight])


# ---- tensors cut into partitions -------------------------------------------------------------------------------------


@dataclass
class Meeting:
    """Sums over ranks that are threads of this process."""

    ranks: int
    tensors: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.ranks, timeout=30)
        self.lock = threading.Lock()

    def reduce(self, sums: Tensor) -> Tensor:
        with self.lock:
            self.tensors.append(sums)
        self.barrier.wait()
        total = torch.stack(self.tensors).sum(0)
        if self.barrier.wait() == 0:
            self.tensors.clear()
        self.barrier.wait()
        return sums.copy_(total)


@dataclass(frozen=True)
class ThreadLayout(Layout):
    """A partition map whose ranks are threads."""

    meeting: Meeting | None = None

    def reduce(self, sums: Tensor) -> Tensor:
        assert self.meeting is not None
        return self.meeting.reduce(sums)


def partitions(values: dict[str, Tensor], edges: list[int]) -> list[ThreadLayout]:
    """The values as one flat vector, cut at `edges`; every partition has some padding at its end."""
    meeting = Meeting(len(edges) - 1)
    flat = torch.cat([value.reshape(-1) for value in values.values()])
    layouts = []
    for low, high in itertools.pairwise(edges):
        fragments, begin = [], 0
        for name, value in values.items():
            first, last = max(low, begin), min(high, begin + value.numel())
            place = (first - begin, last - first, first - low) if first < last else (0, 0, 0)
            fragments.append(Fragment(name, tuple(value.shape), value.numel(), *place))
            begin += value.numel()
        holder = torch.nn.Parameter(torch.cat([flat[low:high], torch.zeros(3)]))
        layouts.append(ThreadLayout((holder,), (tuple(fragments),), meeting=meeting))
    return layouts


def random_values(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradients_of_step(step: int) -> dict[str, Tensor]:
    """Gradients of very different sizes, some rows and one whole tensor zero."""
    gradients = {name: value * 10.0 ** (index - 4) for index, (name, value) in enumerate(random_values(step).items())}
    gradients["embedding"][step % 3 :: 3] = 0.0
    return gradients | {"norm": torch.zeros(6)} if step == 1 else gradients


def make(name: str, tensors: list[Tensor]) -> Adafactor | AdamW:
    return create_optimizer(OptimizerSettings(name=name, min_dim_size_to_factor=4), tensors)


def step_whole(
    name: str, steps: range, start: dict[str, Tensor], state: dict | None = None, frozen: frozenset[str] = frozenset()
) -> tuple[dict, dict]:
    """Weights and state after steps on whole tensors."""
    weights = {key: torch.nn.Parameter(value.clone()) for key, value in start.items()}
    optimizer = make(name, list(weights.values()))
    optimizer.bind(whole_layout(weights.items()))
    if state is not None:
        optimizer.load_state(state, steps.start)
    optimizer.frozen = frozen
    for step in steps:
        for key, gradient in gradients_of_step(step).items():
            weights[key].grad = gradient
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
    local = {
        key: {kind: v.clone().view(SHAPES[key]) for kind, v in s.items()} for key, s in optimizer.local_state().items()
    }
    for path, value in optimizer.replicated_state().items():
        local.setdefault(path.split("/")[0], {})[path.split("/")[1]] = value.clone()
    return {key: weight.detach() for key, weight in weights.items()}, local


def step_cut(
    name: str,
    steps: range,
    start: dict[str, Tensor],
    edges: list[int],
    state: dict | None = None,
    frozen: frozenset[str] = frozenset(),
) -> tuple[list[ThreadLayout], list[Adafactor | AdamW]]:
    """Partitions and their optimizers after steps in threads, one a rank."""
    layouts = partitions(start, edges)
    optimizers = [make(name, list(layout.holders)) for layout in layouts]

    def run(layout: ThreadLayout, optimizer: Adafactor | AdamW) -> None:
        optimizer.bind(layout)
        if state is not None:
            optimizer.load_state(state, steps.start)
        optimizer.frozen = frozen
        (holder,) = layout.holders
        for step in steps:
            gradients = gradients_of_step(step)
            holder.grad = torch.zeros_like(holder)
            for fragment in layout.local():
                piece(holder.grad, fragment).copy_(cut(gradients[fragment.name], fragment))
            optimizer.param_groups[0]["lr"] = 0.1
            optimizer.step()

    with ThreadPoolExecutor(len(layouts)) as pool:
        list(pool.map(run, layouts, optimizers))
    return layouts, optimizers


def assembled(layouts: list[ThreadLayout]) -> dict[str, Tensor]:
    weights = {name: torch.full(shape, torch.nan) for name, shape in SHAPES.items()}
    for layout in layouts:
        for fragment in layout.local():
            flat = weights[fragment.name].view(-1)
            flat[fragment.start : fragment.start + fragment.length] = piece(layout.holders[0], fragment)
    return weights


TOTAL = sum(math.prod(shape) for shape in SHAPES.values())


def random_edges(ranks: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [0, *sorted(draw.randrange(TOTAL + 1) for _ in range(ranks - 1)), TOTAL]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(8))
def test_an_update_does_not_depend_on_where_tensors_are_cut(name: str, seed: int) -> None:
    start = random_values(100)
    expected, _ = step_whole(name, range(4), start)
    layouts, _ = step_cut(name, range(4), start, random_edges(1 + seed % 5, seed))
    for key, value in assembled(layouts).items():
        torch.testing.assert_close(value, expected[key], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("edges", [[0, 7, 7, TOTAL, TOTAL], [0, TOTAL - 1, TOTAL], [0, 3, 4, 5, TOTAL]])
def test_ranks_may_hold_nothing_or_a_part_of_a_row(edges: list[int]) -> None:
    start = random_values(100)
    expected, _ = step_whole("adafactor", range(3), start)
    layouts, _ = step_cut("adafactor", range(3), start, edges)
    for key, value in assembled(layouts).items():
        torch.testing.assert_close(value, expected[key], rtol=2e-6, atol=2e-6)


def test_factors_are_equal_on_all_ranks() -> None:
    _, optimizers = step_cut("adafactor", range(3), random_values(100), random_edges(4, 1))
    first = optimizers[0].replicated_state()
    assert set(first) == {
        f"{key}/{kind}" for key in ("embedding", "query", "cube", "deep", "output") for kind in ("row", "column")
    }
    for optimizer in optimizers[1:]:
        for path, value in optimizer.replicated_state().items():
            assert torch.equal(value, first[path])


@pytest.mark.parametrize("name", NAMES)
def test_state_moves_between_any_two_cuts(name: str) -> None:
    start = random_values(100)
    expected, _ = step_whole(name, range(6), start)
    half, state = step_whole(name, range(3), start)
    layouts, _ = step_cut(name, range(3, 6), half, random_edges(3, 5), state)
    for key, value in assembled(layouts).items():
        torch.testing.assert_close(value, expected[key], rtol=2e-6, atol=2e-6)


FROZEN = frozenset({"query", "norm", "one", "output"})


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_and_their_state_stay_and_the_others_do_not_notice(name: str) -> None:
    start = random_values(100)
    before, state = step_whole(name, range(3), start)
    plain, plain_state = step_whole(name, range(3, 5), before, state)
    frozen, frozen_state = step_whole(name, range(3, 5), before, state, FROZEN)
    for key in SHAPES:
        kept = key in FROZEN
        assert torch.equal(frozen[key], before[key] if kept else plain[key]), key
        for kind, value in (state if kept else plain_state)[key].items():
            assert torch.equal(frozen_state[key][kind], value), (key, kind)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_freezing_does_not_depend_on_where_tensors_are_cut(name: str, seed: int) -> None:
    before, state = step_whole(name, range(3), random_values(100))
    expected, _ = step_whole(name, range(3, 6), before, state, FROZEN)
    layouts, optimizers = step_cut(name, range(3, 6), before, random_edges(2 + seed, seed), state, FROZEN)
    for key, value in assembled(layouts).items():
        torch.testing.assert_close(value, expected[key], rtol=2e-6, atol=2e-6)
        assert key not in FROZEN or torch.equal(value, before[key])
    squares = sum(
        float(value.double().square().sum()) for key, value in gradients_of_step(5).items() if key not in FROZEN
    )
    for optimizer in optimizers:
        assert optimizer.gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_a_parameter_that_is_frozen_at_first_begins_as_adamw_begins() -> None:
    """Its first moments are corrected for one update, not for as many as the others had."""
    pairs = [[torch.nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2)]
    ours = create_optimizer(OptimizerSettings("adamw"), pairs[0])
    theirs = torch.optim.AdamW(pairs[1], lr=1e-3, weight_decay=0.0)
    for step in range(6):
        ours.frozen = frozenset({"1"} if step < 4 else ())
        for weights in pairs:
            for weight in weights:
                weight.grad = torch.arange(3.0) - step
        if step < 4:
            pairs[1][1].grad = None
        ours.step()
        theirs.step()
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_padding_of_a_partition_stays_zero() -> None:
    for name in NAMES:
        layouts, _ = step_cut(name, range(2), random_values(100), random_edges(2, 3))
        assert not any(layout.holders[0][-3:].any() for layout in layouts)


def test_state_of_another_optimizer_or_model_is_refused() -> None:
    start = random_values(100)
    _, state = step_whole("adafactor", range(1), start)
    with pytest.raises(CheckpointError, match="'exp_avg' of parameter 'embedding'"):
        step_whole("adamw", range(1), start, state)
    state["query"]["row"] = torch.zeros(9)
    with pytest.raises(CheckpointError, match="another model"):
        step_whole("adafactor", range(1), start, state)
