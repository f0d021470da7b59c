"""What a run will take, told before anything is spent and without reading any data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mixtura.platform.config import Config
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.devices import Device, device
from mixtura.platform.orchestration.memory import STAGES, Memory, Planned, Setting, lanes_for, rows_of_worker, savings
from mixtura.platform.orchestration.mixture import declared_table, needs_data
from mixtura.platform.training.deepspeed_settings import effective_stage

if TYPE_CHECKING:
    from mixtura.models.t5.flops import Flops

_POSITIONS_WORTH_A_PASS = 4096
"""Positions of a forward pass below which a GPU waits for its next kernel more than it computes."""
_MOST_WORKERS = 4096


@dataclass(frozen=True)
class Asked:
    """On what, and at which price."""

    gpu: str
    workers: int
    mfu: float
    """Share of the peak that matrix products reach; what is computed twice counts as reached."""
    price: float | None
    """For one GPU and hour."""


@dataclass(frozen=True)
class Fit:
    """A setting with what it takes of a device."""

    setting: Setting
    memory: Memory
    free_bytes: float
    """Of the device, with its overhead; below 0 it does not fit."""

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.free_bytes >= 0


@dataclass(frozen=True)
class Plan:
    """All of it."""

    recipe: str
    asked: Asked
    planned: Planned
    device: Device
    flops: Flops
    """Of the forward pass of a global batch."""

    @property
    def config(self) -> Config:
        """The recipe's settings."""
        return self.planned.config

    # ---- what is trained on ------------------------------------------------------------------------------------------

    @property
    def positions(self) -> tuple[int, int]:
        """Encoder and decoder positions of a step, padding included."""
        rows = self.config.training.global_batch_size
        return rows * self.planned.encoder_length, rows * self.planned.decoder_length

    @property
    def parts(self) -> dict[str, int]:
        """Parameters of each part of the model."""
        return parameters_by_part({**self.planned.weights.trained, **self.planned.weights.frozen})

    def tasks(self) -> list[dict[str, Any]]:
        """Share, examples and epochs of each task; with packing a row has at least one example, so these are the
        fewest."""
        examples = self.config.training.steps * self.config.training.global_batch_size
        unknown = set(needs_data(self.config))
        return [
            {
                "task": row["task"],
                "size": row["size"],
                "share of examples": None if unknown else row["share of examples"],
                "examples": None if unknown else round(row["share of examples"] * examples),
                "epochs": None if unknown or row["size"] is None else row["share of examples"] * examples / row["size"],
            }
            for row in declared_table(self.config)
        ]

    # ---- memory ------------------------------------------------------------------------------------------------------

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.name != "cpu"

    @property
    def setting(self) -> Setting:
        """The recipe's own."""
        return self.planned.setting(self.asked.workers)

    def fit(self, setting: Setting) -> Fit:
        """What a setting takes."""
        memory = self.planned.memory(setting, on_gpu=self.on_gpu)
        free = self.device.memory_bytes - self.device.overhead_bytes - memory.total
        return Fit(setting, memory, free)

    def stages(self) -> list[Fit]:
        """The recipe's settings at each ZeRO stage that its precision runs at."""
        runs = sorted({effective_stage(stage, self.config.training.precision).stage for stage in STAGES})
        return [self.fit(replace(self.setting, stage=stage)) for stage in runs]

    def recommended(self) -> Fit | None:
        """The recipe's settings if they fit and compute nothing twice; else the first that fits of: nothing computed
        twice before something is, low stages before high ones, large microbatches before small ones, those too small
        to keep a GPU busy last. None where nothing fits."""
        own = [] if self.setting.activation_checkpointing else [self.setting]
        return next((fit for setting in (*own, *self._choices()) if (fit := self.fit(setting)).fits), None)

    def workers_needed(self) -> int | None:
        """The fewest workers with which something fits, doubling; None if there is no such number."""
        workers = self.asked.workers
        while workers < min(_MOST_WORKERS, self.config.training.global_batch_size):
            workers *= 2
            if replace(self, asked=replace(self.asked, workers=workers)).recommended() is not None:
                return workers
        return None

    def _choices(self) -> Iterator[Setting]:
        rows, stages = rows_of_worker(self.config, self.asked.workers), [fit.setting.stage for fit in self.stages()]
        positions = self.planned.encoder_length + self.planned.decoder_length
        enough = min(rows, max(1, _POSITIONS_WORTH_A_PASS // positions))
        sizes = [rows, *(size for power in range(12, -1, -1) if (size := 2**power) < rows)]
        for large in (True, False):
            for checkpointing in (False, True):
                for stage in stages:
                    for size in sizes:
                        if (size >= enough) == large:
                            yield Setting(stage, self.asked.workers, size, checkpointing)

    # ---- time --------------------------------------------------------------------------------------------------------

    def step_s(self, *, activation_checkpointing: bool) -> float:
        """Seconds of a step."""
        peak = self.device.flops(self.config.training.precision)
        computed = self.flops.hardware(activation_checkpointing=activation_checkpointing)
        return computed / (self.asked.workers * peak * self.asked.mfu)

    def cost(self, *, activation_checkpointing: bool) -> dict[str, float | None]:
        """Seconds a step, hours, GPU hours and money of all steps."""
        step_s = self.step_s(activation_checkpointing=activation_checkpointing)
        hours = step_s * self.config.training.steps / 3600
        gpu_hours = hours * self.asked.workers
        money = None if self.asked.price is None else gpu_hours * self.asked.price
        return {"step_s": step_s, "hours": hours, "gpu_hours": gpu_hours, "money": money}

    # ---- words -------------------------------------------------------------------------------------------------------

    def overrides(self, setting: Setting) -> list[str]:
        """The settings to add to the command, where they differ from the recipe's."""
        training, model = self.config.training, self.config.model
        given = {
            "executor.workers": (setting.workers, self.config.executor.workers),
            "data.lanes": (lanes_for(self.config, setting.workers), self.config.data.lanes),
            "training.zero_stage": (setting.stage, effective_stage(training.zero_stage, training.precision).stage),
            "training.microbatch_size": (setting.microbatch, training.microbatch_size),
            "model.activation_checkpointing": (setting.activation_checkpointing, model.activation_checkpointing),
            "executor.gpus_per_worker": (1.0 if self.on_gpu else 0.0, self.config.executor.gpus_per_worker),
        }
        return [f"{key}={_word(value)}" for key, (value, recipe) in given.items() if value != recipe]

    def assumptions(self) -> list[str]:
        """What the numbers rest on."""
        config, device = self.config, self.device
        peak, overhead = device.flops(config.training.precision) / 1e12, device.overhead_bytes / 2**30
        counted = "fp32" if device.bf16_flops is None else config.training.precision
        what = "CUDA, its libraries, NCCL and fragments" if self.on_gpu else "Python and its libraries"
        unverified = "peaks on this GPU are unverified" if self.on_gpu else "peaks are estimates"
        conditional = {
            f"sizes that only the data tells are left out; mixtura mixture show {self.recipe} --tokens reads it": bool(
                needs_data(config)
            ),
            f"{device.name} has no bf16: set training.precision=fp32, or take another GPU": (
                device.bf16_flops is None and config.training.precision == "bf16"
            ),
            "model.compile=true keeps less than this: activations are an upper bound": config.model.compile,
            "rows are packed and hold one example or more: examples and epochs are the fewest": (
                config.data.packing != "none"
            ),
            "data.decoder_row=measured is not known without data: counted with data.targets_length": (
                config.data.decoder_row == "measured"
            ),
            f"{config.data.lanes} lanes are too few for {self.asked.workers} workers; more make another stream, and so "
            "another run": lanes_for(config, self.asked.workers) != config.data.lanes,
        }
        return [
            f"memory is what tensors take, from formulas that tests hold to what is kept on a CPU; {unverified}",
            f"beside it {overhead:.1f} GiB are assumed for {what}",
            f"time is at {self.asked.mfu:.0%} of {peak:g} TFLOP/s (dense {counted}, by the maker); traffic between "
            "workers, data and checkpoints are not in it",
            *filter(None, [effective_stage(config.training.zero_stage, config.training.precision).note]),
            *(line for line, holds in conditional.items() if holds),
        ]


def make_plan(recipe: str, config: Config, asked: Asked) -> Plan:
    """The plan of a recipe."""
    from mixtura.models.t5.flops import flops_per_step

    rows = config.training.global_batch_size
    if not 1 <= asked.workers <= rows:
        raise ConfigError(
            f"{asked.workers} workers cannot share training.global_batch_size {rows}: give 1 to {rows} workers"
        )
    if not 0 < asked.mfu <= 1:
        raise ConfigError(f"an MFU of {asked.mfu:g} is no share of a peak: give a number above 0, at most 1")
    planned = Planned.of(config)
    flops = flops_per_step(planned.model, rows, planned.encoder_length, planned.decoder_length)
    return Plan(recipe, asked, planned, device(asked.gpu, asked.workers), flops)


def parameters_by_part(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Parameters by what they are for, in the order of the model.

    >>> parameters_by_part({"embedding.weight": (8, 2), "encoder.layers.0.adapter.wi.weight": (3, 2)})
    {'embedding': 16, 'adapters': 6}
    """
    import math

    parts: dict[str, int] = {}
    for name, shape in shapes.items():
        part = "adapters" if ".adapter" in name else name.partition(".")[0]
        parts[part] = parts.get(part, 0) + math.prod(shape)
    return parts


def as_plain(plan: Plan) -> dict[str, Any]:
    """The whole plan in plain values: bytes, seconds, numbers."""
    own, best = plan.setting, plan.recommended()
    weights, config = plan.planned.weights, plan.config
    encoder, decoder = plan.positions
    steps = config.training.steps
    return {
        "recipe": plan.recipe,
        "gpu": asdict(plan.device),
        "workers": plan.asked.workers,
        "mfu": plan.asked.mfu,
        "price": plan.asked.price,
        "model": asdict(plan.planned.model),
        "parameters": {
            "total": weights.trained_elements + weights.frozen_elements,
            "trained": weights.trained_elements,
            "frozen": weights.frozen_elements,
            "parts": plan.parts,
        },
        "run": {
            "steps": steps,
            "rows": config.training.global_batch_size,
            "rows_of_worker": rows_of_worker(config, plan.asked.workers),
            "encoder_positions": encoder * steps,
            "decoder_positions": decoder * steps,
            "tasks": plan.tasks(),
        },
        "memory": {
            "recipe": _fit(plan.fit(own)),
            "stages": [_fit(fit) for fit in plan.stages()],
            "savings": [asdict(one) for one in savings(config, plan.asked.workers, on_gpu=plan.on_gpu)],
        },
        "flops": {
            **asdict(plan.flops),
            "step": plan.flops.step,
            "hardware": plan.flops.hardware(activation_checkpointing=own.activation_checkpointing),
        },
        "cost": plan.cost(activation_checkpointing=own.activation_checkpointing),
        "recommended": None
        if best is None
        else {
            **_fit(best),
            "overrides": plan.overrides(best.setting),
            "cost": plan.cost(activation_checkpointing=best.setting.activation_checkpointing),
        },
        "workers_needed": plan.workers_needed() if best is None else None,
        "assumptions": plan.assumptions(),
    }


def _fit(fit: Fit) -> dict[str, Any]:
    return {
        **asdict(fit.setting),
        "bytes": {**asdict(fit.memory), "total": fit.memory.total},
        "fits": fit.fits,
        "free_bytes": fit.free_bytes,
    }


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
