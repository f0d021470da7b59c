"""`mixtura evaluate`: the numbers of training again, of any checkpoint, any model, or several as one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.config import Config
from mixtura.platform.errors import RequestError
from mixtura.platform.orchestration.ensembles import answerer
from mixtura.platform.orchestration.evaluate_by_hand import (
    Wanted,
    benchmark_lines,
    evaluate,
    evaluate_model,
    evaluate_run,
    is_of_run,
)
from mixtura.platform.orchestration.model_folder import export_checkpoint
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.records import LOSS, EvaluationResult, evaluation_results, read_events
from mixtura.platform.workspace import Workspace, workspace

pytestmark = pytest.mark.slow

MODULE = "python_docs_module"
INLINE = ("executor.kind=inline", "evaluation.examples=20")


@pytest.fixture(scope="module")
def space(module_workspace: Path, tiny_config: Callable[..., Config]) -> Workspace:
    """With a run `base`, whose steps 4 and 8 were saved and evaluated on 20 examples of each task."""
    train_recipe("quickstart", tiny_config(module_workspace, "base", *INLINE), SilentReporter())
    return workspace(str(module_workspace))


@pytest.fixture
def measure(space: Workspace, tiny_config: Callable[..., Config]) -> Callable[..., list[dict[str, Any]]]:
    """Evaluates a model of no run on the tasks of the tiny quickstart."""

    def run(name: str, *overrides: str, wanted: Wanted | None = None) -> list[dict[str, Any]]:
        config = tiny_config(space.root, "any", *INLINE, *overrides)
        return evaluate_model(space, answerer(space, name), "quickstart", config, wanted or Wanted(), SilentReporter())

    return run


def results(space: Workspace) -> list[EvaluationResult]:
    return evaluation_results(read_events(space.run("base").events))


def numbers(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What a table says; losses may differ in their last bits where rows stood in other batches."""
    names, values = ("task", "split", "metric", "rows"), ("value", "loss")
    return [(*(row[name] for name in names), *(pytest.approx(row[name], rel=1e-4) for name in values)) for row in rows]


def test_a_run_is_measured_as_while_it_trained(space: Workspace) -> None:
    before, run = results(space), space.run("base")
    predictions = {path: path.read_text() for path in run.predictions.rglob("*.jsonl")}
    rows = evaluate_run(space, "base", Wanted(), SilentReporter())
    assert [(row["model"], row["task"], row["metric"], row["value"]) for row in rows] == [
        (f"base@{one.step}", one.task, one.metric, one.value) for one in before if one.metric != LOSS
    ]
    assert {(row["model"], row["task"]): row["loss"] for row in rows} == {
        (f"base@{one.step}", one.task): one.value for one in before if one.metric == LOSS
    }
    assert {path: path.read_text() for path in run.predictions.rglob("*.jsonl")} == predictions
    assert len(results(space)) == 2 * len(before)


def test_what_was_measured_is_in_the_run_s_table_and_in_mlflow(space: Workspace) -> None:
    rows = evaluate_run(space, "base@last", Wanted(("module",), whole=True), SilentReporter())
    assert {(row["model"], row["task"], row["split"]) for row in rows} == {("base@8", MODULE, "test")}
    assert rows[0]["baseline"] is not None
    new, loss = [one for one in results(space) if one.split == "test"]
    assert (loss.metric, loss.value) == (LOSS, rows[0]["loss"])
    assert (new.step, new.value, new.examples) == (8, rows[0]["value"], rows[0]["rows"])
    sent = json.loads((space.run("base").path / "mlflow.json").read_text())["results"]
    assert [one["value"] for one in sent if one["split"] == "test"] == [new.value, loss.value]
    answers = (space.run("base").predictions / f"step-000008/{MODULE}.test.jsonl").read_text().splitlines()
    assert len(answers) == new.examples
    records = [json.loads(line) for line in answers]
    assert all(one["log_probability"] < 0 for one in records)
    tokens = sum(one["target_tokens"] for one in records)
    assert loss.value == pytest.approx(-sum(one["target_log_probability"] for one in records) / tokens)
    assert loss.target_tokens == tokens


def test_a_folder_for_others_has_the_numbers_of_its_checkpoint_whatever_the_batches(
    space: Workspace, measure: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    export_checkpoint(space, "base@8", tmp_path / "exported")
    expected = numbers(evaluate_run(space, "base@8", Wanted(), SilentReporter()))
    assert numbers(measure(str(tmp_path / "exported"))) == expected
    assert numbers(measure(str(tmp_path / "exported"), "evaluation.batch_tokens=128")) == expected
    (folder,) = (space.root / "evaluations").glob("*exported-quickstart-*")
    kept = json.loads((folder / "results.json").read_text())
    assert [one["metrics"][0]["value"] for one in kept["results"][:3]] == [row[4] for row in expected[:3]]
    again, before = (
        [json.loads(line) for line in (place / f"{MODULE}.validation.jsonl").read_text().splitlines()]
        for place in (folder / "predictions", space.run("base").predictions / "step-000008")
    )
    for name in ("log_probability", "target_log_probability"):
        likelihoods = [[one.pop(name) for one in records] for records in (again, before)]
        assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-4)
    assert again == before


def test_several_checkpoints_are_measured_as_one(
    space: Workspace, measure: Callable[..., list[dict[str, Any]]]
) -> None:
    expected = numbers(evaluate_run(space, "base@8", Wanted(("module",)), SilentReporter()))
    for name in ("ensemble:base@8,base@8", "average:base@8,base@8"):
        rows = measure(name, wanted=Wanted((MODULE,)))
        assert numbers(rows) == expected
        assert {row["model"] for row in rows} == {name}
    assert len(measure("ensemble:base@4,base@8")) > len(expected)


def test_held_out_text_is_measured_by_bits_per_byte(space: Workspace) -> None:
    text = [one for one in results(space) if one.task == "python_docs_span_corruption"]
    assert {one.metric for one in text} == {"bits_per_byte", "perplexity", LOSS}
    assert not any(one.higher_is_better for one in text)
    path = space.run("base").predictions / "step-000008/python_docs_span_corruption.validation.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    nats, tokens, size = (
        sum(one[name] for one in records) for name in ("target_log_probability", "target_tokens", "target_bytes")
    )
    last = {one.metric: one.value for one in text if one.step == 8}
    assert last["bits_per_byte"] == pytest.approx(-nats / math.log(2) / size)
    assert last["perplexity"] == pytest.approx(math.exp(-nats / tokens))
    assert last[LOSS] == pytest.approx(-nats / tokens)
    written = sum(len(re.sub(r" ?<extra_id_[0-9]+> ?", "", one["targets"]).encode()) for one in records)
    assert written <= size < 1.5 * written  # what stands at a sentinel loses its space when it is shown


def test_text_is_measured_in_any_batches_and_precision_alike(
    space: Workspace, measure: Callable[..., list[dict[str, Any]]]
) -> None:
    wanted = Wanted(("span_corruption",))
    plain = measure("base@8", wanted=wanted)
    assert numbers(measure("base@8", "evaluation.batch_tokens=128", wanted=wanted)) == numbers(plain)
    rounded = measure("base@8", "evaluation.precision=bf16", wanted=wanted)
    assert [row["value"] for row in rounded] == pytest.approx([row["value"] for row in plain], rel=0.02)
    assert [row["value"] for row in rounded] != [row["value"] for row in plain]


def test_benchmarks_are_averaged_for_each_model() -> None:
    rows = [
        {"model": model, "task": f"glue_{task}", "metric": "accuracy", "value": value}
        for model, value in (("a", 50.0), ("b", 70.0))
        for task in ("rte", "sst2")
    ]
    first, second = benchmark_lines(rows)
    assert first.startswith("a: GLUE 50.0 (2 of 8; missing: ")
    assert second.startswith("b: GLUE 70.0 (2 of 8")


def test_a_name_of_no_run_or_no_task_is_refused(space: Workspace) -> None:
    before = len(results(space))
    assert all(is_of_run(space, name) for name in ("base", "base@4", "base@best"))
    assert not any(is_of_run(space, name) for name in ("nobody", "a/base", "models:/base@x", "ensemble:base@4,base@8"))

    def refused(*what: str, recipe: str | None = None, tasks: tuple[str, ...] = (), match: str) -> None:
        with pytest.raises(RequestError, match=match):
            evaluate(space, what, recipe, (), Wanted(tasks), SilentReporter())

    refused("base", tasks=("modul",), match="no evaluated task 'modul'")
    refused("base@4", "base@5", match="no checkpoint 'base@5'")
    refused("base@4", "nobody", match="'nobody' is no run or checkpoint of one")
    refused("base@4", "ensemble:base@4,base@5", recipe="quickstart", match="no checkpoint 'base@5'")
    assert len(results(space)) == before
