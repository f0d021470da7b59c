"""The archive that the site of a benchmark takes: one model's answers to all of its hidden test splits.

    runs/evaluations/base-8-base-glue-test-1f2e3d4c/predictions/glue_rte.test.jsonl    each answer, before it is a label
    FILE.zip                                                                          RTE.tsv, CoLA.tsv, ...

Whatever could be refused is refused before a model is loaded; an archive is whole, read back, or not there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixtura.platform.config import Config
from mixtura.platform.data.submission import Index, SubmissionFile
from mixtura.platform.data.task import Task
from mixtura.platform.errors import DataError, RequestError, UnknownNameError
from mixtura.platform.evaluation.evaluator import read_answers
from mixtura.platform.evaluation.submission import SPLIT, archive, file_of, questions, texts_in
from mixtura.platform.files import disk_full_is_an_answer, write_bytes_atomically
from mixtura.platform.orchestration.ensembles import Answerer, answerer, vocabulary_path
from mixtura.platform.orchestration.evaluate import job_for
from mixtura.platform.orchestration.evaluate_by_hand import folder_name, refuse_models_of_no_run
from mixtura.platform.orchestration.evaluation_job import EvaluationJob
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.select import run_and_checkpoint, task_named
from mixtura.platform.orchestration.tasks import load_recipe, tasks_of
from mixtura.platform.orchestration.train import executor_for
from mixtura.platform.training.checkpoint import list_checkpoints, verify
from mixtura.platform.workspace import Workspace
from mixtura.tasks import get_task, task_names


@dataclass(frozen=True)
class Fault:
    """What was wrong with some answers of a file and what was written for them, how many there are, and one of them."""

    what: str
    answers: int
    example: str


@dataclass(frozen=True)
class SubmittedFile:
    """One file of an archive."""

    name: str
    task: str
    rows: int
    published_rows: int
    """As many as the site expects."""
    faults: tuple[Fault, ...]

    @property
    def faulty(self) -> int:
        """How many answers were none that the file can say."""
        return sum(fault.answers for fault in self.faults)


@dataclass(frozen=True)
class Submission:
    """An archive that was written."""

    path: Path
    model: str
    benchmark: str
    files: tuple[SubmittedFile, ...]
    missing: Mapping[str, tuple[str, ...]]
    """Files that the site wants and the archive lacks, with the tasks that would answer them."""
    predictions: Path
    """The folder of what the model answered."""

    def warnings(self) -> Iterator[str]:
        """What a person should know before sending it."""
        for file in self.files:
            for fault in file.faults:
                yield (
                    f"{file.name}: {fault.answers:,} of {file.rows:,} answers are {fault.what}, "
                    f"for example {fault.example!r:.60}"
                )
            if file.rows != file.published_rows:
                yield f"{file.name} has {file.rows:,} answers, and the site wants {file.published_rows:,}"
        if self.missing:
            wanted = ", ".join(f"{name} ({' or '.join(tasks)})" for name, tasks in self.missing.items())
            yield f"the archive lacks files that the site wants; the tasks that answer them were not asked: {wanted}"


def submit(
    space: Workspace,
    what: Sequence[str],
    recipe: str | None,
    overrides: Sequence[str],
    wanted: Sequence[str],
    benchmark: str | None,
    path: Path,
    reporter: Reporter,
) -> Submission:
    """Ask one model all rows of the test splits of a benchmark's tasks, those of its run or of a recipe, and write what
    it answers as an archive for the benchmark's site."""
    _refuse_place(path)
    chosen, config, of = _model(space, what, recipe, overrides)
    tasks = _chosen_tasks(config, wanted, benchmark, of)
    asked = _asked(tasks)
    benchmark = file_of(next(iter(tasks.values()))).benchmark
    folder = space.root / "evaluations" / folder_name(chosen, f"{of}-{benchmark}-{SPLIT}") / "predictions"
    reporter.line(f"{chosen.name}: {sum(map(len, asked.values())):,} rows of {len(tasks)} test splits to answer")
    jobs = [_job(config, chosen, name, folder, len(asked[name])) for name in tasks]
    for job in jobs:
        Path(job.answers).unlink(missing_ok=True)
    with disk_full_is_an_answer(space.root, "answering test splits"), executor_for(config) as executor:
        executor.evaluate(jobs)
    texts, files = {}, []
    for name, job in zip(tasks, jobs, strict=True):
        records = _records(Path(job.answers), name, asked[name])
        file = file_of(tasks[name])
        texts[file.name] = file.layout([(tuple(record["index"]), record["said"]) for record in records])
        files.append(SubmittedFile(file.name, name, len(records), file.rows, _faults(records)))
    _write(path, texts)
    files.sort(key=lambda file: file.name)
    return Submission(path.absolute(), chosen.name, benchmark, tuple(files), _missing(benchmark, texts), folder)


def _refuse_place(path: Path) -> None:
    folder = path.absolute().parent
    if path.suffix != ".zip":
        raise RequestError(f"{path}: the sites take zip archives, so give a name that ends in .zip")
    if path.exists():
        raise RequestError(f"{path} is there already: remove it, or give another name")
    if not folder.is_dir():
        raise RequestError(f"{path} cannot be written, since there is no folder {folder}: make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"{path} cannot be written: you may not write into {folder}")


def _model(
    space: Workspace, what: Sequence[str], recipe: str | None, overrides: Sequence[str]
) -> tuple[Answerer, Config, str]:
    """The one model that answers, with what says its tasks, and what that is called."""
    if len(what) != 1:
        raise RequestError(f"an archive holds the answers of one model, and {len(what)} are named: {', '.join(what)}")
    if recipe is not None:
        config = load_recipe(recipe, [f"run.root={space.root}", *overrides])
        chosen = answerer(space, what[0])
        vocabulary_path(chosen)
        return chosen, config, recipe
    refuse_models_of_no_run(space, what, overrides)
    run, info = run_and_checkpoint(space, what[0])
    if info is None:
        saved = list_checkpoints(run.checkpoints)
        if not saved:
            raise RequestError(f"run {run.name!r} has no checkpoint yet")
        if len(saved) > 1:
            raise RequestError(
                f"an archive holds the answers of one model, and run {run.name!r} has {len(saved)} checkpoints: "
                f"name one, as {run.name}@best"
            )
        info = saved[0]
    verify(info.path)
    return Answerer("one", (f"{run.name}@{info.step}",), (info.path,)), run.config(), run.name


def _chosen_tasks(config: Config, wanted: Sequence[str], benchmark: str | None, of: str) -> dict[str, Task]:
    """The tasks that are asked, all of one benchmark, each with a file of its own."""
    benchmarks = sorted({file.benchmark for file in _declared_files().values()})
    if benchmark is not None and benchmark not in benchmarks:
        raise UnknownNameError("benchmark", benchmark, benchmarks)
    own = {name: task for name, task in tasks_of(config).items() if task.submission is not None}
    known = {name: task for name, task in own.items() if benchmark in (None, file_of(task).benchmark)}
    if not known:
        raise RequestError(
            f"{of!r} has no task of {benchmark or ' or '.join(benchmarks)} with a file in the benchmark's archive"
        )
    names = dict.fromkeys(task_named(text, known, of) for text in wanted) or dict.fromkeys(known)
    found = sorted({file_of(known[name]).benchmark for name in names})
    if len(found) > 1:
        raise RequestError(
            f"{of!r} has tasks of {' and '.join(found)}, and each has an archive of its own: "
            f"add {' or '.join(f'--benchmark {one}' for one in found)}"
        )
    by_file: dict[str, str] = {}
    for name in names:
        other = by_file.setdefault(file_of(known[name]).name, name)
        if other != name:
            raise RequestError(
                f"{other} and {name} both answer {file_of(known[name]).name}: name the tasks that are wanted in --tasks"
            )
    return {name: known[name] for name in names}


def _declared_files() -> dict[str, SubmissionFile]:
    """Of every registered task that has one."""
    return {name: file for name in task_names() if (file := get_task(name).submission) is not None}


def _asked(tasks: Mapping[str, Task]) -> dict[str, list[Index]]:
    """The rows of every test split; refused where there are no files, no rows, or a row that cannot be asked."""
    absent: dict[str, str] = {}
    for name, task in tasks.items():
        try:
            task.shards(SPLIT)
        except (DataError, UnknownNameError) as error:
            absent[name] = str(error)
    if absent:
        there = ",".join(name for name in tasks if name not in absent)
        remedy = f"; or ask only those that have: --tasks {there}" if there else ""
        raise DataError(
            f"{len(absent)} of {len(tasks)} tasks have no test files that can be read ({', '.join(absent)}); "
            f"the first: {next(iter(absent.values()))}{remedy}"
        )
    asked = {name: [question.index for question in questions(task)] for name, task in tasks.items()}
    for name, rows in asked.items():
        if not rows:
            raise DataError(f"task {name!r}: its {SPLIT} split has no rows")
    return asked


def _job(config: Config, chosen: Answerer, name: str, folder: Path, rows: int) -> EvaluationJob:
    answers = str(folder / f"{name}.{SPLIT}.jsonl")
    return replace(job_for(config, name, SPLIT), checkpoint=chosen.spec, answers=answers, hidden=True, size=rows)


def _records(path: Path, name: str, asked: Sequence[Index]) -> list[dict[str, Any]]:
    """What was answered; DataError where it is not to the very rows that were asked."""
    if not path.is_file():
        raise DataError(
            f"task {name!r}: its answers were written on another machine, which does not see {path.parent}: take a "
            "folder of runs that all machines share"
        )
    records = read_answers(path)
    if [tuple(record["index"]) for record in records] != list(asked):
        raise DataError(
            f"task {name!r}: {len(records)} rows were answered, and they are not the {len(asked)} rows that its test "
            "files had at the start: do not change them meanwhile, and run the same command"
        )
    return records


def _faults(records: Sequence[Mapping[str, Any]]) -> tuple[Fault, ...]:
    faulty = [record for record in records if record["fault"]]
    counts = Counter(record["fault"] for record in faulty)
    first = {record["fault"]: record["prediction"] for record in reversed(faulty)}
    return tuple(Fault(what, count, first[what]) for what, count in counts.most_common())


def _missing(benchmark: str, texts: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    wanted: dict[str, list[str]] = {}
    for name, file in _declared_files().items():
        if file.benchmark == benchmark and file.name not in texts:
            wanted.setdefault(file.name, []).append(name)
    return {name: tuple(tasks) for name, tasks in sorted(wanted.items())}


def _write(path: Path, texts: Mapping[str, str]) -> None:
    with disk_full_is_an_answer(path.absolute().parent, "writing an archive"):
        write_bytes_atomically(path, archive(texts))
    if texts_in(path.read_bytes()) != texts:
        path.unlink()
        raise DataError(f"{path} does not read back as it was written: something is wrong with the disk below it")
