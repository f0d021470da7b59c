"""The engine: DeepSpeed at ZeRO stages 0 to 3, with 1, 2 and 3 workers, does what a plain loop does.

The runs are made once for all tests, by engine_runs.py: a T5 with dropout on packed rows, which ranks share unevenly,
in one or two microbatches more or less from step to step.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixtura.platform.errors import CheckpointError, ConfigError, TrainingError
from mixtura.platform.training.engine import PlainEngine, create_engine
from mixtura.platform.training.optimizer import OptimizerSettings
from mixtura.platform.training.snapshot import Snapshot

torch.set_num_threads(1)

# About two minutes of two cores; a busy machine may need many times as long.
pytestmark = pytest.mark.timeout(1500)

SCRIPT = Path(__file__).with_name("engine_runs.py")
LOSS_TOLERANCE = 1e-4
WEIGHT_TOLERANCE = 1e-5
MOVE_TOLERANCE = 5e-7
BF16_WORKERS_TOLERANCE = 0.03
"""Nats a token between bf16 runs that add up microbatches in another order."""
BF16_TOLERANCE = 0.2
"""Nats a token between bf16 and fp32, over the first steps at a high learning rate."""


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_runs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_runs"] = module
    spec.loader.exec_module(module)
    return module


FEW, OPTIMIZERS = _script().FEW, _script().OPTIMIZERS
STAGES_AND_WORKERS = [(stage, workers) for stage in (0, 1, 2, 3) for workers in (1, 2)]


class Runs:
    """What the processes wrote."""

    def __init__(self, folder: Path, stdout: str) -> None:
        self.folder = folder
        self.stdout = stdout
        self.script = _script()

    def ranks(self, name: str) -> list[Any]:
        paths = sorted(self.folder.glob(f"{name}.?.pt"))
        assert paths, f"no process wrote {name}"
        return [self.script.load(path) for path in paths]

    def losses(self, name: str) -> Tensor:
        """Loss of every step in nats a token of the global batch."""
        return torch.tensor([part["losses"] for part in self.ranks(name)]).sum(0)

    def norms(self, name: str) -> Tensor:
        return torch.tensor(self.ranks(name)[0]["norms"])

    def snapshots(self, name: str) -> list[Snapshot]:
        return self.ranks(name)

    def state(self, name: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], int]:
        return self.script.whole(self.snapshots(name))

    def weights(self, name: str) -> dict[str, Tensor]:
        return self.state(name)[0]


@pytest.fixture(scope="module")
def runs(repository: Path) -> Iterator[Runs]:
    folder = Path(tempfile.mkdtemp(prefix="engine-runs-"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(repository / "src"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stderr
    yield Runs(folder, done.stdout)
    shutil.rmtree(folder)


def worst_relative(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest over the parameters of |w - expected| / |expected|."""
    assert weights.keys() == expected.keys()
    return max(float((weights[name] - value).norm() / value.norm()) for name, value in expected.items())


# ---- fp32 against the plain loop -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "workers", "optimizer"),
    [
        (stage, workers, optimizer)
        for stage, workers in STAGES_AND_WORKERS
        for optimizer in (OPTIMIZERS if workers == 2 else OPTIMIZERS[:2])
    ],
)
def test_fifty_losses_and_the_weights_equal_a_plain_loop(runs: Runs, stage: int, workers: int, optimizer: str) -> None:
    name = f"{stage}x{workers}-{optimizer}"
    losses, expected = runs.losses(name), runs.losses(f"plain-{optimizer}")
    assert len(losses) == 50
    torch.testing.assert_close(losses, expected, rtol=0, atol=LOSS_TOLERANCE)
    torch.testing.assert_close(runs.norms(name), runs.norms(f"plain-{optimizer}"), rtol=1e-4, atol=0)
    assert worst_relative(runs.weights(f"{name}-at-50"), runs.weights(f"plain-{optimizer}-at-50")) < WEIGHT_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_comparison_trains_in_earnest(runs: Runs, optimizer: str) -> None:
    losses = runs.losses(f"plain-{optimizer}")
    assert losses[0] - losses[-5:].mean() > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_the_boundary_of_two_partitions_cuts_a_factored_matrix_inside_a_row(runs: Runs, stage: int) -> None:
    first, second = ({piece.name: piece for piece in part["partition"]} for part in runs.ranks(f"{stage}x2-adafactor"))
    (cut,) = first.keys() & second.keys()
    assert min(first[cut].shape) >= 128
    assert first[cut].length + second[cut].length == first[cut].numel
    assert second[cut].start % first[cut].shape[-1] != 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1x3-adamw", "2x3-adafactor", "3x3-adamw_rms"])
def test_three_workers_do_the_same(runs: Runs, name: str) -> None:
    plain = f"plain-{name.split('-')[1]}"
    torch.testing.assert_close(runs.losses(name), runs.losses(plain)[:FEW], rtol=0, atol=LOSS_TOLERANCE)
    assert worst_relative(runs.weights(f"{name}-at-{FEW}"), runs.weights(f"{plain}-at-{FEW}")) < WEIGHT_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_to_memory_does_the_same(runs: Runs, stage: int) -> None:
    """The optimizer's part at any stage, the weights too at stage 3; without a GPU the memory is the same one."""
    name = f"{stage}x2-offloaded"
    torch.testing.assert_close(runs.losses(name), runs.losses("plain-adafactor")[:FEW], rtol=0, atol=LOSS_TOLERANCE)
    torch.testing.assert_close(runs.norms(name), runs.norms("plain-adafactor")[:FEW], rtol=1e-4, atol=0)
    assert (
        worst_relative(runs.weights(f"{name}-at-{FEW}"), runs.weights(f"plain-adafactor-at-{FEW}")) < WEIGHT_TOLERANCE
    )


@pytest.mark.slow
def test_pytorchs_adafactor_in_the_same_place_fails_this_comparison(runs: Runs) -> None:
    partitioned, whole = runs.losses("2x2-stock"), runs.losses("plain-stock")
    assert (partitioned - whole).abs().max() > 100 * LOSS_TOLERANCE
    assert (partitioned - runs.losses("plain-adafactor")[:FEW]).abs().max() > 100 * LOSS_TOLERANCE
    assert (
        worst_relative(runs.weights(f"2x2-stock-at-{FEW}"), runs.weights(f"plain-stock-at-{FEW}"))
        > 100 * WEIGHT_TOLERANCE
    )


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), STAGES_AND_WORKERS)
def test_what_is_frozen_in_a_step_stays_and_counts_for_nothing(runs: Runs, stage: int, workers: int) -> None:
    """With clipping, by the norm of what is trained: the layers in the last steps, what is around them in all."""
    name = f"{stage}x{workers}-unfreezing"
    norms, expected = runs.norms(name), runs.norms("plain-unfreezing")
    assert norms.min() > 0.2
    torch.testing.assert_close(norms, expected, rtol=1e-4, atol=0)
    begin = dict(runs.script.new_model().named_parameters())
    middle, state, _ = runs.state(f"{name}-at-4")
    for key, value in middle.items():
        frozen = ".layers." in key
        assert torch.equal(value, begin[key]) == frozen, key
        assert bool(state[key]["exp_avg"].any()) != frozen
        assert int(state[key]["updates"]) == (0 if frozen else 4)
    assert worst_relative(middle, runs.weights("plain-unfreezing-at-4")) < WEIGHT_TOLERANCE
    assert worst_relative(runs.weights(f"{name}-at-8"), runs.weights("plain-unfreezing-at-8")) < WEIGHT_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), STAGES_AND_WORKERS)
def test_tied_embeddings_and_parameters_that_are_never_trained(runs: Runs, stage: int, workers: int) -> None:
    name = f"{stage}x{workers}-tied"
    torch.testing.assert_close(runs.losses(name), runs.losses("plain-tied"), rtol=0, atol=LOSS_TOLERANCE)
    weights = runs.weights(f"{name}-at-8")
    assert worst_relative(weights, runs.weights("plain-tied-at-8")) < WEIGHT_TOLERANCE
    begin = runs.script.new_model(runs.script.TIED)
    for frozen in runs.script.FROZEN:
        assert torch.equal(weights[frozen], begin.get_parameter(frozen))
        owners = [[f.name for f in snapshot.fragments].count(frozen) for snapshot in runs.snapshots(f"{name}-at-8")]
        assert owners == [1, 0][:workers]


@pytest.mark.slow
def test_at_stage_3_every_matrix_is_divided_and_a_single_element_is_on_one_rank(runs: Runs) -> None:
    first, second = ({piece.name: piece for piece in part["partition"]} for part in runs.ranks("3x2-adafactor"))
    assert first.keys() - second.keys() == {"scale.weight"}
    for name, piece in second.items():
        assert first[name].length == piece.start == -(-piece.numel // 2)
        assert piece.start + piece.length == piece.numel


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), STAGES_AND_WORKERS)
def test_adafactor_has_no_full_size_second_moment(runs: Runs, stage: int, workers: int) -> None:
    """Rows and columns of the matrices, twice: the means, and how many squares are in each; all else in full."""
    factored = plain = 0
    for value in runs.script.new_model().parameters():
        if value.ndim == 2 and min(value.shape) >= 128:
            factored += sum(value.shape)
        else:
            plain += value.numel()
    for rank in runs.ranks(f"{stage}x{workers}-adafactor"):
        names = len(list(runs.script.new_model().parameters()))
        assert 8 * factored <= rank["bytes"] <= 8 * factored + 4 * plain + 4 * names
    numel = sum(value.numel() for value in runs.script.new_model().parameters())
    share = 1 if stage == 0 else workers
    for rank in runs.ranks(f"{stage}x{workers}-adamw"):
        assert rank["bytes"] >= 8 * numel / share


# ---- bf16 ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), STAGES_AND_WORKERS[2:])
def test_bf16_stays_near_a_plain_bf16_loop_and_near_fp32(runs: Runs, stage: int, workers: int) -> None:
    losses = runs.losses(f"{stage}x{workers}-bf16")
    torch.testing.assert_close(losses, runs.losses("plain-bf16"), rtol=0, atol=BF16_WORKERS_TOLERANCE)
    torch.testing.assert_close(losses, runs.losses("plain-adafactor")[:FEW], rtol=0, atol=BF16_TOLERANCE)


@pytest.mark.slow
def test_bf16_begins_with_the_fp32_weights_unrounded(runs: Runs) -> None:
    for name, value in runs.script.new_model().named_parameters():
        for run in ("plain-bf16", "1x2-bf16", "2x2-bf16", "3x2-bf16"):
            assert torch.equal(runs.weights(f"{run}-at-0")[name], value)


@pytest.mark.slow
def test_bf16_at_stage_0_is_stage_1_and_says_so(runs: Runs) -> None:
    assert torch.equal(runs.losses("0x1-bf16"), runs.losses("1x1-bf16"))
    (rank,) = runs.ranks("0x1-bf16")
    assert "runs as stage 1" in rank["notes"][0]
    assert runs.ranks("1x1-bf16")[0]["notes"] == ()


# ---- state -----------------------------------------------------------------------------------------------------------


def _moves() -> list[tuple[str, str]]:
    names = []
    for workers in (1, 2):
        names += [(name, source) for name, source, _, _ in _script().moves(workers)]
    return names


@pytest.mark.slow
@pytest.mark.parametrize(("name", "source"), _moves())
def test_a_run_goes_on_at_another_stage_and_number_of_workers(runs: Runs, name: str, source: str) -> None:
    weights, state, step = runs.state(f"{name}-at-10")
    source_weights, source_state, source_step = runs.state(f"{source}-at-10")
    assert step == source_step == 10
    assert all(torch.equal(weights[key], value) for key, value in source_weights.items())
    assert state.keys() == source_state.keys()
    for key, tensors in source_state.items():
        assert all(torch.equal(state[key][kind], value) for kind, value in tensors.items())
    assert worst_relative(runs.weights(f"{name}-at-{FEW}"), runs.weights(f"{source}-at-{FEW}")) < MOVE_TOLERANCE


@pytest.mark.slow
def test_every_element_is_given_by_exactly_one_rank(runs: Runs) -> None:
    numel = sum(value.numel() for value in runs.script.new_model().parameters())
    for stage, workers in STAGES_AND_WORKERS:
        snapshots = runs.snapshots(f"{stage}x{workers}-adamw-at-10")
        assert sum(fragment.length for snapshot in snapshots for fragment in snapshot.fragments) == numel
        assert all(set(fragment.tensors) == {"master", "exp_avg", "exp_avg_sq"} for fragment in snapshots[0].fragments)
    assert runs.snapshots("0x2-adamw-at-10")[1].fragments == []


@pytest.mark.slow
def test_factors_are_given_by_rank_0_alone(runs: Runs) -> None:
    first, second = runs.snapshots("2x2-adafactor-at-10")
    assert first.replicated["embedding.weight/row"].shape == (256,)
    assert first.replicated["embedding.weight/column"].shape == (132,)
    assert second.replicated == {}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "workers"), STAGES_AND_WORKERS)
def test_a_gradient_that_is_not_finite_changes_nothing(runs: Runs, stage: int, workers: int) -> None:
    name = f"{stage}x{workers}-not-finite"
    assert all("not finite" in rank["message"] for rank in runs.ranks(name))
    before, after = runs.state(f"{name}-before"), runs.state(f"{name}-after")
    assert before[2] == after[2] == 2
    assert all(torch.equal(after[0][key], value) for key, value in before[0].items())
    assert all(torch.equal(after[1][key]["row"], value["row"]) for key, value in before[1].items() if "row" in value)


@pytest.mark.slow
def test_nothing_is_written_to_standard_output(runs: Runs) -> None:
    assert runs.stdout == ""


# ---- the plain engine, and what both refuse --------------------------------------------------------------------------


class Squares(nn.Module):
    """A model small enough to follow by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype) @ self.weight


def one_step(rows: list[list[Tensor]], learning_rate: float = 0.1) -> tuple[PlainEngine, float]:
    engine = PlainEngine(Squares(), optimizer=OptimizerSettings("adamw"))
    engine.begin_step(len(rows))
    for microbatch in rows:
        engine.backward(engine.forward(x=torch.stack(microbatch)).square().sum() / 3)
    return engine, engine.step(learning_rate)


def test_the_gradient_is_the_sum_over_microbatches_of_any_size() -> None:
    rows = list(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    engine, norm = one_step([rows])
    for cut in (1, 2):
        other, other_norm = one_step([rows[:cut], rows[cut:]])
        assert other_norm == pytest.approx(norm, rel=1e-6)
        torch.testing.assert_close(other.module.weight, engine.module.weight)


def test_a_step_needs_the_announced_microbatches() -> None:
    engine = PlainEngine(Squares())
    with pytest.raises(TrainingError, match="0 of 0"):
        engine.step(0.1)
    with pytest.raises(TrainingError, match="weight zero"):
        engine.begin_step(0)
    engine.begin_step(2)
    loss = engine.forward(x=torch.ones(1, 2)).sum()
    engine.backward(loss)
    with pytest.raises(TrainingError, match="1 of 2"):
        engine.step(0.1)
    engine.begin_step(1)
    engine.backward(engine.forward(x=torch.ones(1, 2)).sum())
    loss = engine.forward(x=torch.ones(1, 2)).sum()
    with pytest.raises(TrainingError, match="more microbatches than the 1"):
        engine.backward(loss)


def test_a_parameter_to_freeze_must_exist() -> None:
    engine = PlainEngine(Squares())
    engine.begin_step(1)
    engine.backward(engine.forward(x=torch.ones(1, 2)).sum())
    with pytest.raises(TrainingError, match="'encoder.wi' is to be frozen"):
        engine.step(0.1, frozenset({"weight", "encoder.wi"}))


def test_the_learning_rate_is_that_of_the_call() -> None:
    rows = [torch.ones(2)]
    still, _ = one_step([rows], learning_rate=0.0)
    moved, _ = one_step([rows], learning_rate=0.1)
    assert torch.equal(still.module.weight, Squares().weight)
    assert not torch.equal(moved.module.weight, Squares().weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plain_snapshot_restores_every_bit(precision: str) -> None:
    engine = PlainEngine(Squares(), optimizer=OptimizerSettings("adamw"), precision=precision)
    engine.begin_step(1)
    engine.backward(engine.forward(x=torch.eye(2)).float().square().sum())
    engine.step(0.1)
    snapshot = engine.snapshot()
    ((name, fragment),) = ((fragment.name, fragment) for fragment in snapshot.fragments)
    whole = {key: value.view(2, 2) for key, value in fragment.tensors.items()}
    other = PlainEngine(Squares(), optimizer=OptimizerSettings("adamw"), precision=precision)
    counts = {"updates": snapshot.replicated[f"{name}/updates"]}
    other.restore({name: whole.pop("master")}, {name: whole | counts}, snapshot.optimizer_step)
    assert other.optimizer_step == 1
    assert torch.equal(other.module.weight, engine.module.weight)
    again = other.snapshot().fragments[0].tensors
    assert all(torch.equal(again[key], value) for key, value in fragment.tensors.items())


def test_a_snapshot_is_a_copy() -> None:
    engine = PlainEngine(Squares())
    master = engine.snapshot().fragments[0].tensors["master"]
    with torch.no_grad():
        engine.module.weight.zero_()
    assert master.tolist() == [1.0, -2.0, 0.5, 3.0]


def test_weights_of_another_model_are_refused() -> None:
    engine = PlainEngine(Squares())
    with pytest.raises(CheckpointError, match="'weight' is not in the checkpoint"):
        engine.restore({})
    with pytest.raises(CheckpointError, match="another model"):
        engine.restore({"weight": torch.zeros(3, 2)})


def test_restoring_without_a_state_begins_anew() -> None:
    engine, _ = one_step([[torch.ones(2)]])
    engine.restore({"weight": torch.zeros(2, 2)})
    assert engine.optimizer_step == 0
    assert not engine.snapshot().fragments[0].tensors["exp_avg"].any()


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = Squares()
    model.weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        PlainEngine(model)


def test_fp16_is_refused_by_both_engines() -> None:
    with pytest.raises(ConfigError, match="65,504"):
        PlainEngine(Squares(), precision="fp16")
    with pytest.raises(ConfigError, match="65,504"):
        create_engine(Squares(), precision="fp16")


def test_deepspeed_without_a_process_group_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another test of this process may have made one.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    with pytest.raises(TrainingError, match="initialize_distributed_single_process"):
        create_engine(Squares())
