"""What a run reports: one JSON object a line, appended and flushed as it happens.

    runs/NAME/events/
      train-0001-1790000000000000000.jsonl       one file for each process that reports
      evaluate-000100-validation-179....jsonl

    {"kind": "train", "step": 10, "metrics": {"loss": 5.21}, "time_s": 1790000012.5}

Nobody writes to a file that somebody else began: a line that a killed process left unfinished stays the last one of its
file, and readers leave it alone. Times are Unix seconds, set when the record is made; whoever shows or stores a record
uses them, so that telling it twice changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

from mixtura.platform.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Record:
    """Anything that a run reports, and when it happened (Unix seconds)."""

    kind: ClassVar[str]
    time_s: float = field(default_factory=time.time)


@dataclass(frozen=True)
class RunStarted(Record):
    """An attempt began."""

    kind: ClassVar[str] = "started"
    attempt: int


@dataclass(frozen=True)
class RunFinished(Record):
    """An attempt ended; "resumable" is a clean stop before the last step."""

    kind: ClassVar[str] = "finished"
    status: Literal["done", "resumable", "failed"]
    message: str = ""


@dataclass(frozen=True)
class TrainPoint(Record):
    """What was measured at a step. `fingerprint` is the hash of the step's global batch."""

    kind: ClassVar[str] = "train"
    step: int
    metrics: Mapping[str, float]
    fingerprint: str | None = None


@dataclass(frozen=True)
class SystemPoint(Record):
    """How busy a machine of the run was."""

    kind: ClassVar[str] = "system"
    node: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CheckpointCommitted(Record):
    """A checkpoint is whole and listed."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str


@dataclass(frozen=True)
class EvaluationResult(Record):
    """One metric of one task for one checkpoint, with its 95 % interval.

    The metric that is reported first for a task is its headline. `baseline` is what the trivial answer named by
    `baseline_rule` reaches; `seconds` is how long the evaluation took. `data` is the digest of the examples that were
    answered, and `data_source` the place of the cache that they are in.
    """

    kind: ClassVar[str] = "evaluation"
    step: int
    task: str
    split: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    baseline_rule: str | None = None
    examples: int | None = None
    seconds: float | None = None
    higher_is_better: bool = True
    target_tokens: int | None = None
    """of the right answers, which a loss is over"""
    data: str | None = None
    data_source: str | None = None


@dataclass(frozen=True)
class EvaluationSkipped(Record):
    """A checkpoint that will not be evaluated, unless by hand, and why."""

    kind: ClassVar[str] = "skipped"
    step: int
    reason: str


@dataclass(frozen=True)
class Note(Record):
    """Something a person should know: a checkpoint that was passed over, a worker that was started again."""

    kind: ClassVar[str] = "note"
    text: str


_KINDS: dict[str, type[Record]] = {
    record.kind: record
    for record in (
        RunStarted,
        RunFinished,
        TrainPoint,
        SystemPoint,
        CheckpointCommitted,
        EvaluationResult,
        EvaluationSkipped,
        Note,
    )
}


def to_line(record: Record) -> str:
    r"""One line of JSON. Numbers that JSON has no word for are written as strings.

    >>> to_line(TrainPoint(10, {"loss": float("nan")}, time_s=5.0))
    '{"kind": "train", "step": 10, "metrics": {"loss": "nan"}, "time_s": 5.0}\n'
    """
    values = {name: value for name, value in asdict(record).items() if value is not None}
    time_s = values.pop("time_s")
    return json.dumps({"kind": record.kind, **_plain(values), "time_s": time_s}, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_line(line: str | bytes) -> Record:
    """The record of a line; the inverse of `to_line`."""
    try:
        values = json.loads(line)
        record = _KINDS[values.pop("kind")]
        known = {entry.name for entry in fields(record)}
        values = {name: value for name, value in values.items() if name in known}
        if record in (TrainPoint, SystemPoint):
            values["metrics"] = {name: float(value) for name, value in values["metrics"].items()}
        if record is EvaluationResult:
            values |= {name: float(values[name]) for name in ("value", "low", "high", "baseline") if name in values}
        return record(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a record of a run: {line!r} ({type(error).__name__}: {error})") from error


class EventWriter:
    """Appends records to a file of its own; each is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # Refuses an existing file: another process may have left half a line at its end.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def write(self, *records: Record) -> None:
        """Append records in one go, so that a reader sees all of them or none."""
        data = "".join(map(to_line, records)).encode()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Make what was written survive a crash of the machine, and let go of the file."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class EventReader:
    """Reads what is new in a folder of events. `positions`, bytes read by file name, is all its memory."""

    def __init__(self, folder: Path, positions: Mapping[str, int] | None = None) -> None:
        self.folder = folder
        self.positions: dict[str, int] = dict(positions or {})

    def read(self) -> list[Record]:
        """The records written since the last call, in the order of their times over all files."""
        records: list[Record] = []
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "rb") as file:
                file.seek(self.positions.get(path.name, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]  # what follows is being written, or was when its writer died
            records += [from_line(line) for line in whole.splitlines()]
            self.positions[path.name] = self.positions.get(path.name, 0) + len(whole)
        return sorted(records, key=lambda record: record.time_s)


def read_events(folder: Path) -> list[Record]:
    """All records of a run."""
    return EventReader(folder).read()


LOSS = "loss"
"""The metric that every task has beside its own: nats for each token of the right answers."""


def evaluation_results(records: Iterable[Record]) -> list[EvaluationResult]:
    """The evaluation results among records, in their order."""
    return [record for record in records if isinstance(record, EvaluationResult)]
