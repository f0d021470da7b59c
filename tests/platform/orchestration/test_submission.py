"""`mixtura evaluate --submission`: the answers of evaluation, to every row, whole in one archive or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from model_hub import write_model

from mixtura.models.t5 import T5Config
from mixtura.platform.errors import DataError, RequestError, UnknownNameError
from mixtura.platform.evaluation.submission import texts_in
from mixtura.platform.orchestration import submission
from mixtura.platform.orchestration.ensembles import answerer
from mixtura.platform.orchestration.evaluate_by_hand import Wanted, evaluate_model
from mixtura.platform.orchestration.evaluation_job import EvaluationJob
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.submission import Fault, Submission, submit
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.workspace import Workspace, workspace

SHAPE = T5Config(640, 32, 8, 64, 4, num_layers=1, num_decoder_layers=1, feed_forward="gated-gelu", tie_embeddings=False)

WORDS = ("rain", "a cup of tea", "nobody", "the old dog that sleeps by the door", "winter")
PAIRS = [(f"{first} is here.", f"Here is {second}.") for first in WORDS for second in WORDS]

RECIPE = """
extends: quickstart
mixture: {{tasks: {{{tasks}}}}}
data: {{root: {root}, inputs_length: 40, targets_length: 16}}
evaluation: {{decode_length: 6}}
executor: {{kind: inline}}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """RTE, whose test rows are those of validation without their labels, CoLA, and WNLI."""
    root = tmp_path / "data"
    for folder in ("RTE", "CoLA", "WNLI"):
        (root / folder).mkdir(parents=True)
    lines = [f"{number}\t{first}\t{second}" for number, (first, second) in enumerate(PAIRS)]
    header = "index\tsentence1\tsentence2"
    labelled = "\n".join([f"{header}\tlabel", *(f"{line}\tentailment" for line in lines)]) + "\n"
    (root / "RTE/train.tsv").write_text(labelled)
    (root / "RTE/dev.tsv").write_text(labelled)
    (root / "RTE/test.tsv").write_text("\n".join([header, *lines]) + "\n")
    (root / "CoLA/test.tsv").write_text("index\tsentence\n" + "".join(f"{n}\t{one}\n" for n, one in enumerate(WORDS)))
    (root / "WNLI/test.tsv").write_text(f"{header}\n0\tThe cup fell because it was thin.\tThe cup was thin.\n")
    return root


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return workspace(str(tmp_path / "runs"))


@pytest.fixture
def model(tmp_path: Path, tiny_vocabulary: Path) -> str:
    return str(write_model(tmp_path / "model", SHAPE, tiny_vocabulary))


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> Callable[..., str]:
    """A recipe file with these tasks."""

    def write(*tasks: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(tasks=", ".join(f"{task}: {{}}" for task in tasks), root=data))
        return str(path)

    return write


@pytest.fixture
def send(space: Workspace, model: str, recipe: Callable[..., str], tmp_path: Path) -> Callable[..., Submission]:
    """Writes an archive of the model's answers to tasks of a recipe."""

    def run(
        name: str, *tasks: str, set_: tuple[str, ...] = (), wanted: tuple[str, ...] = (), **more: Any
    ) -> Submission:
        benchmark, what = more.get("benchmark"), more.get("what", [model])
        return submit(space, what, recipe(*tasks), set_, wanted, benchmark, tmp_path / name, SilentReporter())

    return run


def kept(made: Submission, task: str) -> list[dict[str, Any]]:
    lines = (made.predictions / f"{task}.test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def texts(made: Submission) -> list[str]:
    """What the model answered to RTE and CoLA, before it is a label."""
    return [one["prediction"] for task in ("glue_rte", "glue_cola") for one in kept(made, task)]


def test_test_rows_are_answered_as_the_same_rows_in_evaluation(
    send: Callable[..., Submission], space: Workspace, model: str, recipe: Callable[..., str]
) -> None:
    made = send("rte.zip", "glue_rte")
    config = load_recipe(recipe("glue_rte"), [f"run.root={space.root}"])
    evaluate_model(space, answerer(space, model), "recipe", config, Wanted(("rte",), whole=True), SilentReporter())
    (path,) = (space.root / "evaluations").glob("*/predictions/glue_rte.validation_whole.jsonl")
    expected = [json.loads(line) for line in path.read_text().splitlines()]
    found = kept(made, "glue_rte")
    assert [one["index"] for one in found] == [[number] for number in range(len(PAIRS))]
    for name in ("inputs", "prediction", "log_probability", "decode_length", "beams"):
        assert [one[name] for one in found] == [one[name] for one in expected]
    assert len({one["prediction"] for one in found}) > 1


def test_an_archive_has_every_row_and_says_which_answers_are_no_label_and_which_files_are_missing(
    send: Callable[..., Submission],
) -> None:
    made = send("glue.zip", "glue_rte", "glue_cola", "glue_wnli")
    files = texts_in(made.path.read_bytes())
    assert {name: text.count("\n") - 1 for name, text in files.items()} == {"CoLA.tsv": 5, "RTE.tsv": 25, "WNLI.tsv": 1}
    assert {one.name: one.rows for one in made.files} == {"CoLA.tsv": 5, "RTE.tsv": 25, "WNLI.tsv": 1}
    cola, rte, _ = made.files
    assert cola.faults == (Fault("no label, written as 0", 5, kept(made, "glue_cola")[0]["prediction"]),)
    assert files["CoLA.tsv"] == "index\tprediction\n" + "".join(f"{number}\t0\n" for number in range(5))
    assert rte.faulty == 25
    assert set(made.missing) == {
        *("AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "QNLI.tsv", "QQP.tsv", "SST-2.tsv", "STS-B.tsv")
    }
    warnings = list(made.warnings())
    assert any(one.startswith("CoLA.tsv: 5 of 5 answers are no label, written as 0, for example") for one in warnings)
    assert "CoLA.tsv has 5 answers, and the site wants 1,063" in warnings
    assert "lacks files that the site wants" in warnings[-1]
    assert "MNLI-m.tsv (glue_mnli_matched)" in warnings[-1]


def test_the_same_answers_make_the_same_bytes_whatever_the_batches(send: Callable[..., Submission], model: str) -> None:
    first = send("a.zip", "glue_rte", "glue_cola")
    answers = texts(first)
    again = send("b.zip", "glue_cola", "glue_rte", changes=("evaluation.batch_tokens=128",))
    several = send("c.zip", "glue_rte", "glue_cola", what=[f"ensemble:{model},{model}"])
    assert texts(again) == texts(several) == answers
    assert again.path.read_bytes() == several.path.read_bytes() == first.path.read_bytes()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_makes_the_same_bytes(send: Callable[..., Submission], monkeypatch: pytest.MonkeyPatch) -> None:
    from mixtura.platform.config import ExecutorSection
    from mixtura.platform.orchestration.cluster import divide
    from mixtura.platform.orchestration.on_ray import RayExecutor

    inline = send("inline.zip", "glue_rte", "glue_cola")
    answers = texts(inline)
    executor = RayExecutor(divide(2, 0, ExecutorSection()), 0, shards_at_once=2, blocks_per_lane=1)
    monkeypatch.setattr(submission, "executor_for", lambda _: contextlib.nullcontext(executor))
    monkeypatch.setattr("mixtura.platform.orchestration.evaluation_job._SMALLEST_PART", 2)
    under_ray = send("ray.zip", "glue_rte", "glue_cola")
    assert texts(under_ray) == answers
    assert under_ray.path.read_bytes() == inline.path.read_bytes()


class Careless:
    """An executor whose answers to one task lack the last row."""

    def evaluate(self, jobs: list[EvaluationJob]) -> None:
        from mixtura.platform.orchestration.evaluation_job import run_job

        for job in jobs:
            run_job(job)
        path = Path(jobs[0].answers)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def test_answers_to_other_rows_than_were_asked_make_no_archive(
    send: Callable[..., Submission], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(submission, "executor_for", lambda _: contextlib.nullcontext(Careless()))
    with pytest.raises(DataError, match="'glue_rte': 24 rows were answered, and they are not the 25 rows"):
        send("short.zip", "glue_rte", "glue_cola")
    assert not (tmp_path / "short.zip").exists()


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is answered: an executor that is asked for fails the test."""

    @contextlib.contextmanager
    def refuse(_: object) -> Iterator[None]:
        pytest.fail("work was started")
        yield

    monkeypatch.setattr(submission, "executor_for", refuse)


@pytest.mark.usefixtures("no_work")
def test_what_makes_no_archive_is_refused_before_work(
    send: Callable[..., Submission], model: str, data: Path, tmp_path: Path
) -> None:
    def refused(
        match: str, *tasks: str, name: str = "x.zip", kind: type[Exception] = RequestError, **more: Any
    ) -> None:
        with pytest.raises(kind, match=match):
            send(name, *(tasks or ("glue_rte",)), **more)

    (tmp_path / "there.zip").write_text("something else")
    refused("is there already: remove it", name="there.zip")
    assert (tmp_path / "there.zip").read_text() == "something else"
    refused("there is no folder .*nowhere: make it first", name="nowhere/x.zip")
    refused(r"ends in \.zip", name="x.tar")
    refused("of one model, and 2 are named", what=[model, model])
    refused("names no checkpoint", what=["nothing"])
    refused("tasks of glue and super_glue, .*--benchmark glue or --benchmark super_glue", "glue_rte", "super_glue_rte")
    refused("'rte' may be glue_rte or super_glue_rte", "glue_rte", "super_glue_rte", wanted=("rte",))
    refused("both answer WNLI.tsv", "glue_wnli", "glue_wnli_pair")
    refused("no task of super_glue with a file", benchmark="super_glue")
    refused("no task of glue or super_glue with a file", "python_docs_module")
    refused("no benchmark 'glu'; nearest: 'glue'", benchmark="glu", kind=UnknownNameError)
    refused("no evaluated task 'rtee'", wanted=("rtee",), kind=UnknownNameError)
    refused(
        r"(?s)2 of 3 tasks have no test files that can be read \(glue_sst2, glue_stsb\); the first: task 'glue_sst2': "
        r"no files of split 'test'; looked for [^\n]*SST-2/test\.tsv[^\n]*\n.* --tasks glue_rte",
        *("glue_rte", "glue_sst2", "glue_stsb"),
        kind=DataError,
    )
    (data / "RTE/test.tsv").write_text("index\tsentence1\tsentence2\n")
    refused("its test split has no rows", kind=DataError)
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == ["there.zip"]


def test_a_benchmark_chooses_among_the_tasks_of_both(send: Callable[..., Submission]) -> None:
    made = send("glue.zip", "glue_rte", "super_glue_rte", wanted=("rte",), benchmark="glue")
    assert [(one.name, one.task) for one in made.files] == [("RTE.tsv", "glue_rte")]
