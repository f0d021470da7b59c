"""What a run takes, told beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.platform.orchestration.memory import lanes_for, rows_of_worker, savings
from mixtura.platform.orchestration.plan import Asked, Plan, as_plain, make_plan
from mixtura.platform.orchestration.tasks import load_recipe

BIG = ("model.size=11B", "training.precision=bf16")


def planned(*overrides: str, gpu: str = "h200", workers: int = 8, price: float | None = None) -> Plan:
    config = load_recipe("paper/multitask", overrides)
    return make_plan("paper/multitask", config, Asked(gpu, workers, 0.4, price))


@pytest.mark.parametrize(
    ("size", "parameters"), [("small", 60_506_624), ("11B", 11_307_321_344), ("v1_1-base", 247_577_856)]
)
def test_parameters_are_the_published_ones(size: str, parameters: int) -> None:
    plan = planned(f"model.size={size}")
    assert sum(plan.parts.values()) == as_plain(plan)["parameters"]["total"] == parameters


def test_only_adapters_and_norms_count_as_trained() -> None:
    values = as_plain(planned("model.size=small", "model.adapter_size=32"))["parameters"]
    # Of each of 12 layers: norm and two matrices of 512 x 32; 6 x 2 + 6 x 3 norms and two last ones.
    assert values["parts"]["adapters"] == 12 * (512 + 2 * 512 * 32)
    assert values["trained"] == values["parts"]["adapters"] + 32 * 512
    assert values["frozen"] == values["total"] - values["trained"]


def test_what_is_recommended_fits() -> None:
    for gpu in ("a100-40", "a100-80", "h100", "h200", "b200"):
        for workers in (8, 16, 64):
            plan = planned(*BIG, gpu=gpu, workers=workers)
            best = plan.recommended()
            if best is None:
                assert not any(fit.fits for fit in plan.stages())
                continue
            config = load_recipe("paper/multitask", [*BIG, *plan.overrides(best.setting)])
            again = make_plan("paper/multitask", config, Asked(gpu, workers, 0.4, None))
            assert again.setting == best.setting
            assert again.fit(again.setting).fits
            assert again.overrides(again.setting) == []


def test_the_largest_model_needs_its_state_divided() -> None:
    stages = {fit.setting.stage: fit.memory for fit in planned(*BIG, workers=64).stages()}
    # 11.3e9 parameters: bf16 weights of 22.6 GB whole, fp32 masters of 45.2 GB over 64 workers.
    assert stages[1].parameters == stages[2].parameters == 2 * 11_307_321_344
    assert stages[3].parameters == pytest.approx(2 * 11_307_321_344 / 64, rel=0.01)
    assert stages[1].gradients > 64 * stages[2].gradients
    assert not planned(*BIG, gpu="v100", workers=8).fit(planned(*BIG).setting).fits


def test_time_and_money_follow_from_the_flops() -> None:
    plan = planned("model.size=base", "training.precision=bf16", "training.steps=1000", workers=4, price=2.5)
    cost = plan.cost(activation_checkpointing=False)
    assert cost["step_s"] == pytest.approx(plan.flops.step / (4 * 989e12 * 0.4))
    assert cost["money"] == pytest.approx(1000 * cost["step_s"] / 3600 * 4 * 2.5)
    assert plan.cost(activation_checkpointing=True)["step_s"] == pytest.approx(cost["step_s"] * 4 / 3, rel=0.03)


def test_positions_and_epochs_are_those_of_the_recipe() -> None:
    run = as_plain(planned("training.steps=1000"))["run"]
    assert run["encoder_positions"] == run["decoder_positions"] == 1000 * 128 * 512
    (squad,) = [task for task in run["tasks"] if task["task"] == "squad"]
    assert squad["size"] == 87_599
    assert squad["epochs"] == pytest.approx(128_000 * squad["share of examples"] / 87_599)
    joined = as_plain(planned("model.architecture=prefix_lm", "training.steps=1000"))["run"]
    assert (joined["encoder_positions"], joined["decoder_positions"]) == (0, 1000 * 128 * 1024)


def test_sizes_that_only_the_data_tells_are_left_out() -> None:
    plan = make_plan("quickstart", load_recipe("quickstart"), Asked("cpu", 2, 0.4, None))
    assert {task["epochs"] for task in plan.tasks()} == {None}
    assert any("mixtura mixture show quickstart --tokens" in line for line in plan.assumptions())


def test_more_workers_than_lanes_are_given_lanes() -> None:
    config = load_recipe("paper/multitask")
    assert (lanes_for(config, 8), lanes_for(config, 12), lanes_for(config, 64)) == (8, 16, 64)
    assert [rows_of_worker(config, workers) for workers in (1, 3, 8, 12, 64)] == [128, 48, 16, 16, 2]


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no GPU 'h20'; nearest: 'h200'"):
        planned(gpu="h20")
    with pytest.raises(ConfigError, match="129 workers cannot share training.global_batch_size 128"):
        planned(workers=129)
    with pytest.raises(ConfigError, match="an MFU of 1.5"):
        make_plan("quickstart", load_recipe("quickstart"), Asked("cpu", 2, 1.5, None))


def test_a_stage_that_does_not_run_is_said_to_run_as_another() -> None:
    plan = planned("training.precision=bf16", "training.zero_stage=0")
    assert [fit.setting.stage for fit in plan.stages()] == [1, 2, 3]
    assert any("bf16 at ZeRO stage 0 runs as stage 1" in line for line in plan.assumptions())


def test_a_gpu_without_bf16_is_said_to_have_none() -> None:
    assert any("v100 has no bf16" in line for line in planned("training.precision=bf16", gpu="v100").assumptions())
    assert not any("bf16: set" in line for line in planned(gpu="v100").assumptions())


def test_savings_are_differences_between_plans() -> None:
    plan = planned(*BIG)
    found = {one.override: one.saved for one in savings(plan.config, 8, on_gpu=True)}
    before = plan.fit(plan.setting).memory.total
    half = replace(plan.setting, microbatch=4)
    assert found["training.microbatch_size=4"] == before - plan.fit(half).memory.total > 0
    assert {"model.activation_checkpointing=true", "training.zero_stage=2", "training.zero_stage=3"} < found.keys()
    assert list(found.values()) == sorted(found.values(), reverse=True)
