"""From a recipe's mixture and its caches to the stream that a run sees, and what that means for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixtura.platform.config import Config
from mixtura.platform.data.cache import TokenCache, open_cache
from mixtura.platform.data.mixture import (
    equal_rates,
    examples_proportional_rates,
    fixed_rates,
    integer_rates,
    summary,
    weighted_rates,
)
from mixtura.platform.data.objectives import make_objective
from mixtura.platform.data.stream import MixtureStream, StreamSpec, StreamTask, count_rows
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.prepare import Prepared

_OBJECTIVE = "span_corruption"
_SAMPLED_BLOCKS = 4


def stream_spec(config: Config, prepared: Prepared) -> StreamSpec:
    """The stream of a recipe: integer rates from the sizes of its caches, and the numbers that make rows."""
    vocabulary = Vocabulary(prepared.vocabulary)
    data = config.data
    objective = {"noise_density": data.noise_density, "mean_noise_span_length": data.mean_noise_span_length}
    caches = {name: open_cache(directory) for name, directory in prepared.caches.items()}
    sizes = task_sizes(config, caches, vocabulary, objective)
    bits = integer_rates(task_rates(config, sizes))
    return StreamSpec(
        seed=config.run.seed,
        tasks=tuple(
            StreamTask(
                name=name,
                cache=str(cache.directory),
                rate_bits=bits[name],
                objective=_OBJECTIVE if cache.kind == "unsupervised" else None,
                parameters=objective if cache.kind == "unsupervised" else {},
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


def task_sizes(
    config: Config, caches: Mapping[str, TokenCache], vocabulary: Vocabulary, objective: Mapping[str, Any]
) -> dict[str, int]:
    """Training examples of each task: rows, or pieces of text as long as the objective takes."""
    length = make_objective(_OBJECTIVE, vocabulary.sentinel(0), objective).piece_length
    sizes = {}
    for name, cache in caches.items():
        if cache.kind == "supervised":
            sizes[name] = cache.rows
        else:
            sizes[name] = sum(cache.pieces(length(config.data.inputs_length, config.data.targets_length)))
    return sizes


def task_rates(config: Config, sizes: Mapping[str, int]) -> dict[str, float]:
    """The rates of a recipe, not normalised: scale, cap, temperature, then the task's weight."""
    mixture = config.mixture
    weights = {name: task.weight for name, task in mixture.tasks.items()}
    empty = [name for name, size in sizes.items() if size == 0 and weights[name] > 0]
    if empty:
        raise ConfigError(f"mixture.tasks.{empty[0]} has no training examples: give it weight=0, or leave it out")
    if mixture.rates == "fixed":
        return fixed_rates(sizes, weights)
    if mixture.rates == "equal":
        return weighted_rates(equal_rates(sizes), weights)
    proportional = examples_proportional_rates(sizes, maximum=mixture.maximum, temperature=mixture.temperature)
    return weighted_rates(proportional, weights)


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
    rates = task_rates(config, {name: size or 0 for name, size in sizes.items()})
    draws = round(config.training.steps * spec.global_batch_size * per_row)
    return [
        {
            "task": share.name,
            "examples": sizes[share.name],
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
    return [{**row, **{name: f"{row[name]:.1%}" for name in shares}} for row in rows]
