"""What DeepSpeed is told: its configuration for a stage and precision, and which of its settings are refused.

Some of DeepSpeed's defaults would change T5's mathematics without a word (it clips gradients to norm 1.0 and averages
them over ranks), so everything that matters is said explicitly here. A recipe may pass other settings through, such as
offloading to the machine's memory, except those that contradict what the platform decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mixtura.platform.errors import ConfigError

_REFUSED = {
    "fp16": "T5's activations exceed the largest fp16 number (65,504); set training.precision to bf16 or fp32",
    "bf16": "set training.precision",
    "bfloat16": "set training.precision",
    "amp": "set training.precision",
    "torch_autocast": "set training.precision",
    "data_types": "gradients are accumulated in fp32, so that microbatches of any size give the same sum",
    "optimizer": "DeepSpeed's optimizers are not T5's; set optimizer.name",
    "scheduler": "the learning rate is a function of the step; set schedule.name",
    "gradient_clipping": "set optimizer.clip_gradient_norm",
    "gradient_accumulation_steps": "it follows from training.microbatch_size",
    "managed_gradient_accumulation": "the training loop says where a step ends",
    "train_batch_size": "set training.global_batch_size",
    "train_micro_batch_size_per_gpu": "set training.microbatch_size",
    "gradient_allreduce_op": "gradients are summed over ranks, as the loss is divided by one global number",
    "gradient_predivide_factor": "gradients are summed over ranks, as the loss is divided by one global number",
    "prescale_gradients": "gradients are summed over ranks, as the loss is divided by one global number",
    "zero_allow_untested_optimizer": "the platform's optimizers are tested under ZeRO",
    "zero_optimization.stage": "set training.zero_stage",
    "zero_optimization.round_robin_gradients": (
        "it puts gradients where DeepSpeed's own partition map says others are, which corrupts the weights"
    ),
    "zero_optimization.sub_group_size": "an update is of all parameters together, as their norms are",
    "zero_optimization.zenflow": "the platform's optimizers have not been shown to be exact with it",
    "compile": "compiling through ZeRO's hooks is not supported",
}

_OFFLOADING = ("zero_optimization.offload_optimizer", "zero_optimization.offload_param")

_BUCKET_ELEMENTS = 50_000_000

_ALL = 10**18
"""More elements than any model has."""


@dataclass(frozen=True)
class StageAndPrecision:
    """What runs; `note` says where it is not what was asked for."""

    stage: int
    precision: str
    note: str | None = None


def effective_stage(zero_stage: int, precision: str) -> StageAndPrecision:
    """What a stage and precision run as.

    >>> effective_stage(0, "bf16").stage
    1
    """
    if precision not in {"fp32", "bf16"}:
        reason = _REFUSED["fp16"] if precision in {"fp16", "float16"} else "known are fp32 and bf16"
        raise ConfigError(f"training.precision {precision!r} is refused: {reason}")
    if zero_stage not in {0, 1, 2, 3}:
        raise ConfigError(f"training.zero_stage {zero_stage} does not exist: use 0, 1, 2 or 3")
    if zero_stage == 0 and precision == "bf16":
        return StageAndPrecision(
            1, precision, "bf16 at ZeRO stage 0 runs as stage 1: DeepSpeed counts one optimizer step too many at 0"
        )
    return StageAndPrecision(zero_stage, precision)


def _settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        yield prefix + key, value
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")


def _reason(path: str, value: Any) -> str | None:
    """Why a setting is refused, if it is."""
    if path in _OFFLOADING and not _to_memory(value):
        return "only `{device: cpu}` has been shown to be exact with the platform's optimizers"
    return _REFUSED.get(path)


def _to_memory(offloading: Any) -> bool:
    """Whether an offloading block says no more than that the machine's memory is used, wholly, and how."""
    if not isinstance(offloading, Mapping):
        return False
    others = {key: value for key, value in offloading.items() if key not in {"device", "pin_memory", "fast_init"}}
    return offloading.get("device") in {"cpu", "none"} and others in ({}, {"ratio": 1.0})


def refuse_contradictions(passthrough: Mapping[str, Any]) -> None:
    """Raise a ConfigError that names every setting the platform decides itself, and why."""
    wrong = [f"  {path}: {reason}" for path, value in _settings(passthrough) if (reason := _reason(path, value))]
    if wrong:
        raise ConfigError("\n".join(["training.deepspeed has settings that cannot be passed through:", *wrong]))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def deepspeed_settings(
    what: StageAndPrecision,
    *,
    num_parameters: int,
    passthrough: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Gradients are reduced in fp32 in bf16 runs too (`communication_data_type` may be passed through to change that),
    and the buckets are not larger than the model. The optimizers compute the gradient's norm, refuse one that is not
    finite, and clip: where DeepSpeed can leave that out it does. At stage 3 it can only average over ranks, and the
    engine multiplies by their number.
    """
    passthrough = passthrough or {}
    refuse_contradictions(passthrough)
    offloads = "offload_optimizer" in passthrough.get("zero_optimization", {})
    if "offload_param" in passthrough.get("zero_optimization", {}) and what.stage < 3:
        raise ConfigError(
            f"training.deepspeed has zero_optimization.offload_param, but at training.zero_stage {what.stage} every "
            "worker needs all weights at all times: set training.zero_stage=3, or take it out"
        )
    bucket = max(2, min(_BUCKET_ELEMENTS, num_parameters + num_parameters % 2))
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "gradient_allreduce_op": "mean" if what.stage == 3 else "sum",
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": what.stage,
            "round_robin_gradients": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "sub_group_size": _ALL,
        },
    }
    if what.precision == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": False}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if what.stage == 2 or (what.stage == 1 and what.precision == "fp32"):
        settings["zero_optimization"]["compute_grad_norm"] = offloads  # which needs it
    return _merged(settings, passthrough)
