"""From a recipe's mixture and its caches to the stream that a run sees, and what that means for each task."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtura.platform.config import Config
from mixtura.platform.data.cache import open_cache
from mixtura.platform.data.cache_store import Copies
from mixtura.platform.data.decoder_row import measured_decoder_row
from mixtura.platform.data.mixture import ONE, integer_rates, proportions
from mixtura.platform.data.mixture import task_rates as rates_of_kind
from mixtura.platform.data.objectives import parameter_names
from mixtura.platform.data.schedule import capped_changes
from mixtura.platform.data.stream import MixtureStream, StreamSpec, StreamTask, count_rows, ragged_columns
from mixtura.platform.data.stream_spec import phase
from mixtura.platform.data.task_reader import TaskReader
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.tasks import task_of, tasks_of
from mixtura.tasks.mixtures import HARD_CODED, SHARED_DATA

if TYPE_CHECKING:
    from mixtura.platform.orchestration.prepare import Prepared
    from mixtura.platform.workspace import Workspace

_OBJECTIVE = "span_corruption"
_PARAMETERS = ("noise_density", "mean_noise_span_length", "closing_sentinel", "sentinels")
_SAMPLED_BLOCKS = 4
_NOTABLY_EMPTY = 0.5

SHARES = {
    "share of examples": "requested",
    "drawn": "drawn over the run",
    "trained": "trained on so far",
    "share of tokens": "of all tokens",
}
"""Columns of a mixture's table that are between 0 and 1, and what they are called in a picture."""


def stream_spec(config: Config, prepared: Prepared) -> StreamSpec:
    """The stream of a recipe: integer rates from the sizes of its tasks, where they change, and the numbers that make
    rows."""
    data, vocabulary = config.data, Vocabulary(prepared.vocabulary)
    trained = {name: task for name, task in tasks_of(config).items() if task.trained}
    tasks = tuple(_stream_task(config, prepared, name) for name in trained)
    draft = _draft(config, vocabulary, (replace(tasks[0], rate_bits=ONE), *tasks[1:]))
    sizes = found_sizes(draft, copies_of(config))
    rates = task_rates(config, rate_sizes(config, sizes))
    bits = integer_rates(rates)
    drawn = tuple(replace(task, rate_bits=bits[task.name]) for task in tasks)
    most = most_draws(config, {name: size for name, size in sizes.items() if rates[name]})
    changes = capped_changes(rates, most, functools.partial(phase, draft.seed), draft.block_size)
    spec = replace(draft, tasks=drawn, changes=changes)
    if data.decoder_row == "measured":
        return replace(spec, decoder_row=measured_decoder_row(opened_stream(config, spec)))
    return spec


def held_out_spec(config: Config, prepared: Prepared, name: str) -> StreamSpec:
    """A stream of the held-out text of a task alone, made into examples as in training; the same for every seed."""
    kind, parameters = objective_of(config, name)
    pieces = config.evaluation.text_pieces
    task = StreamTask(name, prepared.held_out[name], ONE, kind, parameters, split="validation", first_examples=pieces)
    return replace(_draft(config, Vocabulary(prepared.vocabulary), (task,)), seed=0)


def _draft(config: Config, vocabulary: Vocabulary, tasks: tuple[StreamTask, ...]) -> StreamSpec:
    """A stream with the recipe's numbers that make rows."""
    data = config.data
    return StreamSpec(
        seed=config.run.seed,
        tasks=tasks,
        block_size=data.block_size,
        lanes=data.lanes,
        global_batch_size=config.training.global_batch_size,
        inputs_length=data.inputs_length,
        targets_length=data.targets_length,
        packing=data.packing,
        eos_id=EOS_ID,
        first_sentinel=vocabulary.sentinel(0),
        vocabulary_size=vocabulary.size,
        window_shards=data.window_shards,
        segment_rows=data.segment_rows,
        decoder_row=data.decoder_row if isinstance(data.decoder_row, int) else None,
        features=config.features,
        loss_on=data.loss_on,
        chunks=data.chunks,
        draws=data.draws,
    )


def _stream_task(config: Config, prepared: Prepared, name: str) -> StreamTask:
    task, own = task_of(config, name), config.mixture.tasks[name]
    objective, parameters = objective_of(config, name) if task.kind == "unsupervised" else (None, {})
    return StreamTask(
        name=name,
        cache=str(prepared.caches[name]),
        rate_bits=0,
        objective=objective,
        parameters=parameters,
        around_answer=task.around_answer,
        first_examples=own.first_examples,
        first_tokens=own.first_tokens,
        overlap=prepared.overlap.get(name),
    )


def found_sizes(spec: StreamSpec, copies: Copies) -> dict[str, int | None]:
    """Training examples of each task as they were found: rows, or pieces of text as long as the objective takes; None
    while a source is still being prepared."""
    return {task.name: _found_size(spec, task, copies) for task in spec.tasks}


def _found_size(spec: StreamSpec, task: StreamTask, copies: Copies) -> int | None:
    cache = open_cache(task.cache, task.split, copies)
    if cache.closed and not cache.rows:
        return 0
    return TaskReader(spec, task, copies).size


def repeats_of(config: Config, name: str) -> float | None:
    """Most passes over a task's examples: its own number, or the mixture's."""
    own = config.mixture.tasks[name].repeats
    return config.mixture.repeats if own is None else own


def most_draws(config: Config, sizes: Mapping[str, int | None]) -> dict[str, int]:
    """How often a task may be drawn at most, where `repeats` says so."""
    most = {}
    for name, size in sizes.items():
        repeats = repeats_of(config, name)
        if repeats is None:
            continue
        if size is None:
            raise ConfigError(
                f"task {name!r} may be passed over {repeats:g} times, but how many examples it has is not known while "
                "they are being prepared: set data.prepare=before_training"
            )
        most[name] = int(repeats * size)
    return most


def objective_of(config: Config, name: str) -> tuple[str, dict[str, Any]]:
    """How an unsupervised task makes examples: its objective (span corruption if it names none) with the recipe's
    numbers, those that the objective has, and its own, which win."""
    task = task_of(config, name)
    objective, parameters = task.objective or (_OBJECTIVE, {})
    recipe = {parameter: getattr(config.data, parameter) for parameter in _PARAMETERS}
    known = parameter_names(objective)
    return objective, {**{key: value for key, value in recipe.items() if key in known}, **parameters}


def rate_sizes(config: Config, found: Mapping[str, int | None]) -> dict[str, int]:
    """The sizes that rates are made from: those that the recipe gives, else the published ones if `mixture.sizes` is
    `declared` and there are any, else the found ones. A task without examples has none to declare."""
    known = known_sizes(config)
    return {name: known.get(name, size or 0) if size != 0 else 0 for name, size in found.items()}


def given_sizes(config: Config) -> dict[str, int]:
    """Sizes that the recipe itself says."""
    return {name: task.size for name, task in config.mixture.tasks.items() if task.size is not None}


def declared_sizes(config: Config) -> dict[str, int]:
    """Sizes that tasks declare, or the recipe in their place."""
    trained = {name: task.rate_size for name, task in tasks_of(config).items() if task.trained}
    return {**{name: size for name, size in trained.items() if size is not None}, **given_sizes(config)}


def known_sizes(config: Config) -> dict[str, int]:
    """Sizes that rates are made from whatever the data has, by task."""
    return declared_sizes(config) if config.mixture.sizes == "declared" else given_sizes(config)


def task_rates(config: Config, sizes: Mapping[str, int]) -> dict[str, float]:
    """The rates of a recipe, not normalised: scale, cap, temperature, then the task's weight."""
    mixture = config.mixture
    own = {name: mixture.tasks[name] for name in sizes}
    written = {name: float(size) for name, size in declared_sizes(config).items() if name in HARD_CODED}
    rates = rates_of_kind(
        mixture.rates,
        sizes,
        maximum=mixture.maximum,
        temperature=mixture.temperature,
        weights={name: task.weight for name, task in own.items()},
        scales={name: task.scale for name, task in own.items()},
        shared=SHARED_DATA,
        fixed=written,
        budget=mixture.budget,
        repeats={name: repeats for name in own if (repeats := repeats_of(config, name)) is not None},
    )
    return {**rates, **{name: task.rate * task.weight for name, task in own.items() if task.rate is not None}}


def needs_data(config: Config) -> list[str]:
    """Tasks whose share of the mixture cannot be told without reading their data."""
    known = known_sizes(config)
    by_size = config.mixture.rates not in {"equal", "fixed"}
    trained = [name for name, task in tasks_of(config).items() if task.trained]
    own = config.mixture.tasks
    return [name for name in trained if by_size and own[name].weight and own[name].rate is None and name not in known]


def declared_table(config: Config) -> list[dict[str, Any]]:
    """What a mixture means by the sizes that its tasks declare, before any data is read."""
    known = known_sizes(config)
    sizes = {name: known.get(name, 1) for name, task in tasks_of(config).items() if task.trained}
    rates = task_rates(config, sizes)
    return [
        {"task": name, "size": known.get(name), "rate": rates[name], "share of examples": share}
        for name, share in proportions(rates).items()
    ]


def benchmark_shares(config: Config, rows: list[dict[str, Any]]) -> str:
    """What the tasks of one benchmark have together, for the notes below a table."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        benchmark = task_of(config, row["task"]).benchmark
        if benchmark is not None:
            shares.setdefault(benchmark, []).append(row["share of examples"])
    return "; ".join(f"{name} {sum(own):.1%} of examples ({len(own)} tasks)" for name, own in shares.items())


def size_differences(config: Config, rows: list[dict[str, Any]]) -> list[str]:
    """Where the data has another number of examples than the one that the rates are made from."""
    if config.mixture.rates in {"equal", "fixed"}:
        return []
    differing = [row for row in rows if row["examples"] is not None and row["size"] != row["examples"]]
    lines = [f"{row['task']}: {row['size']} examples declared, {row['examples']} found" for row in differing]
    return [*lines, "rates are made from declared sizes; mixture.sizes=counted uses what was found"] if lines else []


def opened_stream(config: Config, spec: StreamSpec) -> MixtureStream:
    """The stream of a recipe, with this node's copies of its caches."""
    return MixtureStream(spec, copies_of(config))


def mixture_table(config: Config, stream: MixtureStream, sample: Sample) -> list[dict[str, Any]]:
    """What a mixture means over a run: shares of examples, requested and drawn, and of tokens; draws and epochs.

    Rows packed from a few blocks say how many examples a row holds and how many tokens an example has.
    """
    spec, names = stream.spec, [task.name for task in stream.spec.tasks]
    sizes: dict[str, int | None] = {name: stream.epoch_sizes.get(name) for name in names}
    made_from = rate_sizes(config, {task.name: sizes[task.name] if task.rate_bits else 0 for task in spec.tasks})
    rates = task_rates(config, made_from)
    blocks = blocks_of_steps(spec, sample, config.training.steps)
    draws = expected_draws(stream, blocks)
    tokens = [each * count for each, count in zip(sample.tokens_each, draws, strict=True)]
    return [
        {
            "task": name,
            "examples": sizes[name],
            "size": made_from[name],
            "rate": rates[name],
            "share of examples": share,
            "drawn": draws[place] / max(1, sum(draws)),
            "share of tokens": tokens[place] / max(1, sum(tokens)),
            "draws": draws[place],
            "epochs": draws[place] / size if (size := sizes[name]) else None,
        }
        for place, (name, share) in enumerate(proportions(rates).items())
    ]


@dataclass(frozen=True)
class Sample:
    """What the first blocks of a stream hold."""

    blocks: int
    rows: int
    tokens_each: list[float]
    """Of inputs and targets, on average for an example of each task."""
    filled: tuple[float, float]
    """Shares of encoder and decoder positions that hold tokens; of a joined row the second."""


def sampled(stream: MixtureStream) -> Sample:
    """Build a few blocks and count."""
    spec = stream.spec
    there = _SAMPLED_BLOCKS if spec.end is None else min(_SAMPLED_BLOCKS, spec.end)
    blocks = [ragged_columns(stream.build_block(block)) for block in range(there)]
    counts = [count_rows(block, len(spec.tasks)) for block in blocks]
    inputs, targets = (sum(count[f"{side}_tokens"] for count in counts) for side in ("input", "target"))
    rows = sum(len(block["tasks"]) for block in blocks)
    encoder, decoder = (max(1, rows * length) for length in spec.row_lengths)
    total = int(np.sum(inputs)), int(np.sum(targets))
    filled = (0.0, sum(total) / decoder) if spec.joined else (total[0] / encoder, total[1] / decoder)
    examples = np.maximum(1, sum(count["examples"] for count in counts))
    return Sample(there, rows, (np.add(inputs, targets) / examples).tolist(), filled)


def blocks_of_steps(spec: StreamSpec, sample: Sample, steps: int) -> int:
    """About how many blocks so many steps take."""
    return round(steps * spec.global_batch_size * sample.blocks / max(1, sample.rows))


def expected_draws(stream: MixtureStream, blocks: int) -> list[int]:
    """How often each task is drawn in so many blocks: as scheduled, or where draws are sampled on average."""
    spec, tasks = stream.spec, range(len(stream.spec.tasks))
    if spec.draws == "sampled":
        return [blocks * spec.block_size * spec.tasks[task].rate_bits // ONE for task in tasks]
    return [stream.schedule.drawn_before(task, blocks) for task in tasks]


def stream_notes(config: Config, spec: StreamSpec, sample: Sample) -> list[str]:
    """How full rows are, and where rates change, in words."""
    encoder, decoder = spec.row_lengths
    filled = f"decoder rows of {decoder} are {sample.filled[1]:.1%} full"
    if not spec.joined:
        filled = f"encoder rows of {encoder} are {sample.filled[0]:.1%} full, {filled}"
    if sample.filled[1] < _NOTABLY_EMPTY and not spec.joined and config.data.decoder_row is None:
        filled += "; data.decoder_row=measured looks for a shorter length"
    notes = [filled]
    for change in spec.changes:
        step = round(change.block * sample.rows / sample.blocks / spec.global_batch_size)
        stopped = [
            task.name for task, rate in zip(spec.tasks, change.rates, strict=True) if task.rate_bits and not rate
        ]
        what = "the stream ends" if not any(change.rates) else f"not drawn any more: {', '.join(stopped)}"
        notes.append(f"from block {change.block} on (about step {step:,}) {what}")
    return notes


def refuse_short_stream(config: Config, spec: StreamSpec, sample: Sample) -> None:
    """Raise ConfigError where every task reaches its cap before the last step."""
    needed = blocks_of_steps(spec, sample, config.training.steps)
    if spec.end is not None and needed > spec.end:
        steps = config.training.steps * spec.end // needed
        raise ConfigError(
            f"mixture.repeats lets the stream last for about {steps} steps, but training.steps is "
            f"{config.training.steps}: raise mixture.repeats, or train fewer steps"
        )


def mixture_of(config: Config, space: Workspace, *, read_data: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The table of a mixture and notes on it: from declared sizes where those are enough and no data shall be read."""
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter

    if not read_data and not needs_data(config):
        note = (
            "from declared sizes, without reading any data; --tokens prepares it for what is drawn, tokens and epochs"
        )
        return declared_table(config), [note]
    spec = stream_spec(config, prepare(config, space, map_inline, SilentReporter()))
    stream = opened_stream(config, spec)
    sample = sampled(stream)
    rows = mixture_table(config, stream, sample)
    return rows, [*stream_notes(config, spec, sample), *size_differences(config, rows)]


def readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares written as percent, for people."""
    return [{**row, **{name: f"{row[name]:.1%}" for name in SHARES if name in row}} for row in rows]
