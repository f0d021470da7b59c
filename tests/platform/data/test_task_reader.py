from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mixtura.platform.data import task_reader
from mixtura.platform.data.cache import begin, commit, leave_failure, open_cache, write_shard
from mixtura.platform.data.lanes import RankStream, batch_fingerprint
from mixtura.platform.data.mixture import ONE
from mixtura.platform.data.ragged import Ragged, offsets_of
from mixtura.platform.data.stream import MixtureStream, StreamSpec, StreamTask
from mixtura.platform.data.stream_spec import first_epoch_shards
from mixtura.platform.data.task_reader import Copy, TaskReader, by_shard
from mixtura.platform.errors import DataError

MakeSpec = Callable[..., StreamSpec]


def alone(spec: StreamSpec, name: str, **changes: object) -> StreamSpec:
    """A stream of one task."""
    task = next(task for task in spec.tasks if task.name == name)
    return dataclasses.replace(spec, tasks=(dataclasses.replace(task, rate_bits=ONE, **changes),))


def reader_of(spec: StreamSpec) -> TaskReader:
    return TaskReader(spec, spec.tasks[0])


def examples(reader: TaskReader, first: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Whole inputs and targets of draws, copied."""
    drawn = reader.draw(first, count)
    sides = []
    copies = []
    for lengths in drawn.lengths:
        offsets = offsets_of(lengths)
        copies.append(Copy(np.zeros(int(offsets[-1]), dtype=np.int32), offsets[:-1], lengths))
        sides.append(Ragged(copies[-1].out, offsets))
    drawn.copy(*copies)
    return list(zip(sides[0].to_lists(), sides[1].to_lists(), strict=True))


@pytest.mark.parametrize("name", ["text", "pairs", "one"])
def test_lengths_without_tokens_are_those_of_the_tokens(make_spec: MakeSpec, name: str) -> None:
    reader = reader_of(alone(make_spec(), name))
    for first, count in ((0, 1), (3, 70), (10_000, 40)):
        inputs, targets = reader.lengths(first, count)
        found = examples(reader, first, count)
        assert inputs.tolist() == [len(one) for one, _ in found]
        assert targets.tolist() == [len(other) for _, other in found]


@pytest.mark.parametrize("name", ["text", "pairs"])
def test_a_draw_alone_is_what_it_is_among_others(make_spec: MakeSpec, name: str) -> None:
    reader = reader_of(alone(make_spec(), name))
    together = examples(reader, 5, 60)
    for place in (0, 7, 59):
        assert examples(reader, 5 + place, 1) == together[place : place + 1]


def test_a_shards_draws_are_found_whatever_their_order() -> None:
    shards = np.array([4, 1, 4, 1, 0])
    assert {shard: np.arange(5)[here].tolist() for shard, here in by_shard(shards)} == {0: [4], 1: [1, 3], 4: [0, 2]}
    assert list(by_shard(np.zeros(0, dtype=np.int64))) == []


def test_long_inputs_are_cut_around_their_answers_and_others_lose_their_end(
    tmp_path: Path, make_spec: MakeSpec
) -> None:
    place = tmp_path / "answers-0123456789abcdef"
    inputs = [[1, 2, 3], [10, 11, 12, 13, 14, 15, 16, 17], [20, 20, 20, 20, 20, 21]]
    table = pa.table({"inputs": inputs, "targets": [[3], [16, 17], [9]]})
    write_shard(place, 0, 1, "train", table)
    commit(place, "answers", {"made": "for a test"}, {"train": 1})
    spec = make_spec(
        tasks=(StreamTask("answers", str(place), ONE, around_answer=True),), inputs_length=5, targets_length=8
    )
    rows = MixtureStream(spec).build_block(0).to_pylist()
    found = {tuple(row["inputs"]): row["inputs_trimmed"][0] for row in rows}
    assert found == {(1, 2, 3, 1): 0, (14, 15, 16, 17, 1): 4, (20, 20, 20, 20, 1): 2}
    assert MixtureStream(spec).count_rows(0, 1).tolist() == [len(rows)]


def test_trimming_keeps_room_for_eos_as_the_original_does(shared: Path, tmp_path: Path, make_spec: MakeSpec) -> None:
    rows = [json.loads(line) for line in (shared / "golden/packing.jsonl").read_text().splitlines()]
    (golden,) = (row for row in rows if row["kind"] == "eos" and row["after_trim"])
    place = tmp_path / "eos-0123456789abcdef"
    sides = {
        side: pa.array([row[side] for row in golden["examples"]], pa.list_(pa.int32())) for side in golden["lengths"]
    }
    write_shard(place, 0, 1, "train", pa.table(sides))
    commit(place, "eos", {"made": "for a test"}, {"train": 1})
    lengths = {f"{side}_length": length for side, length in golden["lengths"].items()}
    count = len(golden["examples"])
    spec = make_spec(tasks=(StreamTask("eos", str(place), ONE),), packing="none", block_size=count, **lengths)
    stream = MixtureStream(spec)
    found = stream.build_block(0).to_pylist()
    assert len(found) == count
    for row in found:
        (draw,) = row["draws"]
        number = stream.reader(0).origin(draw).first_row
        for side, length in golden["lengths"].items():
            assert row[side] == golden["result"][number][side]
            assert row[f"{side}_trimmed"] == [max(len(golden["examples"][number][side]) - (length - 1), 0)]


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 25, 30, 60, 1000])
def test_a_task_held_to_its_first_examples_draws_those_again_and_again(make_spec: MakeSpec, count: int) -> None:
    reader = reader_of(alone(make_spec(), "pairs", first_examples=count))
    whole = reader.cache
    rows = [
        tuple(map(tuple, (one, other)))
        for shard in range(whole.count)
        for one, other in zip(
            *(side.to_lists() for side in whole.examples(shard, np.arange(whole.entry(shard)["rows"]))), strict=True
        )
    ]
    assert reader.size == min(count, 60)
    for epoch in range(2):
        found = examples(reader, epoch * reader.size, reader.size)
        assert sorted(tuple(map(tuple, pair)) for pair in found) == sorted(rows[:count])


@pytest.mark.parametrize("count", [1, 100, 2000])
def test_text_held_to_its_first_tokens_has_those_in_every_epoch(make_spec: MakeSpec, count: int) -> None:
    reader = reader_of(alone(make_spec(), "text", first_tokens=count))
    text = np.concatenate([reader.cache.column(shard, "tokens").values for shard in range(reader.cache.count)])
    for epoch in range(2):
        found = examples(reader, epoch * reader.size, reader.size)
        kept = sorted(token for inputs, targets in found for token in [*inputs, *targets] if token < 950)
        assert kept == sorted(text[:count].tolist())


def test_a_supervised_task_held_to_its_first_tokens_has_the_rows_that_they_fill(make_spec: MakeSpec) -> None:
    cache = reader_of(alone(make_spec(), "pairs")).cache
    lengths = []
    for shard in range(cache.count):
        inputs, targets = cache.examples(shard, np.arange(cache.entry(shard)["rows"]))
        lengths += (inputs.lengths + targets.lengths).tolist()
    for tokens in (1, lengths[0], sum(lengths[:25]), sum(lengths[:31]) + 1, sum(lengths), 10**6):
        reader = reader_of(alone(make_spec(), "pairs", first_tokens=tokens))
        assert reader.size == max(1, int((np.cumsum(lengths) <= tokens).sum()))


# ---- text that overlaps with evaluation ------------------------------------------------------------------------------


def test_pieces_that_overlap_are_left_out_of_every_epoch(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec()
    whole = reader_of(alone(spec, "text"))
    assert whole.size is not None
    ranges = {0: np.array([[0, 1], [100, 180]]), 1: np.zeros((0, 2), dtype=np.int64), 2: np.array([[5, 9]])}
    nothing = np.zeros((0, 2), dtype=np.int64)
    monkeypatch.setattr(task_reader, "load_ranges", lambda _, shard, copies: ranges.get(shard, nothing))
    reader = reader_of(alone(spec, "text", overlap="anywhere/overlap-0123"))
    length = spec.piece_length(alone(spec, "text").tasks[0])
    left_out = 1 + len(range(100 // length, 179 // length + 1)) + 1
    assert reader.size == whole.size - left_out
    found = {reader.origin(draw) for draw in range(reader.size)}
    assert len(found) <= reader.size


# ---- sources that are still being prepared ---------------------------------------------------------------------------


@pytest.fixture
def growing(tmp_path: Path) -> Callable[[int], None]:
    """An open cache of six shards; called with a shard's number, it commits that shard."""
    place = tmp_path / "growing-0123456789abcdef"
    begin(place, "growing", "unsupervised", {"made": "for a test"}, {"train": 6})

    def add(shard: int) -> None:
        lengths = np.full(4, 200 + shard)
        tokens = Ragged(np.arange(int(lengths.sum()), dtype=np.int32) + 3 + 1000 * shard, offsets_of(lengths))
        write_shard(place, shard, 6, "train", pa.table({"tokens": tokens.to_arrow()}))

    return add


def spec_of(make_spec: MakeSpec, place: Path) -> StreamSpec:
    tasks = (StreamTask("growing", str(place), ONE, "span_corruption"),)
    return make_spec(tasks=tasks, lanes=2, global_batch_size=4, block_size=8, vocabulary_size=10_000)


def test_L1_a_stream_begins_with_the_first_shards_and_goes_on_as_if_all_had_been_there(
    make_spec: MakeSpec, growing: Callable[[int], None], tmp_path: Path
) -> None:
    spec = spec_of(make_spec, tmp_path / "growing-0123456789abcdef")
    order = first_epoch_shards(spec.seed, "growing", 6)
    for shard in order[:2]:
        growing(shard)
    early = RankStream(MixtureStream(spec))
    seen = [batch_fingerprint([early.next_batch()])]
    assert early.stream.epoch_sizes == {"growing": None}
    preparing = threading.Thread(target=lambda: [growing(shard) for shard in order[2:]])
    waiting = threading.Thread(target=lambda: [seen.append(batch_fingerprint([early.next_batch()])) for _ in range(29)])
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()  # for the third shard
    preparing.start()
    waiting.join(60)
    late = RankStream(MixtureStream(spec))
    assert [batch_fingerprint([late.next_batch()]) for _ in range(30)] == seen
    assert open_cache(spec.tasks[0].cache).is_committed(5)


def test_a_stream_that_waits_is_told_that_the_preparation_failed(
    make_spec: MakeSpec, growing: Callable[[int], None], tmp_path: Path
) -> None:
    spec = spec_of(make_spec, tmp_path / "growing-0123456789abcdef")
    for shard in first_epoch_shards(spec.seed, "growing", 6)[:2]:
        growing(shard)
    early = RankStream(MixtureStream(spec))
    early.next_batch()
    leave_failure(tmp_path / "growing-0123456789abcdef", DataError("the bucket is gone"))
    with pytest.raises(DataError, match="the bucket is gone"):
        for _ in range(30):
            early.next_batch()
