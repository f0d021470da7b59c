from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mixtura.platform.data.decoder_row import measured_decoder_row
from mixtura.platform.data.mixture import ONE, integer_rates
from mixtura.platform.data.stream import MixtureStream, StreamSpec, count_rows, ragged_columns

MakeSpec = Callable[..., StreamSpec]


def supervised(spec: StreamSpec) -> StreamSpec:
    rates = integer_rates({"text": 0, "pairs": 3, "one": 1, "idle": 0})
    return dataclasses.replace(
        spec, tasks=tuple(dataclasses.replace(task, rate_bits=rates[task.name]) for task in spec.tasks)
    )


def positions_for_each_example(spec: StreamSpec) -> float:
    stream = MixtureStream(spec)
    blocks = [stream.build_block(block) for block in range(16)]
    examples = sum(int(count_rows(ragged_columns(block), 4)["examples"].sum()) for block in blocks)
    return sum(map(len, blocks)) * sum(spec.row_lengths) / examples


def test_the_measured_row_takes_the_fewest_positions_and_cuts_nothing_more(make_spec: MakeSpec) -> None:
    spec = supervised(make_spec(inputs_length=64, targets_length=64, block_size=60))
    chosen = measured_decoder_row(MixtureStream(spec))
    assert chosen < 64
    cost = {
        length: positions_for_each_example(dataclasses.replace(spec, decoder_row=length)) for length in range(16, 65, 8)
    }
    assert chosen == min(cost, key=lambda length: (round(cost[length], 9), length))
    whole, short = (
        MixtureStream(dataclasses.replace(spec, decoder_row=length)).build_block(3) for length in (None, chosen)
    )
    for name in ("trimmed_targets", "examples", "target_tokens"):
        counts = [count_rows(ragged_columns(block), 4)[name].tolist() for block in (whole, short)]
        assert counts[0] == counts[1]


def test_text_that_fills_its_targets_keeps_the_row_long(make_spec: MakeSpec) -> None:
    spec = make_spec()
    text = dataclasses.replace(spec.tasks[0], rate_bits=ONE)
    # 32 inputs at the default density take 6 target tokens with EOS: rows of 8 hold them, rows of 16 half empty
    assert measured_decoder_row(MixtureStream(dataclasses.replace(spec, tasks=(text,)))) == 8


def test_random_lengths_keep_the_row_as_long_as_targets_may_be(
    make_spec: MakeSpec, with_objective: Callable[[StreamSpec, str], StreamSpec]
) -> None:
    spec = with_objective(make_spec(targets_length=40), "replace_spans")
    assert measured_decoder_row(MixtureStream(spec)) == 40


def test_rows_of_another_length_hold_the_same_examples(make_spec: MakeSpec) -> None:
    spec = make_spec()
    for block in range(4):
        drawn = []
        for length in (None, 24):
            columns = ragged_columns(MixtureStream(dataclasses.replace(spec, decoder_row=length)).build_block(block))
            drawn.append(sorted(zip(columns["tasks"].values.tolist(), columns["draws"].values.tolist(), strict=True)))
            assert int(np.diff(columns["targets"].offsets).max()) <= (length or 16)
        assert drawn[0] == drawn[1]
