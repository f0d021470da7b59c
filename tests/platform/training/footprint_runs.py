"""Counts what the engine really keeps, one case after the other, and prints it as JSON.

Run by test_footprint.py in a process of its own: DeepSpeed leaves its marks on a process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mixtura.platform.training.engine import Engine, create_engine, initialize_distributed_single_process
from mixtura.platform.training.optimizer import OptimizerSettings

WIDTH, LAYERS, ROWS = 160, 12, 4
BUCKET = 2 * WIDTH * WIDTH


class Layers(nn.Module):
    """Many matrices, large enough to factor, and some vectors: what a transformer's parameters look like."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes by address of all that these tensors lie in."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def live() -> dict[int, int]:
    """Everything that Python holds, with gradients."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    return storages([*tensors, *(one.grad for one in tensors if one.is_leaf)])


def state_of(engine: Engine) -> dict[int, int]:
    """Where the optimizer's masters and moments or factors lie."""
    optimizer: Any = engine._optimizer
    own = [value for value in vars(optimizer).values() if isinstance(value, Tensor)]
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return storages([*engine._layout.holders, *own, *moments])


def peak(work: Callable[[], None]) -> int:
    """The most that work has beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def case(stage: int, precision: str, optimizer: str) -> dict[str, Any]:
    """Counts of two microbatches and an update; the second step, when everything is allocated."""
    before = live()
    model = Layers()
    engine = create_engine(
        model,
        optimizer=OptimizerSettings(name=optimizer),
        zero_stage=stage,
        precision=precision,
        passthrough={"zero_optimization": {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}},
    )
    x = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    def backward() -> None:
        engine.begin_step(2)
        for _ in range(2):
            engine.backward(engine.forward(x=x).float().square().sum())

    def update() -> None:
        engine.step(1e-3)

    backward()
    update()
    parameters = storages(parameter.data for parameter in engine.module.parameters())
    state = {place: size for place, size in state_of(engine).items() if place not in parameters}
    persistent = {place: size for place, size in live().items() if place not in {**before, **parameters, **state}}
    result = {
        "stage": stage,
        "precision": precision,
        "optimizer": optimizer,
        "elements": sum(parameter.numel() for parameter in model.parameters()),
        "parameters": sum(parameters.values()),
        "state": sum(state.values()),
        "gradients_kept": sum(persistent.values()),
        "backward_peak": peak(backward),
        "update_peak": peak(update),
    }
    engine.close()
    return result


def main() -> None:
    initialize_distributed_single_process()
    cases = [tuple(argument.split(",")) for argument in sys.argv[1:]]
    counted = [case(int(stage), precision, optimizer) for stage, precision, optimizer in cases]
    sys.stdout.write("counted " + json.dumps(counted) + "\n")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    main()
