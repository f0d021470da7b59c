"""A run over tasks from files: judges of other tasks, whole validation splits, averages, tasks without data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.orchestration.evaluate import WHOLE_VALIDATION, final_jobs_for, jobs_for
from mixtura.platform.orchestration.evaluation_examples import training_targets
from mixtura.platform.orchestration.evaluation_job import run_job
from mixtura.platform.orchestration.prepare import Prepared, map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.result import benchmark_lines, result_table
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.records import EvaluationResult, evaluation_results, read_events
from mixtura.platform.workspace import Run, workspace

LABELS = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNLI with one of its validation sets, RTE whole, DPR with a test set that has answers."""
    root = tmp_path_factory.mktemp("data")
    (root / "MNLI").mkdir()
    (root / "RTE").mkdir()
    columns = "index\tsentence1\tsentence2\tgold_label\n"
    for name, rows in (("train", 30), ("dev_matched", 25)):
        lines = [f"{at}\tpremise {at}\thypothesis {at}\t{LABELS[at % 3 if at % 2 else 0]}\n" for at in range(rows)]
        (root / f"MNLI/{name}.tsv").write_text(columns + "".join(lines))
    for name, rows in (("train", 20), ("dev", 12)):
        lines = [f"{at}\tfirst {at}\tsecond {at}\t{('entailment', 'not_entailment')[at % 2]}\n" for at in range(rows)]
        (root / f"RTE/{name}.tsv").write_text(columns.replace("gold_label", "label") + "".join(lines))
    blocks = "".join(f"Ann saw Bob when he came {at}.\nhe\nAnn,Bob\nBob\n\n" for at in range(9))
    for name in ("train", "test"):
        (root / f"{name}.c.txt").write_text(blocks)
    return root


@pytest.fixture(scope="module")
def given(data: Path, workspace_root: Path, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    vocabulary = next(workspace_root.glob("caches/vocabulary-*/spiece.model"))
    return [
        *tiny,
        "mixture.tasks=[glue_mnli, glue_rte, dpr]",
        f"data.root={data}",
        f"vocabulary.path={vocabulary}",
        f"run.root={tmp_path_factory.mktemp('evaluate') / 'runs'}",
        "run.name=files",
        "executor.kind=inline",
        "evaluation.examples=5",
    ]


@pytest.fixture(scope="module")
def prepared(given: list[str]) -> Prepared:
    tree = load_recipe("quickstart", given)
    return prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())


def test_judges_are_prepared_and_tasks_without_data_are_left_out_with_a_line(given: list[str]) -> None:
    class Lines(SilentReporter):
        said: list[str] = []  # noqa: RUF012

        def line(self, text: str = "") -> None:
            self.said.append(text)

    tree = load_recipe("quickstart", given)
    made = prepare(tree, workspace(tree.run.root), map_inline, Lines())
    assert set(made.caches) == {"glue_mnli", "glue_rte", "dpr", "glue_mnli_matched"}
    assert "glue_mnli_mismatched: there are no rows with public answers to evaluate it on; it is left out" in Lines.said


def test_checkpoints_are_measured_on_validation_and_the_best_one_on_whole_splits(
    given: list[str], prepared: Prepared
) -> None:
    tree = load_recipe("quickstart", given)
    during = {(job.name, job.split, job.named, job.limit) for job in jobs_for(tree, prepared)}
    assert during == {
        ("glue_mnli_matched", "validation", "validation", 5),
        ("glue_rte", "validation", "validation", 5),
    }
    final = {(job.name, job.split, job.named, job.limit) for job in final_jobs_for(tree, prepared)}
    assert final == {
        ("glue_mnli_matched", "validation", WHOLE_VALIDATION, None),
        ("glue_rte", "validation", WHOLE_VALIDATION, None),
        ("dpr", "test", "test", None),
    }


def test_a_judge_is_compared_with_the_training_outputs_of_the_task_that_it_judges(
    given: list[str], prepared: Prepared
) -> None:
    from mixtura.platform.data.vocabulary import Vocabulary

    (job,) = [job for job in final_jobs_for(load_recipe("quickstart", given), prepared) if "matched" in job.name]
    counts = training_targets(job.training, Vocabulary(prepared.vocabulary))
    assert sum(counts.values()) == 30
    assert counts.most_common(1)[0][0] == "entailment"


@pytest.fixture(scope="module")
def run(given: list[str], prepared: Prepared) -> Run:
    tree = load_recipe("quickstart", given)
    train_recipe("quickstart", tree, SilentReporter())
    return workspace(tree.run.root).run("files")


@pytest.mark.slow
def test_a_checkpoint_answers_texts_greedily_or_by_beam_search(run: Run) -> None:
    from mixtura.platform.orchestration.ensembles import answerer, load
    from mixtura.platform.orchestration.predict import answers

    checkpoint = answerer(workspace(str(run.path.parent)), str(next(iter(sorted(run.checkpoints.glob("step-*"))))))
    model = load(checkpoint)
    texts = ["mnli hypothesis: a premise: b", "rte sentence1: a sentence2: b", "mnli hypothesis: c premise: d"]
    told: list[int] = []
    greedy = answers(*model, texts, decode_length=4, progress=told.append)
    assert told == [1, 2, 3]
    assert answers(*model, texts, decode_length=4, beams=1, length_penalty=2.0) == greedy
    searched = answers(*model, texts, decode_length=4, beams=3)
    assert all(one.log_probability < 0 for one in [*greedy, *searched])
    alone = answers(*model, texts[1:], decode_length=4, beams=3)
    assert [one.text for one in alone] == [one.text for one in searched[1:]]
    assert [one.log_probability for one in alone] == pytest.approx([one.log_probability for one in searched[1:]])


@pytest.mark.slow
def test_the_final_table_has_every_row_of_every_split(run: Run) -> None:
    rows = {(row["task"], row["split"], row["metric"]): row for row in result_table(run)}
    assert {key: row["rows"] for key, row in rows.items()} == {
        ("glue_mnli_matched", "validation", "accuracy"): 25,
        ("glue_rte", "validation", "accuracy"): 12,
        ("dpr", "test", "accuracy"): 9,
    }
    assert rows["glue_mnli_matched", "validation", "accuracy"]["baseline"] >= 50.0
    assert rows["dpr", "test", "accuracy"]["baseline"] == 100.0
    (line,) = benchmark_lines(run)
    assert line.startswith("GLUE ")
    assert "(1 of 8; missing: glue_cola" in line
    assert "glue_mnli_mismatched" in line


@pytest.mark.slow
def test_results_say_which_examples_they_are_of(run: Run, prepared: Prepared) -> None:
    results = evaluation_results(read_events(run.events))
    assert {one.split for one in results} == {"validation", "validation_whole", "test"}
    for one in results:
        digest = prepared.caches[one.task].rpartition("-")[2]
        assert one.data == (f"{digest}-5" if one.split == "validation" else digest)
        assert one.data_source == prepared.caches[one.task]


@pytest.mark.slow
def test_answers_to_the_same_examples_are_judged_again_and_not_asked_again(run: Run, given: list[str]) -> None:
    tree = load_recipe("quickstart", [*given, "evaluation.examples=null", "run.name=whole"])
    train_recipe("quickstart", tree, SilentReporter())
    whole = workspace(tree.run.root).run("whole")
    results = [record for record in read_events(whole.events) if isinstance(record, EvaluationResult)]
    best = next(record.step for record in results if record.split == WHOLE_VALIDATION)
    values: dict[str, set[float]] = {}
    for record in results:
        if record.task == "glue_rte" and record.step == best:
            values.setdefault(record.split, set()).add(record.value)
    assert values["validation"] == values[WHOLE_VALIDATION]
    folder = next(whole.predictions.glob(f"step-{best:06d}"))
    asked, judged = (predictions(folder / f"glue_rte.{split}.jsonl") for split in ("validation", WHOLE_VALIDATION))
    assert asked == judged
    assert len(asked) == 12


def test_answers_that_were_decoded_otherwise_are_asked_anew(
    given: list[str], prepared: Prepared, tmp_path: Path
) -> None:
    from mixtura.platform.evaluation.evaluator import Prediction
    from mixtura.platform.orchestration.evaluation_job import _earlier_answers

    (job,) = [job for job in final_jobs_for(load_recipe("quickstart", given), prepared) if job.name == "glue_rte"]
    earlier = tmp_path / "answers.jsonl"
    answer = {"prediction": "entailment", "log_probability": -1.5, "target_log_probability": -2.5}
    earlier.write_text(json.dumps({**answer, **job.asked}) + "\n")
    job = replace(job, earlier_answers=str(earlier))
    found = _earlier_answers(job, 1)
    assert found is not None
    assert found.predictions == [Prediction("entailment", -1.5, -2.5)]
    assert _earlier_answers(job, 2) is None
    assert _earlier_answers(replace(job, decode_length=job.decode_length + 1), 1) is None
    assert _earlier_answers(replace(job, beams=4), 1) is None
    assert _earlier_answers(replace(job, rank=True), 1) is None
    assert _earlier_answers(replace(job, precision="bf16"), 1) is None


@pytest.mark.slow
def test_ranked_answers_are_always_classes_and_the_likeliest_of_them(
    run: Run, given: list[str], prepared: Prepared, tmp_path: Path
) -> None:
    tree = load_recipe("quickstart", [*given, "evaluation.classification=rank"])
    jobs = {job.name: job for job in final_jobs_for(tree, prepared)}
    checkpoint, answers = str(max(run.checkpoints.glob("step-*"))), tmp_path / "answers.jsonl"
    result = run_job(replace(jobs["glue_rte"], checkpoint=checkpoint, answers=str(answers)))
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(records) == result["examples"] == 12
    for record in records:
        assert record["prediction"] in ("entailment", "not_entailment")
        likelier = record["log_probability"] - record["target_log_probability"]
        right = record["prediction"] == record["targets"]
        assert likelier == pytest.approx(0, abs=1e-4) if right else likelier > 0
    job = replace(jobs["dpr"], checkpoint=checkpoint, answers=str(answers))  # any noun: it has no classes
    ranked, generated = (run_job(replace(job, rank=rank))["metrics"] for rank in (True, False))
    assert ranked == generated


def test_a_recipe_says_how_answers_are_decoded(given: list[str], prepared: Prepared) -> None:
    tree = load_recipe("quickstart", [*given, "evaluation.beams=4", "evaluation.length_penalty=0.8"])
    for job in [*jobs_for(tree, prepared), *final_jobs_for(tree, prepared)]:
        asked = {"decode_length": tree.evaluation.decode_length, "beams": 4, "length_penalty": 0.8}
        assert job.asked == {**asked, "precision": "fp32"}
    tree = load_recipe("quickstart", [*given, "evaluation.classification=rank", "evaluation.precision=bf16"])
    assert all(job.rank and job.precision == "bf16" for job in jobs_for(tree, prepared))


def predictions(path: Path) -> list[Any]:
    return [json.loads(line)["prediction"] for line in path.read_text(encoding="utf-8").split("\n") if line]
