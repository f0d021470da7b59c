"""A training step of our T5 beside transformers' T5 with the same weights, tokens and optimizer.

    python benchmarks/training.py padded --size small            # the same padded batch: 8 rows of 512/114
    python benchmarks/training.py mixture --data-root DATA       # packed rows of a mixture beside padded batches of it
    python benchmarks/training.py overhead                       # ZeRO and Ray Train over a plain loop, one worker
    python benchmarks/training.py padded --device cuda --size base --rows 64 --precision bf16 --compile --attention flex

Run by hand on a quiet machine. The two are timed in turn, so that a machine whose speed drifts moves both; ratios are
the median of the rounds' own. On a CPU transformers' bf16 is a model whose weights are bf16, its fastest; on a GPU it
is nanoT5's recipe: fp32 weights, autocast, and torch.compile where asked for. Dropout is 0.1, Adafactor each's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixtura.models.t5 import SIZES, T5Config, TextToText, create_model, hf_config, hf_state, initialize
from mixtura.models.t5.flops import flops_per_step
from mixtura.platform.training.engine import PlainEngine
from mixtura.platform.training.loss import linear_cross_entropy

SHAPES = {**SIZES, "d256": T5Config(32128, 256, 64, 1024, 4, 4, 4)}
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Examples:
    """Token ids with 0 as padding, and the segments of packed rows."""

    inputs: Tensor
    targets: Tensor
    input_segments: Tensor
    target_segments: Tensor

    @classmethod
    def unpacked(cls, inputs: Tensor, targets: Tensor) -> Examples:
        """Rows of one example each."""
        return cls(inputs, targets, (inputs != 0).int(), (targets != 0).int())

    @property
    def real_tokens(self) -> int:
        """Positions that are no padding, of encoder and decoder."""
        return int((self.inputs != 0).sum() + (self.targets != 0).sum())

    @property
    def positions(self) -> int:
        """All positions, of encoder and decoder."""
        return self.inputs.numel() + self.targets.numel()

    def to(self, device: str) -> Examples:
        """On another device."""
        return Examples(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class Ours:
    """Our model with the plain engine: fp32 masters, gradients accumulated in fp32."""

    name = "ours"

    def __init__(self, model: TextToText, precision: str, device: str) -> None:
        self.engine = PlainEngine(model, precision=precision, device=torch.device(device))
        self.step = 0

    def forward(self, examples: Examples) -> Tensor:
        """The loss of the rows."""
        self.engine.begin_step(1)
        self.step += 1
        starts = examples.target_segments != examples.target_segments.roll(1, 1)
        starts[:, 0] = True
        shifted = examples.targets.roll(1, 1).masked_fill(starts, 0)
        loss, _ = self.engine.forward(
            encoder_input_tokens=examples.inputs,
            encoder_segment_ids=examples.input_segments,
            decoder_input_tokens=shifted,
            decoder_segment_ids=examples.target_segments,
            dropout_keys=torch.arange(len(shifted), device=shifted.device) + self.step * len(shifted),
            head=partial(
                linear_cross_entropy, targets=examples.targets, weights=(examples.targets != 0).int(), z_loss=1e-4
            ),
        )
        out: Tensor = loss / examples.targets.numel()
        return out

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        self.engine.backward(loss)

    def update(self) -> None:
        """The optimizer."""
        self.engine.step(LEARNING_RATE)


class Transformers:
    """transformers' model with the same weights and its Adafactor, as its users call it: mean loss, no z-loss."""

    name = "transformers"

    def __init__(self, model: TextToText, precision: str, device: str, *, compiled: bool) -> None:
        from transformers import T5Config as PeerConfig
        from transformers import T5ForConditionalGeneration
        from transformers.optimization import Adafactor

        config = PeerConfig(**hf_config(model.config))
        config.tie_word_embeddings = model.config.tie_embeddings
        peer = T5ForConditionalGeneration(config)
        peer.load_state_dict(hf_state(model.state_dict(), model.config), strict=False)
        peer = peer.to(device).train()
        self.autocast = precision == "bf16" and device == "cuda"
        if precision == "bf16" and not self.autocast:
            peer = peer.bfloat16()
        options = {"scale_parameter": True, "relative_step": False, "warmup_init": False}
        self.optimizer = Adafactor(peer.parameters(), lr=LEARNING_RATE, **options)
        self.model: Any = torch.compile(peer) if compiled else peer

    def forward(self, examples: Examples) -> Tensor:
        """The loss of the rows."""
        labels = examples.targets.masked_fill(examples.targets == 0, -100)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.autocast):
            loss: Tensor = self.model(
                input_ids=examples.inputs, attention_mask=(examples.inputs != 0).int(), labels=labels
            ).loss
        return loss

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """The optimizer."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


Contender = Ours | Transformers


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds, and what came out."""
    started = time.perf_counter()
    out = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, out


def step_seconds(contender: Contender, batches: Sequence[Examples], device: str) -> tuple[float, float, float]:
    """Seconds of forward, backward and update over some batches."""
    sums = [0.0, 0.0, 0.0]
    for batch in batches:
        forward, loss = timed(partial(contender.forward, batch), device)
        backward, _ = timed(partial(contender.backward, loss), device)
        update, _ = timed(contender.update, device)
        sums = [total + part for total, part in zip(sums, (forward, backward, update), strict=True)]
    return sums[0], sums[1], sums[2]


Work = tuple[Contender, Sequence[Examples]]


def compared(ours: Work, theirs: Work, rounds: int, device: str) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Seconds of each round, ours and theirs in turn, after one round to warm up."""
    return [(step_seconds(*ours, device), step_seconds(*theirs, device)) for _ in range(rounds + 1)][1:]


def show(title: str, ours: Work, theirs: Work, rounds: int, device: str) -> None:
    """Print medians of tokens for each second, and the ratios of the rounds."""
    measured = compared(ours, theirs, rounds, device)
    ratios = [sum(their) / sum(our) for our, their in measured]
    real = [sum(batch.real_tokens for batch in work[1]) for work in (ours, theirs)]
    positions = [sum(batch.positions for batch in work[1]) for work in (ours, theirs)]
    speedup = statistics.median(ratios) * real[0] / real[1]
    print(f"\n{title}")
    print(f"{'':<16}{'forward s':>11}{'backward s':>12}{'update s':>10}{'positions/s':>13}{'real tokens/s':>15}")
    for side, work in enumerate((ours, theirs)):
        parts = [statistics.median(one[side][part] for one in measured) for part in range(3)]
        total = statistics.median(sum(one[side]) for one in measured)
        print(
            f"{work[0].name:<16}{parts[0]:>11.3f}{parts[1]:>12.3f}{parts[2]:>10.3f}"
            f"{positions[side] / total:>13,.0f}{real[side] / total:>15,.0f}"
        )
    spread = f"{min(ratios) * real[0] / real[1]:.2f} ... {max(ratios) * real[0] / real[1]:.2f}"
    print(f"real tokens/s, ours over transformers': {speedup:.2f} [{spread}], {rounds} rounds")


def padded(arguments: argparse.Namespace) -> None:
    """The same batch, of full rows."""
    config = replace(SHAPES[arguments.size], dropout_rate=0.1)
    generator = torch.Generator().manual_seed(0)
    rows, (inputs, targets) = arguments.rows, arguments.lengths
    batch = Examples.unpacked(
        torch.randint(3, 32_000, (rows, inputs), generator=generator),
        torch.randint(3, 32_000, (rows, targets), generator=generator),
    ).to(arguments.device)
    for precision in arguments.precision:
        ours, theirs = contenders(config, precision, arguments)
        title = f"{arguments.size}, {rows} x {inputs}/{targets}, {precision}, {arguments.device}"
        batches = [batch] * arguments.steps
        show(title, (ours, batches), (theirs, batches), arguments.rounds, arguments.device)
        if arguments.device == "cuda":
            show_utilization(config, batch, (ours, theirs))
        if arguments.profile:
            profile(ours, batch, arguments.device)


def contenders(config: T5Config, precision: str, arguments: argparse.Namespace) -> tuple[Ours, Transformers]:
    """Both with the same weights."""
    computing = {"attention": arguments.attention, "compile": arguments.compile}
    model = create_model(config, **computing)
    initialize(model, 0)
    theirs = Transformers(model, precision, arguments.device, compiled=arguments.compile)
    return Ours(model, precision, arguments.device), theirs


def show_utilization(config: T5Config, batch: Examples, both: tuple[Ours, Transformers]) -> None:
    """Print the share of the matrix peak that this chip was measured to have."""
    peak = matrix_peak()
    (rows, encoder), decoder = batch.inputs.shape, batch.targets.shape[1]
    work = flops_per_step(config, rows, encoder, decoder).step
    print(f"measured peak of bf16 matrix products: {peak / 1e12:.0f} TFLOP/s")
    for contender in both:
        torch.cuda.reset_peak_memory_stats()
        seconds = min(sum(step_seconds(contender, [batch], "cuda")) for _ in range(5))
        memory = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"{contender.name:<16}{seconds * 1e3:9.1f} ms a step, {work / seconds / peak:6.1%} of it, {memory:.1f} GB"
        )


def matrix_peak() -> float:
    """FLOP/s of a product of two square bf16 matrices."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = min(timed(lambda: [left @ right for _ in range(10)], "cuda")[0] for _ in range(5))
    return 10 * 2 * 8192**3 / seconds


def profile(contender: Contender, batch: Examples, device: str) -> None:
    """Print what a step's time goes into."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        step_seconds(contender, [batch], device)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    for event in events[:25]:
        time_us = getattr(event, key)
        print(f"{time_us / 1e3:10.1f} ms {time_us / total:6.1%}  {event.count:5d} x {event.key[:80]}")


def mixture(arguments: argparse.Namespace) -> None:
    """Packed rows of a mixture beside the padded batches that the same examples make."""
    config = replace(SHAPES[arguments.size], dropout_rate=0.1)
    with tempfile.TemporaryDirectory() as folder:
        packed, examples = packed_and_padded(arguments, folder)
    tokens = sum(batch.real_tokens for batch in packed), sum(batch.real_tokens for batch in examples)
    assert tokens[0] == tokens[1], tokens
    shares = [1 - tokens[0] / sum(batch.positions for batch in batches) for batches in (packed, examples)]
    print(f"padding: packed {shares[0]:.0%}, padded to the longest of {arguments.rows} examples {shares[1]:.0%}")
    for precision in arguments.precision:
        ours, theirs = contenders(config, precision, arguments)
        title = f"{arguments.recipe}, {arguments.size}, {precision}: the same examples, packed and padded"
        show(title, (ours, packed), (theirs, examples), arguments.rounds, arguments.device)


def packed_and_padded(arguments: argparse.Namespace, folder: str) -> tuple[list[Examples], list[Examples]]:
    """Microbatches of packed rows, and the examples in them in batches of their own, both of `rows` rows."""
    from mixtura.platform.data.lanes import RankStream
    from mixtura.platform.data.stream import MixtureStream
    from mixtura.platform.orchestration.mixture import stream_spec
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.workspace import workspace

    inputs, targets = arguments.lengths
    overrides = [f"run.root={folder}", f"data.inputs_length={inputs}", f"data.targets_length={targets}"]
    overrides += [f"training.global_batch_size={arguments.rows}", "data.lanes=1", "executor.workers=1"]
    overrides += [] if arguments.data_root is None else [f"data.root={arguments.data_root}"]
    overrides += [] if arguments.vocabulary is None else [f"vocabulary.path={arguments.vocabulary}"]
    tree = load_recipe(arguments.recipe, [*overrides, *arguments.overrides])
    prepared = prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
    stream = MixtureStream(stream_spec(tree, prepared))
    stream.open()
    reader = RankStream(stream)
    packed, alone = [], []
    for _ in range(arguments.steps):
        features = {name: torch.from_numpy(value).long() for name, value in reader.next_batch().features.items()}
        rows = Examples(
            features["encoder_input_tokens"],
            features["decoder_target_tokens"],
            features["encoder_segment_ids"],
            features["decoder_segment_ids"],
        )
        packed.append(rows)
        alone += list(segments_of(rows))
    batches = [alone[first : first + arguments.rows] for first in range(0, len(alone), arguments.rows)]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return packed, [Examples.unpacked(*(pad(list(side)) for side in zip(*batch, strict=True))) for batch in batches]


def segments_of(rows: Examples) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of every example in packed rows."""
    for row in range(len(rows.inputs)):
        for segment in range(1, int(rows.input_segments[row].max()) + 1):
            yield (
                rows.inputs[row][rows.input_segments[row] == segment],
                rows.targets[row][rows.target_segments[row] == segment],
            )


def overhead(arguments: argparse.Namespace) -> None:
    """Seconds of a step: a plain loop, the engine with ZeRO in one process, and a worker of Ray Train.

    Alone, and with what a step waits for its batch: block builders of Ray take of the CPUs that the others build on
    between steps.
    """
    from mixtura.platform.tracking.records import TrainPoint, read_events

    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(arguments.rounds):
            for kind in ("plain", "inline", "ray"):
                name = f"{kind}-{round_number}"
                command = [sys.executable, "-m", "mixtura.platform.cli.main", "train", "quickstart"]
                command += [f"run.root={folder}", f"run.name={name}", f"training.steps={arguments.steps}"]
                command += ["evaluation.when=after", "evaluation.examples=1", "evaluation.test=false"]
                command += [f"executor.kind={'ray' if kind == 'ray' else 'inline'}", "executor.workers=1"]
                command += [*arguments.overrides]
                if kind == "plain":
                    seconds.setdefault(kind, []).append(plain_loop(folder, arguments))
                    continue
                subprocess.run(command, check=True, capture_output=True)
                points = [one for one in read_events(Path(folder) / name / "events") if isinstance(one, TrainPoint)]
                whole = [point.metrics["step_s"] for point in points[2:]]
                waited = [point.metrics["data_wait_s"] for point in points[2:]]
                seconds.setdefault(kind, []).append(
                    (statistics.median(a - b for a, b in zip(whole, waited, strict=True)), statistics.median(whole))
                )
    print(f"{'':<30}{'s a step':>10}{'over plain':>12}{'s with its batch':>18}{'over plain':>12}")
    titles = {"plain": "plain loop, no DeepSpeed", "inline": "ZeRO, one process", "ray": "ZeRO, a worker of Ray Train"}
    for kind, values in seconds.items():
        line = f"{titles[kind]:<30}"
        for part, width in ((0, 10), (1, 18)):
            ratios = [one[part] / plain[part] for one, plain in zip(values, seconds["plain"], strict=True)]
            line += (
                f"{statistics.median(one[part] for one in values):>{width}.3f}{statistics.median(ratios) - 1:>12.1%}"
            )
        print(line)
    print(json.dumps(seconds))


def plain_loop(folder: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step, alone and with its batch, of the same run without DeepSpeed, loop and reports."""
    from mixtura.platform.data.lanes import RankStream
    from mixtura.platform.data.stream import MixtureStream
    from mixtura.platform.data.vocabulary import Vocabulary
    from mixtura.platform.orchestration import assemble
    from mixtura.platform.orchestration.mixture import stream_spec
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.workspace import workspace

    torch.set_num_threads(arguments.threads)
    tree = load_recipe("quickstart", [f"run.root={folder}", "executor.workers=1", *arguments.overrides])
    prepared = prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
    stream = MixtureStream(stream_spec(tree, prepared))
    stream.open()
    reader, size = RankStream(stream), tree.training.microbatch_size
    config = assemble.model_config(tree.model, Vocabulary(str(prepared.vocabulary)).embedding_rows)
    ours = Ours(assemble.build_model(config, 0, tree.model), tree.training.precision, "cpu")
    times, whole = [], []
    for _ in range(arguments.steps):
        asked = time.perf_counter()
        features = {name: torch.from_numpy(value) for name, value in reader.next_batch().features.items()}
        started, rows = time.perf_counter(), len(features["encoder_input_tokens"])
        ours.engine.begin_step(-(-rows // size))
        begin, ours.engine.begin_step = ours.engine.begin_step, lambda _: None  # type: ignore[method-assign]
        for first in range(0, rows, size):
            part = slice(first, first + size)
            microbatch = Examples(
                features["encoder_input_tokens"][part],
                features["decoder_target_tokens"][part],
                features["encoder_segment_ids"][part],
                features["decoder_segment_ids"][part],
            )
            ours.backward(ours.forward(microbatch))
        ours.update()
        ours.engine.begin_step = begin  # type: ignore[method-assign]
        times.append(time.perf_counter() - started)
        whole.append(time.perf_counter() - asked)
    return statistics.median(times[2:]), statistics.median(whole[2:])


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["padded", "mixture", "overhead"])
    parser.add_argument("--size", choices=sorted(SHAPES), default="d256")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch")
    parser.add_argument("--lengths", type=int, nargs=2, default=(512, 114), help="tokens of inputs and targets")
    parser.add_argument("--steps", type=int, default=1, help="batches of a round, steps of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--attention", choices=["sdpa", "eager", "flex"], default="sdpa")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--recipe", default="twelve_tasks")
    parser.add_argument("--data-root")
    parser.add_argument("--vocabulary", help="spiece.model; one is trained if not given")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(arguments.threads)
    {"padded": padded, "mixture": mixture, "overhead": overhead}[arguments.what](arguments)


if __name__ == "__main__":
    main()
