"""From a recipe's mixture and its caches to the stream that a run sees, and what that means for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixtura.platform.config import Config
from mixtura.platform.data.cache import TokenCache, open_cache
from mixtura.platform.data.mixture import integer_rates, proportions, summary
from mixtura.platform.data.mixture import task_rates as rates_of_kind
from mixtura.platform.data.objectives import make_objective, parameter_names
from mixtura.platform.data.stream import MixtureStream, StreamSpec, StreamTask, count_rows
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.orchestration.prepare import Prepared
from mixtura.platform.orchestration.tasks import task_of, tasks_of
from mixtura.tasks.mixtures import HARD_CODED, SHARED_DATA

_OBJECTIVE = "span_corruption"
_PARAMETERS = ("noise_density", "mean_noise_span_length", "closing_sentinel", "sentinels")
_SAMPLED_BLOCKS = 4


def stream_spec(config: Config, prepared: Prepared) -> StreamSpec:
    """The stream of a recipe: integer rates from the sizes of its tasks, and the numbers that make rows."""
    vocabulary = Vocabulary(prepared.vocabulary)
    data = config.data
    trained = {name: task for name, task in tasks_of(config).items() if task.trained}
    caches = {name: open_cache(prepared.caches[name]) for name in trained}
    objectives = {name: objective_of(config, name) for name, cache in caches.items() if cache.kind == "unsupervised"}
    sizes = rate_sizes(config, counted_sizes(config, caches, vocabulary))
    bits = integer_rates(task_rates(config, sizes))
    return StreamSpec(
        seed=config.run.seed,
        tasks=tuple(
            StreamTask(
                name=name,
                cache=str(cache.directory),
                rate_bits=bits[name],
                objective=objectives[name][0] if name in objectives else None,
                parameters=objectives[name][1] if name in objectives else {},
                around_answer=trained[name].around_answer,
            )
            for name, cache in caches.items()
        ),
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
    )


def objective_of(config: Config, name: str) -> tuple[str, dict[str, Any]]:
    """How an unsupervised task makes examples: its objective (span corruption if it names none) with the recipe's
    numbers, those that the objective has, and its own, which win."""
    task = task_of(config, name)
    objective, parameters = task.objective or (_OBJECTIVE, {})
    recipe = {parameter: getattr(config.data, parameter) for parameter in _PARAMETERS}
    known = parameter_names(objective)
    return objective, {**{key: value for key, value in recipe.items() if key in known}, **parameters}


def counted_sizes(config: Config, caches: Mapping[str, TokenCache], vocabulary: Vocabulary) -> dict[str, int]:
    """Training examples of each task as they were found: rows, or pieces of text as long as the objective takes."""
    sizes = {}
    for name, cache in caches.items():
        if cache.kind == "supervised":
            sizes[name] = cache.rows
        else:
            kind, parameters = objective_of(config, name)
            objective = make_objective(kind, vocabulary.sentinel(0), parameters)
            length = objective.piece_length(config.data.inputs_length, config.data.targets_length)
            sizes[name] = sum(cache.pieces(length))
    return sizes


def rate_sizes(config: Config, counted: Mapping[str, int]) -> dict[str, int]:
    """The sizes that rates are made from: those that the recipe gives, else the published ones if `mixture.sizes` is
    `declared` and there are any, else the counted ones. A task without examples has none to declare."""
    known = known_sizes(config)
    return {name: known.get(name, size) if size else 0 for name, size in counted.items()}


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


def mixture_table(config: Config, spec: StreamSpec) -> list[dict[str, Any]]:
    """What a mixture means over a run: shares of examples and of tokens, draws and epochs of each task.

    Rows packed from a few blocks say how many examples a row holds and how many tokens an example has.
    """
    stream = MixtureStream(spec)
    names = [task.name for task in spec.tasks]
    blocks = [stream.build_block(block) for block in range(_SAMPLED_BLOCKS)]
    counts = [count_rows(block, len(names)) for block in blocks]
    examples = sum(int(count["examples"].sum()) for count in counts)
    tokens = np.sum([count["input_tokens"] + count["target_tokens"] for count in counts], axis=0)
    per_row = examples / max(1, sum(len(block) for block in blocks))
    sizes: dict[str, int | None] = {name: stream.epoch_sizes.get(name) for name in names}
    made_from = rate_sizes(config, {name: size or 0 for name, size in sizes.items()})
    rates = task_rates(config, made_from)
    draws = round(config.training.steps * spec.global_batch_size * per_row)
    return [
        {
            "task": share.name,
            "examples": sizes[share.name],
            "size": made_from[share.name],
            "rate": share.rate,
            "share of examples": share.share,
            "share of tokens": float(tokens[place] / max(1, tokens.sum())),
            "draws": round(share.draws),
            "epochs": share.epochs,
        }
        for place, share in enumerate(summary(rates, sizes, draws))
    ]


def readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares written as percent, for people."""
    shares = ("share of examples", "share of tokens")
    return [{**row, **{name: f"{row[name]:.1%}" for name in shares if name in row}} for row in rows]
