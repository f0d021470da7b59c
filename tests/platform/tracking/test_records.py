"""What is reported is read back, once, in order, whatever happens to the writers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mixtura.platform.errors import DataError
from mixtura.platform.tracking.records import (
    CheckpointCommitted,
    EvaluationResult,
    EventReader,
    EventWriter,
    Note,
    Record,
    RunFinished,
    RunStarted,
    TrainPoint,
    from_line,
    read_events,
    to_line,
)

REPOSITORY = Path(__file__).resolve().parents[3]
RECORDS: list[Record] = [
    RunStarted(1, time_s=1.0),
    TrainPoint(10, {"loss": 0.1 + 0.2, "loss/rte": math.inf}, "ab12", time_s=2.25),
    CheckpointCommitted(10, "/runs/x/checkpoints/step-000010", time_s=3.0),
    EvaluationResult(
        10, "rte", "validation", "accuracy", 60.5, 55.0, 65.0, 50.0, "most frequent", 277, 8.5, time_s=4.0
    ),
    EvaluationResult(10, "lm", "validation", "loss", 2.5, higher_is_better=False, time_s=5.0),
    Note("a worker was started again", time_s=6.0),
    RunFinished("done", "all steps", time_s=7.0),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_records_come_back_exactly_from_strict_json(record: Record) -> None:
    line = to_line(record)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert from_line(line) == record


def test_not_a_number_survives() -> None:
    point = from_line(to_line(TrainPoint(1, {"loss": math.nan})))
    assert isinstance(point, TrainPoint)
    assert math.isnan(point.metrics["loss"])


@pytest.mark.parametrize("line", ["", "[1]", '{"kind": "dance"}', '{"kind": "note"}', "{"])
def test_a_line_that_is_no_record_is_shown(line: str) -> None:
    with pytest.raises(DataError, match="not a record of a run"):
        from_line(line)


def test_fields_of_a_later_version_are_left_alone() -> None:
    assert from_line('{"kind": "note", "text": "x", "mood": "good", "time_s": 1.0}') == Note("x", time_s=1.0)


def test_a_reader_gives_every_record_once_in_the_order_of_time(tmp_path: Path) -> None:
    train, evaluate = EventWriter(tmp_path / "train-0001.jsonl"), EventWriter(tmp_path / "evaluate-000010.jsonl")
    reader = EventReader(tmp_path)
    assert reader.read() == []
    train.write(*RECORDS[:3])
    evaluate.write(*RECORDS[3:5])
    assert reader.read() == RECORDS[:5]
    assert reader.read() == []
    train.write(*RECORDS[5:])
    assert reader.read() == RECORDS[5:]
    train.close()
    evaluate.close()
    assert read_events(tmp_path) == RECORDS


def test_positions_can_be_stored_and_taken_up_again(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "a.jsonl") as writer:
        writer.write(RECORDS[0])
        first = EventReader(tmp_path)
        assert first.read() == RECORDS[:1]
        positions = json.loads(json.dumps(first.positions))
        writer.write(*RECORDS[1:])
    assert EventReader(tmp_path, positions).read() == RECORDS[1:]


def test_a_torn_line_waits_for_its_end_and_is_never_taken_without_it(tmp_path: Path) -> None:
    line = to_line(RECORDS[1]).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(to_line(RECORDS[0]).encode() + line[:20])
    reader = EventReader(tmp_path)
    assert reader.read() == RECORDS[:1]
    assert reader.read() == []
    with open(path, "ab") as file:
        file.write(line[20:])
    assert reader.read() == RECORDS[1:2]


def test_no_writer_goes_on_in_a_file_of_another(tmp_path: Path) -> None:
    EventWriter(tmp_path / "a.jsonl").close()
    with pytest.raises(FileExistsError):
        EventWriter(tmp_path / "a.jsonl")


@pytest.mark.slow
def test_what_a_killed_writer_wrote_is_readable(tmp_path: Path) -> None:
    code = (
        "import sys, itertools; from pathlib import Path\n"
        "from mixtura.platform.tracking.records import EventWriter, TrainPoint\n"
        "writer = EventWriter(Path(sys.argv[1]))\n"
        "for step in itertools.count(): writer.write(TrainPoint(step, {'loss': 1.0})); print(step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.jsonl")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    for _ in range(500):
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    steps = [record.step for record in read_events(tmp_path) if isinstance(record, TrainPoint)]
    assert steps == list(range(len(steps)))
    assert len(steps) > told
