"""The tasks against what the original code answered: same text, same answers, same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.data.task import Example, RejectedRow, Row, Task
from mixtura.tasks import get_task

# File of worked answers, our task, split for which its rows are prepared.
GOLDEN = {
    "ax": ("glue_ax", "test"),
    "axb": ("super_glue_axb", "test"),
    "axg": ("super_glue_axg", "test"),
    "boolq": ("super_glue_boolq", "train"),
    "cb": ("super_glue_cb", "train"),
    "cnndm": ("cnn_dailymail", "train"),
    "cola": ("glue_cola", "train"),
    "copa": ("super_glue_copa", "train"),
    "dpr": ("dpr", "train"),
    "ende": ("wmt_en_de", "train"),
    "enfr": ("wmt_en_fr", "train"),
    "enro": ("wmt_en_ro", "train"),
    "mnli": ("glue_mnli", "train"),
    "mnli_matched": ("glue_mnli_matched", "validation"),
    "mnli_mismatched": ("glue_mnli_mismatched", "validation"),
    "mrpc": ("glue_mrpc", "train"),
    "multirc": ("super_glue_multirc", "train"),
    "qnli": ("glue_qnli", "train"),
    "qqp": ("glue_qqp", "train"),
    "record": ("super_glue_record", "train"),
    "rte": ("glue_rte", "train"),
    "sg_rte": ("super_glue_rte", "train"),
    "squad": ("squad", "train"),
    "squad_context_free": ("squad_context_free", "train"),
    "squad_span": ("squad_span", "train"),
    "sst2": ("glue_sst2", "train"),
    "stsb": ("glue_stsb", "train"),
    "trivia_qa": ("trivia_qa", "train"),
    "wic": ("super_glue_wic", "train"),
    "wnli": ("glue_wnli_pair", "validation"),
    "wnli_simple": ("glue_wnli", "validation"),
    "wsc_eval": ("super_glue_wsc", "validation"),
    "wsc_marked": ("super_glue_wsc_marked", "train"),
    "wsc_train": ("super_glue_wsc", "train"),
}


def rows_of(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def exact(value: Any) -> Any:
    """A form in which -0.0 is not 0.0, NaN is itself, and a tuple is a list."""
    if isinstance(value, dict):
        return {name: exact(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [exact(part) for part in value]
    return repr(value) if isinstance(value, float) else value


def from_golden(value: Any) -> Any:
    """The worked answers write not-a-number as "nan"."""
    if isinstance(value, list):
        return [from_golden(part) for part in value]
    return math.nan if value == "nan" else value


def made(task: Task, row: Row, split: str) -> tuple[list[Row], list[str]]:
    items = list(task.transform([row], "golden", split))
    examples = [item.fields for item in items if isinstance(item, Example)]
    return examples, [item.reason for item in items if isinstance(item, RejectedRow)]


def test_every_file_of_worked_answers_has_its_task(shared: Path) -> None:
    names = {path.stem.removeprefix("task_") for path in (shared / "golden").glob("task_*.jsonl")}
    assert names == set(GOLDEN)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_rows_become_the_very_examples_of_the_original(name: str, shared: Path) -> None:
    task_name, split = GOLDEN[name]
    task = get_task(task_name)
    for row in rows_of(shared / f"golden/task_{name}.jsonl"):
        examples, reasons = made(task, row["raw"], split)
        assert exact(examples) == exact(row.get("outputs", [])), row["raw"]
        assert bool(reasons) == (not row.get("outputs")), row["raw"]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_preparing_leaves_the_raw_row_as_it_is(name: str, shared: Path) -> None:
    task_name, split = GOLDEN[name]
    for row in rows_of(shared / f"golden/task_{name}.jsonl"):
        before = json.dumps(row["raw"])
        made(get_task(task_name), row["raw"], split)
        assert json.dumps(row["raw"]) == before


def evaluations() -> list[Any]:
    path = Path(__file__).resolve().parents[2] / "../shared/golden/evaluate.jsonl"
    numbered = enumerate(rows_of(path)) if path.is_file() else ()
    return [pytest.param(row, id=f"{row['task']}-{number}") for number, row in numbered]


@pytest.mark.parametrize("case", evaluations())
def test_model_texts_become_the_very_answers_and_numbers_of_the_original(case: Any) -> None:
    task = get_task(GOLDEN[case["task"]][0])
    predictions = [task.postprocess(row["prediction"], row["example"]) for row in case["rows"]]
    targets = [task.answer(row["example"]) for row in case["rows"]]
    assert exact(predictions) == exact(from_golden(case["predictions"]))
    assert exact(targets) == exact(from_golden(case["targets"]))
    numbers = {metric.name: metric(predictions, targets) for metric in task.metrics}
    assert set(numbers) == set(case["metrics"])
    for name, number in numbers.items():
        assert number == pytest.approx(from_golden(case["metrics"][name]), rel=1e-6, nan_ok=True), name
