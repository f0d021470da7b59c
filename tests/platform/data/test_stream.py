from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtura.platform.data.cache import open_cache
from mixtura.platform.data.mixture import integer_rates
from mixtura.platform.data.packing import PACKINGS
from mixtura.platform.data.stream import (
    SCHEMA,
    MixtureStream,
    StreamSpec,
    StreamTask,
    count_rows,
    plan_window,
    ragged_column,
    ragged_columns,
)
from mixtura.platform.errors import ConfigError, UnknownNameError

MakeSpec = Callable[..., StreamSpec]


def test_L1_a_block_alone_is_what_it_is_when_reached_by_walking(make_spec: MakeSpec) -> None:
    walked = MixtureStream(make_spec())
    blocks = [walked.build_block(block) for block in range(12)]
    for block in (11, 4, 0):
        assert MixtureStream(make_spec()).build_block(block).equals(blocks[block])
    assert not blocks[3].equals(blocks[4])


def test_L1_a_block_does_not_depend_on_lanes_or_batch_size(make_spec: MakeSpec) -> None:
    changed = MixtureStream(make_spec(lanes=3, global_batch_size=30))
    assert changed.build_block(7).equals(MixtureStream(make_spec()).build_block(7))


def test_blocks_are_the_same_on_every_machine_and_version(make_spec: MakeSpec) -> None:
    # A change here means that runs cannot go on: raise STREAM_VERSION.
    rows = MixtureStream(make_spec()).build_block(5).to_pylist()
    assert [row["tasks"] for row in rows if row["tasks"] != [0]] == [[1, 1], [1, 1], [2], [1, 1], [2, 1], [1], [2]]
    (row,) = (row for row in rows if row["draws"] == [44, 41])
    assert row["inputs"][:18] == [291, 496, 461, 82, 859, 693, 274, 666, 884, 621, 708, 342, 42, 427, 532, 100, 768, 1]
    assert row["inputs"][18:] == [311, 565, 55, 807, 842, 787, 413, 382, 791, 1]
    assert row["targets"] == [230, 1, 182, 544, 688, 696, 82, 814, 112, 1]


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_draw_is_in_a_block_once_whatever_the_packing(make_spec: MakeSpec, packing: str) -> None:
    stream = MixtureStream(make_spec(packing=packing))
    for number in range(4):
        block = stream.build_block(number)
        counts = stream.schedule.counts(number)
        firsts = [stream.schedule.drawn_before(task, number) for task in range(4)]
        drawn = [(task, firsts[task] + draw) for task in range(4) for draw in range(counts[task])]
        packed = zip(
            ragged_column(block, "tasks").values.tolist(), ragged_column(block, "draws").values.tolist(), strict=True
        )
        assert sorted(packed) == drawn
        assert count_rows(ragged_columns(block), 4)["examples"].tolist() == stream.schedule.counts(number)
        assert block.schema.equals(SCHEMA)


def test_supervised_examples_come_from_their_rows_trimmed_and_with_eos(
    make_spec: MakeSpec, caches: dict[str, Path]
) -> None:
    stream = MixtureStream(make_spec(inputs_length=20, targets_length=12))
    known = set()
    cache = open_cache(caches["pairs"])
    for shard, rows in enumerate(cache.shard_rows):
        inputs, targets = cache.examples(shard, np.arange(rows))
        for one, other in zip(inputs.to_lists(), targets.to_lists(), strict=True):
            known.add(((*one[:19], 1), (*other[:11], 1)))
    seen = set()
    for block in range(8):
        for row in _segments(stream.build_block(block)):
            if row["task"] == 1:
                seen.add((tuple(row["inputs"]), tuple(row["targets"])))
    assert seen == known  # more than one epoch, nothing else than its examples


def _segments(block) -> list[dict]:
    found = []
    for row in block.to_pylist():
        start = end = 0
        for place, task in enumerate(row["tasks"]):
            inputs, targets = row["input_lengths"][place], row["target_lengths"][place]
            found.append(
                {
                    "task": task,
                    "draw": row["draws"][place],
                    "inputs": row["inputs"][start : start + inputs],
                    "targets": row["targets"][end : end + targets],
                    "trimmed": (row["inputs_trimmed"][place], row["targets_trimmed"][place]),
                }
            )
            start, end = start + inputs, end + targets
        assert (start, end) == (len(row["inputs"]), len(row["targets"]))
    return found


def test_L3_trimmed_tokens_and_examples_are_counted(make_spec: MakeSpec, caches: dict[str, Path]) -> None:
    stream = MixtureStream(make_spec(inputs_length=20, targets_length=12))
    cache = open_cache(caches["pairs"])
    lengths = np.concatenate(
        [cache.examples(shard, np.arange(rows))[0].lengths for shard, rows in enumerate(cache.shard_rows)]
    )
    epoch = {}
    for block in range(12):
        for segment in _segments(stream.build_block(block)):
            if segment["task"] == 1 and segment["draw"] < 60:
                epoch[segment["draw"]] = segment["trimmed"][0]
    assert len(epoch) == 60
    assert sum(epoch.values()) == np.maximum(lengths - 19, 0).sum() > 0
    counters = count_rows(ragged_columns(stream.build_block(2)), 4)
    segments = [segment for segment in _segments(stream.build_block(2)) if segment["task"] == 1]
    assert counters["trimmed_inputs"][1] == sum(segment["trimmed"][0] > 0 for segment in segments)
    assert counters["trimmed_input_tokens"][1] == sum(segment["trimmed"][0] for segment in segments)
    assert counters["input_tokens"][1] == sum(len(segment["inputs"]) for segment in segments)


def test_an_epoch_of_text_covers_every_token_and_the_next_one_is_corrupted_anew(make_spec: MakeSpec) -> None:
    stream = MixtureStream(make_spec())
    size = stream.epoch_sizes["text"]
    texts: dict[int, tuple] = {}
    for block in range(2 * size // 10):
        for segment in _segments(stream.build_block(block)):
            if segment["task"] == 0:
                texts[segment["draw"]] = (segment["inputs"], segment["targets"])
    first = [texts[draw] for draw in range(size)]
    real = sum(token > 1 and token < 950 for inputs, targets in first for token in [*inputs, *targets])
    assert real == open_cache(stream.spec.tasks[0].cache).tokens
    second = {(tuple(inputs), tuple(targets)) for inputs, targets in (texts[size + draw] for draw in range(size // 2))}
    assert len(second & {(tuple(inputs), tuple(targets)) for inputs, targets in first}) < size // 20


def test_inputs_and_targets_of_full_pieces_fit_exactly(make_spec: MakeSpec) -> None:
    stream = MixtureStream(make_spec(packing="none"))
    counters = count_rows(ragged_columns(stream.build_block(0)), 4)
    assert counters["trimmed_inputs"][0] == counters["trimmed_targets"][0] == 0


def test_blocks_are_dealt_to_lanes_once_each_and_not_by_a_fixed_stride(make_spec: MakeSpec) -> None:
    stream = MixtureStream(make_spec())
    rounds = [[stream.block_of(round_, lane) for lane in range(6)] for round_ in range(50)]
    for round_, blocks in enumerate(rounds):
        assert sorted(blocks) == list(range(round_ * 6, round_ * 6 + 6))
    assert {blocks[0] % 6 for blocks in rounds} == set(range(6))


def test_a_task_keeps_its_order_when_others_come_beside_it(make_spec: MakeSpec) -> None:
    spec = make_spec()
    alone = dataclasses.replace(spec, tasks=(dataclasses.replace(spec.tasks[1], rate_bits=2**64),))
    examples = {}
    for made, index in ((spec, 1), (alone, 0)):
        stream = MixtureStream(made)
        segments = [segment for block in range(6) for segment in _segments(stream.build_block(block))]
        examples[index] = {segment["draw"]: segment["inputs"] for segment in segments if segment["task"] == index}
    common = examples[0].keys() & examples[1].keys()
    assert len(common) > 40
    assert all(examples[0][draw] == examples[1][draw] for draw in common)


def test_another_seed_is_another_stream(make_spec: MakeSpec) -> None:
    one, other = MixtureStream(make_spec()), MixtureStream(make_spec(seed=18))
    assert not one.build_block(0).equals(other.build_block(0))
    assert one.spec.fingerprint != other.spec.fingerprint


def test_a_spec_goes_through_json_unchanged(make_spec: MakeSpec) -> None:
    spec = make_spec()
    assert StreamSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_where_caches_lie_is_not_part_of_the_identity(make_spec: MakeSpec) -> None:
    spec = make_spec()
    moved = tuple(dataclasses.replace(task, cache=f"/elsewhere/{Path(task.cache).name}") for task in spec.tasks)
    assert dataclasses.replace(spec, tasks=moved).fingerprint == spec.fingerprint
    remade = tuple(dataclasses.replace(task, cache=f"{task.cache}0") for task in spec.tasks)
    assert dataclasses.replace(spec, tasks=remade).fingerprint != spec.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 5}, "lanes is 5, which does not divide global_batch_size 12"),
        ({"block_size": 0}, "block_size is 0"),
        ({"inputs_length": 1}, "inputs_length is 1"),
        ({"targets_length": 6}, "targets_length is 6, but 32 input tokens .* need"),
        ({"first_sentinel": 1000}, "outside a vocabulary of 1000"),
        ({"version": 0}, "version 0, this program makes version 2"),
        ({"tasks": ()}, "sum to 2\\^64"),
    ],
)
def test_what_is_not_a_stream_is_refused(make_spec: MakeSpec, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_spec(**changes)


def test_unknown_packings_and_doubled_tasks_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(UnknownNameError, match="best_fit"):
        make_spec(packing="bestfit")
    spec = make_spec()
    with pytest.raises(ConfigError, match="in a stream once"):
        make_spec(tasks=(*spec.tasks, spec.tasks[1]))


def test_tasks_whose_cache_does_not_suit_are_refused(caches: dict[str, Path], make_spec: MakeSpec) -> None:
    def stream_of(cache: str, objective: str | None) -> MixtureStream:
        rates = integer_rates({cache: 1.0})
        return MixtureStream(make_spec(tasks=(StreamTask(cache, str(caches[cache]), rates[cache], objective),)))

    with pytest.raises(ConfigError, match="'pairs' has supervised data and takes no objective"):
        stream_of("pairs", "span_corruption").open()
    with pytest.raises(ConfigError, match="'text' has unsupervised data and needs an objective"):
        stream_of("text", None).open()
    with pytest.raises(ConfigError, match="'idle' has a rate but no examples"):
        stream_of("idle", None).open()


@given(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.floats(1, 100), st.integers(0, 30), st.integers(0, 9))
def test_the_plan_always_serves_the_lane_with_the_fewest_rows(
    buffered: list[int], mean_rows: float, count: int, start: int
) -> None:
    lanes = [3 * lane + 1 for lane in range(len(buffered))]
    rows = dict(zip(lanes, map(float, buffered), strict=True))
    planned = plan_window(lanes, dict.fromkeys(lanes, start), rows, mean_rows, count)
    assert len(planned) == count
    rounds = dict.fromkeys(lanes, start)
    for lane, round_ in planned:
        assert rows[lane] == min(rows.values())
        assert round_ == rounds[lane]
        rows[lane] += mean_rows
        rounds[lane] += 1
