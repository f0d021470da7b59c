"""Trains a small T5 with and without DeepSpeed in several processes, and writes down what happened.

    python engine_runs.py FOLDER

One process is the reference (`PlainEngine`), the others are the ranks of worlds of 1, 2 and 3, which meet in files and
open no port. Every rank's part of a run is a file in FOLDER, written whole; a run that goes on from another one waits
for its files. test_engine.py reads them.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from mixtura.models.t5.config import T5Config
from mixtura.models.t5.initialization import initialize
from mixtura.models.t5.model import T5, Head, logits
from mixtura.platform import random_bits
from mixtura.platform.errors import TrainingError
from mixtura.platform.training import engine as engines
from mixtura.platform.training.engine import Engine, PlainEngine, create_engine, initialize_distributed_single_process
from mixtura.platform.training.loss import linear_cross_entropy
from mixtura.platform.training.optimizer import OptimizerSettings
from mixtura.platform.training.snapshot import Fragment, FragmentState, Snapshot

CONFIG = T5Config(
    vocab_size=256,
    d_model=132,
    d_kv=33,
    d_ff=144,
    num_heads=4,
    num_layers=1,
    num_decoder_layers=1,
    feed_forward="gated-gelu",
    tie_embeddings=False,
)
TIED = replace(CONFIG, feed_forward="relu", tie_embeddings=True)
FROZEN = ("encoder.layers.0.feed_forward.wo.weight", "decoder.final_norm.scale")
ROWS, INPUTS, TARGETS = 5, 16, 10
STEPS, FEW, HALF = 50, 14, 10
LEARNING_RATES = {"adafactor": 0.05, "adamw": 0.001, "adamw_rms": 0.02, "stock": 0.05}
OPTIMIZERS = ("adafactor", "adamw", "adamw_rms")
STAGES = (0, 1, 2, 3)
PATIENCE_S = 1200.0
LINEAR = nn.functional.linear


# ---- model and data --------------------------------------------------------------------------------------------------


class OneElement(nn.Module):
    """A parameter that is smaller than the number of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Model(T5):
    """A T5 whose logits have a scale that is learned, too."""

    def forward(self, *inputs: torch.Tensor, head: Head = logits, **features: Any) -> Any:
        return super().forward(*inputs, **features, head=lambda hidden, weight: head(self.scale(hidden), weight))


def new_model(config: T5Config = CONFIG) -> Model:
    model = Model(config)
    initialize(model, seed=3)
    model.scale = OneElement()
    return model


def batch_of(step: int) -> dict[str, torch.Tensor]:
    """Packed rows of two segments and padding; frequent tokens are learned quickly, and rows differ in length."""
    draw = np.random.default_rng(step)
    tokens = np.minimum(draw.zipf(1.5, size=(ROWS, INPUTS + TARGETS)) + 1, CONFIG.vocab_size - 1)
    encoder, targets = torch.from_numpy(tokens[:, :INPUTS]), torch.from_numpy(tokens[:, INPUTS:])
    encoder_segments, decoder_segments = segments(INPUTS, draw), segments(TARGETS, draw)
    inputs = torch.cat([torch.zeros(ROWS, 1, dtype=targets.dtype), targets[:, :-1]], dim=1)
    keys = random_bits.derive(random_bits.key("dropout", 0), step, np.arange(ROWS)).view(np.int64)
    return {
        "encoder_input_tokens": encoder * (encoder_segments > 0),
        "encoder_segment_ids": encoder_segments,
        "decoder_input_tokens": inputs * (decoder_segments > 0),
        "decoder_segment_ids": decoder_segments,
        "dropout_keys": torch.from_numpy(keys),
        "targets": targets * (decoder_segments > 0),
        "weights": (decoder_segments > 0).int(),
    }


def segments(length: int, draw: np.random.Generator) -> torch.Tensor:
    first, end = draw.integers(2, length // 2, size=ROWS), draw.integers(length // 2 + 2, length + 1, size=ROWS)
    position = np.arange(length)[None]
    return torch.from_numpy(1 + (position >= first[:, None]) - (position >= end[:, None]) * 2).clamp(min=0).int()


def microbatches(step: int, rank: int, world_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """This rank's rows, two or three at a time; a rank that has none left gives a row of weight zero."""
    batch, size = batch_of(step), 2 + step % 2
    rows = list(range(rank, ROWS, world_size))
    most = -(-ROWS // world_size)
    for begin in range(0, most, size):
        here = rows[begin : begin + size]
        part = {name: value[here or [0]] for name, value in batch.items()}
        yield part if here else part | {"weights": torch.zeros_like(part["weights"])}


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one rank saw: its share of each step's loss, and the norm of the whole gradient."""

    losses: list[float]
    norms: list[float]


def train(
    engine: Engine,
    steps: range,
    learning_rate: float,
    rank: int,
    world_size: int,
    frozen_at: Callable[[int], frozenset[str]] = lambda _: frozenset(),
) -> Run:
    run = Run([], [])
    for step in steps:
        number = int(batch_of(step)["weights"].sum())
        parts = list(microbatches(step, rank, world_size))
        engine.begin_step(len(parts))
        here = 0.0
        for part in parts:
            loss, per_token = forward(engine, part)
            engine.backward(loss / number)
            here += float(per_token.sum()) / number
        run.norms.append(engine.step(learning_rate, frozen_at(step)))
        run.losses.append(here)
    return run


def forward(engine: Engine, part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of a microbatch, and each token's."""
    head = partial(
        linear_cross_entropy, targets=part.pop("targets").long(), weights=part.pop("weights").float(), z_loss=1e-4
    )
    loss, per_token = engine.forward(**part, head=head)
    return loss, per_token


class StockAdafactor(torch.optim.Adafactor):
    """PyTorch's Adafactor as it is: it takes what it is handed for the parameters themselves."""

    update_count = 0
    state_bytes = 0
    frozen: frozenset[str] = frozenset()
    gradient_norm = math.nan

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.gradient_norm = 0.0

    def bind(self, layout: Any) -> None:
        """It has no use for the partition map."""

    def local_state(self) -> dict[str, Any]:
        return {}

    def replicated_state(self) -> dict[str, Any]:
        return {}


@contextlib.contextmanager
def stock_adafactor() -> Iterator[None]:
    ours = engines.create_optimizer
    engines.create_optimizer = lambda settings, parameters: StockAdafactor(parameters)  # type: ignore[assignment]
    yield
    engines.create_optimizer = ours


@dataclass
class Process:
    """One process: where it writes, and how it makes an engine."""

    folder: Path
    rank: int
    world_size: int
    make: Callable[..., Engine]

    def write(self, name: str, value: Any) -> None:
        path = self.folder / f"{name}.{self.rank}.pt"
        torch.save(value, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    def read(self, name: str, ranks: int) -> list[Any]:
        """What all ranks of a run wrote, as soon as it is there."""
        paths = [self.folder / f"{name}.{rank}.pt" for rank in range(ranks)]
        deadline = time.monotonic() + PATIENCE_S
        while not all(path.exists() for path in paths):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} was not written by {ranks} ranks")
            time.sleep(0.1)
        return [load(path) for path in paths]

    def train(self, engine: Engine, steps: range, optimizer: str) -> Run:
        return train(engine, steps, LEARNING_RATES[optimizer], self.rank, self.world_size)

    def run(self, name: str, steps: int, optimizer: str = "adafactor", **kwargs: Any) -> None:
        """A whole run, with its state at steps HALF and FEW and at the end."""
        engine = self.make(new_model(), optimizer=OptimizerSettings(optimizer), **kwargs)
        if "precision" in kwargs:
            self.write(f"{name}-at-0", engine.snapshot())
        parts, begin = [], 0
        for end in sorted({HALF, FEW, steps}):
            parts.append(self.train(engine, range(begin, end), optimizer))
            self.write(f"{name}-at-{end}", engine.snapshot())
            begin = end
        losses = [loss for part in parts for loss in part.losses]
        norms = [norm for part in parts for norm in part.norms]
        facts = {"partition": engine.partition(), "notes": engine.notes, "bytes": engine.optimizer_bytes}
        self.write(name, {"losses": losses, "norms": norms, **facts})
        engine.close()

    def go_on(self, name: str, source: str, source_ranks: int, optimizer: str, **kwargs: Any) -> None:
        """Take the state of another run at step HALF, and go on to step FEW."""
        weights, state, step = whole(self.read(f"{source}-at-{HALF}", source_ranks))
        model = new_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        engine = self.make(model, optimizer=OptimizerSettings(optimizer), **kwargs)
        engine.restore(weights, state, step)
        self.write(f"{name}-at-{HALF}", engine.snapshot())
        self.train(engine, range(HALF, FEW), optimizer)
        self.write(f"{name}-at-{FEW}", engine.snapshot())
        engine.close()

    def tied(self, name: str, **kwargs: Any) -> None:
        """One matrix for the tokens of encoder and decoder and for the head, and some weights that are not trained."""
        model = new_model(TIED)
        for frozen in FROZEN:
            model.get_parameter(frozen).requires_grad_(False)
        engine = self.make(model, optimizer=OptimizerSettings(), **kwargs)
        run = self.train(engine, range(8), "adafactor")
        self.write(f"{name}-at-8", engine.snapshot())
        self.write(name, {"losses": run.losses})
        engine.close()

    def unfreezing(self, name: str, **kwargs: Any) -> None:
        """The layers are trained from step 4 on, and what is around them from the first; with clipping."""
        model = new_model()
        engine = self.make(model, optimizer=OptimizerSettings("adamw", clip_gradient_norm=0.2, epsilon=1e-6), **kwargs)
        layers = frozenset().union(*model.unfreezing_order[1:])
        norms: list[float] = []
        for begin, end in ((0, 4), (4, 8)):
            run = train(
                engine,
                range(begin, end),
                0.001,
                self.rank,
                self.world_size,
                lambda step: layers if step < 4 else frozenset(),
            )
            norms += run.norms
            self.write(f"{name}-at-{end}", engine.snapshot())
        self.write(name, {"norms": norms})
        engine.close()

    def not_finite(self, name: str, **kwargs: Any) -> None:
        """The last rank's loss is infinite in the third step."""
        engine = self.make(new_model(), optimizer=OptimizerSettings(), **kwargs)
        self.train(engine, range(2), "adafactor")
        self.write(f"{name}-before", engine.snapshot())
        engine.begin_step(1)
        part = next(microbatches(2, self.rank, self.world_size))
        engine.backward(forward(engine, part)[0] * (float("inf") if self.rank == self.world_size - 1 else 1.0))
        message = ""
        try:
            engine.step(0.1)
        except TrainingError as error:
            message = str(error)
        self.write(f"{name}-after", engine.snapshot())
        self.train(engine, range(2, 3), "adafactor")
        self.write(name, {"message": message})
        engine.close()


def load(path: Path) -> Any:
    with torch.serialization.safe_globals([Snapshot, FragmentState, Fragment]):
        return torch.load(path, weights_only=True)


def whole(snapshots: list[Snapshot]) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]], int]:
    """Whole weights and optimizer state from what all ranks gave."""
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    for snapshot in snapshots:
        for fragment in snapshot.fragments:
            for kind, values in fragment.tensors.items():
                whole = tensors.setdefault((fragment.name, kind), torch.full(fragment.shape, torch.nan))
                whole.view(-1)[fragment.start : fragment.start + values.numel()] = values
    for path, value in snapshots[0].replicated.items():
        name, _, kind = path.rpartition("/")
        tensors[name, kind] = value
    weights = {name: value for (name, kind), value in tensors.items() if kind == "master"}
    state: dict[str, dict[str, torch.Tensor]] = {}
    for (name, kind), value in tensors.items():
        if kind != "master":
            state.setdefault(name, {})[kind] = value
    return weights, state, snapshots[0].optimizer_step


# ---- what each process runs ------------------------------------------------------------------------------------------


def run_plain(folder: Path) -> None:
    process = Process(folder, 0, 1, PlainEngine)
    for optimizer in OPTIMIZERS:
        process.run(f"plain-{optimizer}", STEPS, optimizer)
    process.run("plain-bf16", FEW, "adafactor", precision="bf16")
    with stock_adafactor():
        process.run("plain-stock", FEW, "stock")
    process.tied("plain-tied")
    process.unfreezing("plain-unfreezing")


def make_deepspeed(model: torch.nn.Module, *, zero_stage: int, offload: bool = False, **kwargs: Any) -> Engine:
    zero: dict[str, Any] = {"offload_optimizer": {"device": "cpu"}} if offload else {}
    if zero_stage == 3:
        # Else no matrix would be divided: all of them are small.
        zero["stage3_param_persistence_threshold"] = 200
        if offload:
            zero["offload_param"] = {"device": "cpu"}
    return create_engine(model, zero_stage=zero_stage, passthrough={"zero_optimization": zero}, **kwargs)


def run_deepspeed(folder: Path, rank: int, world_size: int) -> None:
    if world_size == 1:
        initialize_distributed_single_process()
    else:
        store = dist.FileStore(str(folder / f"meeting-{world_size}"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    process = Process(folder, rank, world_size, make_deepspeed)
    if world_size == 3:
        process.run("1x3-adamw", FEW, "adamw", zero_stage=1)
        process.run("2x3-adafactor", FEW, "adafactor", zero_stage=2)
        process.run("3x3-adamw_rms", FEW, "adamw_rms", zero_stage=3)
        return
    for stage in STAGES:
        for optimizer in OPTIMIZERS if world_size == 2 else OPTIMIZERS[:2]:
            process.run(f"{stage}x{world_size}-{optimizer}", STEPS, optimizer, zero_stage=stage)
    for stage in STAGES:
        process.not_finite(f"{stage}x{world_size}-not-finite", zero_stage=stage)
        process.unfreezing(f"{stage}x{world_size}-unfreezing", zero_stage=stage)
        process.tied(f"{stage}x{world_size}-tied", zero_stage=stage)
    for stage in STAGES[1:] if world_size == 2 else STAGES:
        process.run(f"{stage}x{world_size}-bf16", FEW, "adafactor", zero_stage=stage, precision="bf16")
    if world_size == 2:
        with stock_adafactor():
            process.run("2x2-stock", FEW, "stock", zero_stage=2)
        for stage in STAGES[1:]:
            process.run(f"{stage}x2-offloaded", FEW, "adafactor", zero_stage=stage, offload=True)
    for name, source, source_ranks, optimizer in moves(world_size):
        process.go_on(name, source, source_ranks, optimizer, zero_stage=int(name[0]))
    assert nn.functional.linear is LINEAR, "an engine that was closed left DeepSpeed's linear in PyTorch"


def moves(world_size: int) -> Iterator[tuple[str, str, int, str]]:
    """Into each stage: from the next stage with the other number of workers, and from the one before with the same.

    Name of the run, the run it goes on from, that one's number of ranks, and the optimizer.
    """
    for stage in STAGES:
        for source_stage, source_ranks in (((stage + 1) % 4, 3 - world_size), ((stage + 3) % 4, world_size)):
            for optimizer in ("adafactor", "adamw"):
                source = f"{source_stage}x{source_ranks}-{optimizer}"
                yield f"{stage}x{world_size}-from-{source}", source, source_ranks, optimizer


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def main(folder: Path) -> int:
    # Imported once, for all processes that are forked from this one.
    engines._import_deepspeed()
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    processes = [start(run_plain, folder)]
    processes += [start(run_deepspeed, folder, rank, size) for size in (2, 1, 3) for rank in range(size)]
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1])))
