"""What DeepSpeed is told, and what nobody may tell it."""

from __future__ import annotations

from typing import Any

import pytest

from mixtura.platform.errors import ConfigError
from mixtura.platform.training.deepspeed_settings import deepspeed_settings, effective_stage


def settings(passthrough: dict[str, Any] | None = None, stage: int = 1) -> dict[str, Any]:
    return deepspeed_settings(effective_stage(stage, "fp32"), num_parameters=1001, passthrough=passthrough)


def test_deepspeed_never_clips_gradients() -> None:
    """It would by default; the optimizers clip, where they are asked to."""
    assert settings()["gradient_clipping"] == 0.0


def test_gradients_are_summed_over_ranks_where_deepspeed_can() -> None:
    assert [settings(stage=stage)["gradient_allreduce_op"] for stage in range(4)] == ["sum", "sum", "sum", "mean"]


def test_buckets_are_not_larger_than_the_model() -> None:
    assert settings()["zero_optimization"]["reduce_bucket_size"] == 1002


def test_other_settings_are_passed_through() -> None:
    merged = settings({"zero_optimization": {"overlap_comm": True}, "communication_data_type": "bf16"})
    assert merged["zero_optimization"]["overlap_comm"] is True
    assert merged["zero_optimization"]["stage"] == 1
    assert merged["communication_data_type"] == "bf16"


@pytest.mark.parametrize(
    ("passthrough", "reason"),
    [
        ({"fp16": {"enabled": True}}, "65,504"),
        ({"optimizer": {"type": "Adam"}}, "optimizer.name"),
        ({"gradient_clipping": 1.0}, "optimizer.clip_gradient_norm"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "corrupts the weights"),
        ({"zero_optimization": {"stage": 3}}, "training.zero_stage"),
        ({"zero_optimization": {"sub_group_size": 1000}}, "all parameters together"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "device: cpu"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "device: cpu"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "device: cpu"),
        ({"train_batch_size": 8}, "training.global_batch_size"),
    ],
)
def test_a_setting_that_contradicts_the_platform_is_refused_with_the_reason(passthrough: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        settings(passthrough)


def test_offloading_to_memory_is_passed_through() -> None:
    both = {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "cpu"}}
    assert both.items() <= settings({"zero_optimization": both}, stage=3)["zero_optimization"].items()
    del both["offload_param"]
    for stage in (1, 2):
        assert settings({"zero_optimization": both}, stage)["zero_optimization"]["compute_grad_norm"] is True
        assert settings(stage=stage)["zero_optimization"]["compute_grad_norm"] is False


def test_weights_can_only_be_offloaded_where_they_are_divided() -> None:
    with pytest.raises(ConfigError, match="zero_stage=3"):
        settings({"zero_optimization": {"offload_param": {"device": "cpu"}}}, stage=2)


def test_all_refused_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)gradient_clipping.*scheduler"):
        settings({"gradient_clipping": 1.0, "scheduler": {}})


def test_bf16_at_stage_0_runs_as_stage_1_and_says_so() -> None:
    what = effective_stage(0, "bf16")
    assert what.stage == 1
    assert what.note is not None
    assert "stage 1" in what.note


def test_fp16_and_stages_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="65,504"):
        effective_stage(1, "fp16")
    with pytest.raises(ConfigError, match="zero_stage 4"):
        effective_stage(4, "fp32")
