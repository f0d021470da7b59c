"""Answers for a benchmark's site: every row of a hidden test split, asked as in validation, in one archive.

raw row -> example -> question (its index, what the model reads) -> answer -> what the file says
the files of all tasks -> an archive, whose bytes depend on nothing else
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtura.platform.data.submission import Index, SubmissionFile
from mixtura.platform.data.task import BadRecord, Rejected, RejectedRow, Row, Shard, Task
from mixtura.platform.errors import DataError
from mixtura.platform.evaluation.evaluator import Prediction

SPLIT = "test"

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)
"""The earliest time that an archive can hold."""
_READABLE = 0o644 << 16


@dataclass(frozen=True)
class Question:
    """One example of a test split, and how a submission names it."""

    index: Index
    fields: Row


def questions(task: Task) -> Iterator[Question]:
    """All of a task's test split, in the order of its files.

    A row that makes no example, or has no index of its own, is a DataError that names it: a site refuses a file with a
    row missing. A row that makes the same example several times, once for each accepted answer, is asked once.
    """
    asked: dict[Index, tuple[int, int]] = {}
    place = 0
    for shard in task.shards(SPLIT):
        for number, row in enumerate(task.source.read(shard)):
            try:
                for question in _questions_of(task, row, shard, place):
                    this = place, hash(question.fields["inputs"])
                    before = asked.setdefault(question.index, this)
                    if before is this:
                        yield question
                    elif before != this:
                        raise Rejected(f"another one has its index, {', '.join(map(str, question.index))}")
            except Rejected as rejected:
                text = row.text if isinstance(row, BadRecord) else json.dumps(row, ensure_ascii=True, default=repr)
                raise DataError(
                    f"task {task.name!r}: row {number} of its {SPLIT} split, in {shard.name}, cannot be asked "
                    f"({rejected.reason}), and a submission must answer every row: mend it; it begins {text:.200}"
                ) from None
            place += 1


def _questions_of(task: Task, row: Row | BadRecord, shard: Shard, place: int) -> Iterator[Question]:
    """The questions of one row; Rejected where it makes none, or one that cannot be named or read."""
    for item in task.transform([row], shard.name, SPLIT):
        if isinstance(item, RejectedRow):
            raise Rejected(item.reason)
        try:
            item.fields["inputs"].encode()
            known = {**row, **item.fields} if isinstance(row, dict) else item.fields
            yield Question(file_of(task).index_of(known, place), item.fields)
        except UnicodeError:
            raise Rejected("half of a surrogate pair") from None
        except (LookupError, ValueError) as error:
            raise Rejected(str(error.args[0])) from None


def file_of(task: Task) -> SubmissionFile:
    """The file of a task that has one."""
    if task.submission is None:
        raise DataError(f"task {task.name!r} has no file in a benchmark's archive")
    return task.submission


def answer_records(
    task: Task, asked: Sequence[Question], predictions: Sequence[Prediction]
) -> Iterator[dict[str, Any]]:
    """What is kept of each answer: the text and how likely it is, what the file says for it, and what was wrong."""
    for question, prediction in zip(asked, predictions, strict=True):
        said = file_of(task).said(task.postprocess(prediction.text, question.fields))
        yield {
            "index": list(question.index),
            "inputs": question.fields["inputs"],
            "prediction": prediction.text,
            "log_probability": prediction.log_probability,
            "said": said.value,
            "fault": said.fault,
        }


def archive(files: Mapping[str, str]) -> bytes:
    """A zip archive of texts by name: the same texts make the same bytes.

    >>> archive({"b.tsv": "2", "a.tsv": "1"}) == archive({"a.tsv": "1", "b.tsv": "2"})
    True
    """
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.create_system, entry.external_attr = 3, _READABLE
            file.writestr(entry, files[name].encode(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return made.getvalue()


def texts_in(data: bytes) -> dict[str, str]:
    """The texts of an archive by name, read back with their checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name).decode() for name in file.namelist()}
