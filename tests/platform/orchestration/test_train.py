"""The same command goes on: what a run takes over, what it refuses, how it ends, and what a second one is told."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mixtura.models.t5 import T5
from mixtura.platform.config import Config
from mixtura.platform.data.stream_spec import StreamSpec
from mixtura.platform.data.vocabulary import train_vocabulary
from mixtura.platform.errors import RequestError, ResourceError, RunError, TrainingError, UnknownNameError
from mixtura.platform.orchestration.ensembles import answerer, load
from mixtura.platform.orchestration.predict import answers
from mixtura.platform.orchestration.provenance import git_state
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.retention import protected
from mixtura.platform.orchestration.select import (
    best_checkpoint,
    best_for_task,
    checkpoint_table,
    front_checkpoints,
    place_of,
    promote_checkpoint,
)
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.aliases import read_aliases
from mixtura.platform.tracking.records import CheckpointCommitted, EvaluationResult, TrainPoint, read_events
from mixtura.platform.tracking.selection import best_for, pareto_front, scores
from mixtura.platform.training import checkpoint_writer
from mixtura.platform.training.checkpoint import list_checkpoints, verify
from mixtura.platform.training.loop import TrainingLoop
from mixtura.platform.workspace import Run, workspace

pytestmark = pytest.mark.slow

Step = tuple[float, str]
Steps = Callable[[Path], dict[int, Step]]
Attempts = Callable[[Path], list[list[int]]]
Train = Callable[..., list[str]]

STEPS, MORE, FOR_EVER = 8, 12, 1_000_000


@dataclass
class Lines(SilentReporter):
    """Keeps the lines and tables that a person would see."""

    lines: list[str] = field(default_factory=list)

    def line(self, text: str = "") -> None:
        self.lines.append(text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], notes: str = "") -> None:
        self.lines += [title, notes]


@pytest.fixture(scope="module")
def train(module_workspace: Path, tiny_config: Callable[..., Config]) -> Train:
    """Trains the tiny quickstart inline under a name; returns what was said."""

    def run(name: str, *overrides: str) -> list[str]:
        said = Lines()
        few = ("executor.kind=inline", "evaluation.examples=2", *overrides)
        train_recipe("quickstart", tiny_config(module_workspace, name, *few), said)
        return said.lines

    return run


@pytest.fixture(scope="module")
def whole(train: Train, module_workspace: Path) -> Path:
    """A run of MORE steps that nothing disturbed."""
    train("whole", f"training.steps={MORE}")
    return module_workspace / "whole"


@pytest.fixture(scope="module")
def short(train: Train, module_workspace: Path) -> Path:
    """A finished run of STEPS steps."""
    train("short")
    return module_workspace / "short"


def copy_of(run: Path, name: str) -> Path:
    copy = run.with_name(name)
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("mlflow.json", ".*lock"))
    return copy


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".driver.lock"}


# ---- done, and more --------------------------------------------------------------------------------------------------


def test_a_finished_run_says_that_it_is_done_and_does_nothing(short: Path, train: Train) -> None:
    before = contents(short)
    said = train("short")
    assert said[0] == f"run 'short' is done: {STEPS} of {STEPS} steps, 2 checkpoints"
    assert any("mixtura predict short@" in line for line in said)
    assert contents(short) == before


def test_more_steps_go_on_as_if_they_had_been_asked_for_at_once(
    short: Path, whole: Path, train: Train, steps_of: Steps, attempts_of: Attempts
) -> None:
    longer = copy_of(short, "longer")
    train("longer", f"training.steps={MORE}")
    assert steps_of(longer) == steps_of(whole)
    assert attempts_of(longer) == [list(range(1, STEPS + 1)), list(range(STEPS + 1, MORE + 1))]
    assert Run(longer).facts()["status"] == "done"


def test_a_changed_free_key_is_taken_over_and_changes_no_loss(
    short: Path, whole: Path, train: Train, steps_of: Steps
) -> None:
    free = copy_of(short, "free")
    train("free", f"training.steps={MORE}", "training.microbatch_size=5", "checkpoints.every=3", "executor.workers=3")
    found, expected = steps_of(free), steps_of(whole)
    assert Run(free).config().training.microbatch_size == 5
    for step, (loss, print_) in expected.items():
        assert found[step][1] == print_
        assert found[step][0] == pytest.approx(loss, abs=1e-4)


def test_a_changed_key_of_its_identity_is_refused_with_the_difference_and_the_ways_out(
    short: Path, train: Train
) -> None:
    before = contents(short)
    with pytest.raises(RunError) as refused:
        train("short", "data.packing=none", "schedule.warmup_steps=77", f"training.steps={MORE}")
    message = str(refused.value)
    assert "data.packing (stream): 'best_fit' -> 'none'" in message
    assert re.search(r"schedule\.warmup_steps \(mathematics\): \d+ -> 77\n", message)
    assert "training.steps" not in message
    assert "run.name=NAME" in message
    assert "run.from=short@last" in message
    assert contents(short) == before


# ---- evaluation is caught up -----------------------------------------------------------------------------------------


def test_a_checkpoint_that_was_committed_and_not_yet_evaluated_is_evaluated_when_the_run_goes_on(
    short: Path, train: Train
) -> None:
    """As after a kill in the evaluation of step 4: its checkpoint is there, its results are not."""
    killed = copy_of(short, "killed")
    for path in (killed / "events").glob("evaluate-000004-*"):
        path.unlink()
    (events,) = (killed / "events").glob("train-*.jsonl")
    lines = events.read_text().splitlines(keepends=True)
    events.write_text("".join(line for line in lines if '"kind": "checkpoint", "step": 4' not in line))
    said = train("killed", f"training.steps={MORE}")
    assert sum(line.startswith("checkpoint of step 4:") for line in said) == 1
    evaluated = [record for record in read_events(killed / "events") if isinstance(record, EvaluationResult)]
    headline = [(record.task, record.metric, record.step) for record in evaluated]
    assert len(headline) == len(set(headline))
    assert {record.step for record in evaluated} == {4, 8, 12}


# ---- saving and memory -----------------------------------------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written_and_pauses_only_to_evaluate_it(
    train: Train, module_workspace: Path, steps_of: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, last = module_workspace / "overlaps", 60
    write, deadline = checkpoint_writer.write_tensors, time.monotonic() + 60

    def write_after_the_next_step(path: Path, entries: Any) -> Any:
        step = int(path.as_posix().rpartition("step-")[2][:6])
        while step < last and max(steps_of(run)) <= step and time.monotonic() < deadline:
            time.sleep(0.01)
        return write(path, entries)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", write_after_the_next_step)
    train("overlaps", f"training.steps={last}", "checkpoints.every=20")
    records = read_events(run / "events")
    committed = {record.step: record.time_s for record in records if isinstance(record, CheckpointCommitted)}
    evaluated = {record.step: record.time_s for record in records if isinstance(record, EvaluationResult)}
    stepped = {record.step: record for record in records if isinstance(record, TrainPoint)}
    assert sorted(committed) == [20, 40, 60]
    for step in (20, 40):
        assert stepped[step + 1].time_s < committed[step] <= evaluated[step] < stepped[last].time_s
    assert [step for step, record in stepped.items() if "save_s" in record.metrics] == [21, 41]


def test_retention_deletes_what_is_superseded_and_not_before_it_was_evaluated(
    train: Train, module_workspace: Path
) -> None:
    given = ("checkpoints.every=2", "checkpoints.keep=1", "checkpoints.keep_every=4")
    for when in ("pause", "after"):
        train(f"kept-{when}", *given, f"evaluation.when={when}")
        run = Run(module_workspace / f"kept-{when}")
        evaluated = {record.step for record in read_events(run.events) if isinstance(record, EvaluationResult)}
        assert evaluated == {2, 4, 6, 8}
        kept = {info.step for info in list_checkpoints(run.checkpoints)}
        assert {4, 8} <= kept
        found = scores(read_events(run.events))
        best = {step for step, what in best_for(found).items() if what} | {one.step for one in pareto_front(found)}
        assert kept == {4, 8} | best
        with sqlite3.connect(module_workspace / "mlflow.db") as store:
            query = "select name from tags join runs using (run_uuid) where key = 'files' and value = 'deleted'"
            marked = {name for (name,) in store.execute(query) if name.startswith(f"kept-{when}@")}
        assert evaluated - kept
        assert marked == {f"kept-{when}@{step}" for step in evaluated - kept}


@pytest.mark.parametrize(
    ("error", "third"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "offload_optimizer"),
        (MemoryError("no more"), "executor.workers=2 at training.zero_stage="),
    ],
)
def test_memory_that_runs_out_is_answered_with_what_would_make_room(
    train: Train, monkeypatch: pytest.MonkeyPatch, error: Exception, third: str
) -> None:
    def run_out(self: object) -> bool:
        raise error

    monkeypatch.setattr(TrainingLoop, "run", run_out)
    with pytest.raises(TrainingError) as raised:
        train(f"out-of-memory-{type(error).__name__}")
    for setting in ("training.microbatch_size=3", "model.activation_checkpointing=true", third):
        assert setting in str(raised.value)


# ---- stopped ---------------------------------------------------------------------------------------------------------


def test_stop_after_saves_ends_cleanly_and_the_same_command_goes_on(
    train: Train, module_workspace: Path, whole: Path, steps_of: Steps, attempts_of: Attempts
) -> None:
    stopped = module_workspace / "stopped"
    given = ("run.stop_after=1s", f"training.steps={FOR_EVER}", "checkpoints.every=1000", "evaluation.when=after")
    for attempt in (1, 2):
        said = train("stopped", *given)
        assert Run(stopped).facts()["status"] == "resumable"
        assert any("was stopped and is resumable" in line for line in said)
        last = list_checkpoints(stopped / "checkpoints")[-1]
        assert last.step == max(steps_of(stopped))
        assert len(attempts_of(stopped)) == attempt
    first, second = attempts_of(stopped)
    assert second[0] == first[-1] + 1
    found, expected = steps_of(stopped), steps_of(whole)
    assert all(found[step] == expected[step] for step in found.keys() & expected.keys())


def test_sigterm_saves_and_ends_with_exit_code_0_and_a_second_process_is_refused_meanwhile(
    new_workspace: Path,
    tiny: list[str],
    tiny_config: Callable[..., Config],
    mixtura: Callable[..., Any],
    wait_for: Callable[..., None],
    steps_of: Steps,
) -> None:
    given = [
        f"run.root={new_workspace}",
        "run.name=terminated",
        f"training.steps={FOR_EVER}",
        "checkpoints.every=1000",
        "executor.kind=inline",
    ]
    run = new_workspace / "terminated"
    command = mixtura("train", "quickstart", *tiny, *given)
    wait_for(lambda: (run / "events").is_dir() and len(steps_of(run)) > 2, "the third step", command)
    with pytest.raises(ResourceError, match=f"run 'terminated' is being worked on.* held by process {command.pid}"):
        train_recipe("quickstart", tiny_config(new_workspace, "terminated", *given[2:]), Lines())
    command.process.terminate()
    assert command.process.wait() == 0, command.said
    assert "run 'terminated' was stopped and is resumable" in command.said
    assert "Traceback" not in command.said
    assert Run(run).facts()["status"] == "resumable"
    (saved,) = list_checkpoints(run / "checkpoints")
    verify(saved.path)
    assert saved.step == max(steps_of(run))


# ---- fork ------------------------------------------------------------------------------------------------------------


def test_a_fork_begins_with_the_weights_and_the_optimizer_of_a_checkpoint(
    short: Path, train: Train, module_workspace: Path, steps_of: Steps, whole: Path
) -> None:
    forked = module_workspace / "forked"
    still = ("schedule.factor=1e-30", "checkpoints.every=1", "evaluation.when=after", "training.steps=1")
    train("forked", f"run.from={short.name}@last", *still)
    source, copy = (run / f"checkpoints/step-{step:06d}" for run, step in ((short, STEPS), (forked, 1)))
    before, after = load_file(source / "model.safetensors"), load_file(copy / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    updates = [json.loads((path / "state.json").read_text())["optimizer_step"] for path in (source, copy)]
    assert updates == [STEPS, STEPS + 1]
    assert steps_of(forked)[1][1] == steps_of(whole)[1][1]
    assert steps_of(forked)[1][0] < steps_of(whole)[1][0] - 0.2


def test_a_fork_goes_on_without_its_source(short: Path, train: Train, steps_of: Steps) -> None:
    source = copy_of(short, "source")
    given = ("run.from=source@4", "evaluation.when=after", "checkpoints.every=2")
    train("orphan", *given, "training.steps=2")
    shutil.rmtree(source)
    train("orphan", *given, "training.steps=3")
    assert sorted(steps_of(short.with_name("orphan"))) == [1, 2, 3]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("run.from=nobody@last", UnknownNameError, "no run 'nobody'"),
        ("run.from=short@5", UnknownNameError, "no checkpoint 'short@5'.*steps: 4, 8"),
        ("vocabulary.path=/nowhere/spiece.model", RequestError, "no such file"),
        ("model.size=smal", UnknownNameError, "nearest: 'small'"),
        ("mixture.tasks=[python_docs_modul]", UnknownNameError, "nearest: 'python_docs_module'"),
    ],
)
@pytest.mark.usefixtures("short")
def test_a_bad_request_begins_no_run(
    train: Train, module_workspace: Path, bad: str, error: type[Exception], message: str
) -> None:
    """Otherwise the corrected command would be refused, because it differs from the one that failed."""
    with pytest.raises(error, match=message):
        train("bad", bad)
    assert not Run(module_workspace / "bad").exists()


# ---- picked and named ------------------------------------------------------------------------------------------------


def test_checkpoints_are_ordered_and_picked_by_a_task_that_the_end_of_its_name_says(whole: Path) -> None:
    run, task = Run(whole), "python_docs_module"
    found = scores(read_events(whole / "events"))
    rows = checkpoint_table(run, "module")
    column = next(name for name in rows[0] if name.startswith(f"{task} "))
    values = [row[column] for row in rows]
    assert values == sorted(values, reverse=True)
    assert rows == checkpoint_table(run, task)
    assert [row["step"] for row in checkpoint_table(run)] == [one.step for one in found]
    assert best_for_task(run, "module").step == rows[0]["step"]
    assert [info.step for info in front_checkpoints(run)] == [one.step for one in pareto_front(found)]
    assert {row["step"] for row in rows if row["Pareto front"]} == {one.step for one in pareto_front(found)}
    with pytest.raises(UnknownNameError, match="evaluated task 'modul'"):
        checkpoint_table(run, "modul")


def test_a_promoted_checkpoint_has_its_name_everywhere_and_stays(short: Path, whole: Path, train: Train) -> None:
    space = workspace(str(short.parent))
    assert promote_checkpoint(space, "short@4", "production", "answers") == "models:/answers@production"
    assert place_of(space, "models:/answers@production") == short / "checkpoints/step-000004"
    assert 4 in protected(Run(short), read_events(Run(short).events))
    assert {row["step"]: row["names"] for row in checkpoint_table(Run(short))}[4] == "answers@production"

    assert promote_checkpoint(space, "whole@best", "production", "answers") == "models:/answers@production"
    now = place_of(space, "models:/answers@production")
    assert now == best_checkpoint(Run(whole)).path
    assert "answers@production" not in read_aliases(short)
    assert read_aliases(whole)["answers@production"] == best_checkpoint(Run(whole)).step

    promote_checkpoint(space, "whole@12", "mine")
    train("whole", f"training.steps={MORE}")
    assert read_aliases(whole)["whole@mine"] == 12
    assert place_of(space, "models:/whole@mine").name == "step-000012"


def test_a_checkpoint_that_mlflow_does_not_know_is_not_promoted(short: Path) -> None:
    unknown = copy_of(short, "unknown")
    with pytest.raises(ResourceError, match="has no checkpoint unknown@8 yet: run the training command once more"):
        promote_checkpoint(workspace(str(short.parent)), "unknown@8", "mine")
    assert "unknown@mine" not in read_aliases(unknown)


# ---- several as one --------------------------------------------------------------------------------------------------


def test_checkpoints_answer_together_by_their_logits_or_their_weights(short: Path) -> None:
    space, texts = workspace(str(short.parent)), ["module docstring: Return the size.", "name docstring: x"]

    def said(name: str) -> list[str]:
        return [one.text for one in answers(*load(answerer(space, name)), texts, 6)]

    alone = said("short@8")
    for kind in ("ensemble", "average"):
        assert said(f"{kind}:short@8,short@8") == alone
        assert len(said(f"{kind}:short@4, short@best")) == len(texts)
    mean, _ = load(answerer(space, "average:short@4,short@8"))
    assert isinstance(mean, T5)
    parts = [load_file(short / f"checkpoints/step-00000{step}/model.safetensors")["shared.weight"] for step in (4, 8)]
    torch.testing.assert_close(mean.embedding.weight.detach(), (parts[0] + parts[1]) / 2)


def test_what_cannot_answer_together_is_told(short: Path, train: Train, tmp_path: Path) -> None:
    space = workspace(str(short.parent))
    with pytest.raises(RequestError, match="give two or more checkpoints, as in ensemble:base@1000,base@2000"):
        answerer(space, "ensemble:short@8")
    train("wider", "model.d_ff=96", "training.steps=1", "evaluation.when=after")
    assert answers(*load(answerer(space, "ensemble:short@8,wider@1")), ["a"], 3)
    with pytest.raises(RequestError, match="have other shapes.*ensemble:short@8,wider@1"):
        load(answerer(space, "average:short@8,wider@1"))
    other = tmp_path / "other"
    shutil.copytree(short / "checkpoints/step-000008", other)
    (other / "manifest.json").unlink()
    train_vocabulary(["a few words of text for a vocabulary of its own"] * 20, other / "new.model", 125)
    (other / "new.model").replace(other / "spiece.model")
    with pytest.raises(RequestError, match="different vocabularies"):
        load(answerer(space, f"ensemble:short@8,{other}"))


# ---- where it comes from ---------------------------------------------------------------------------------------------


def tags_of(run: Path) -> dict[str, str]:
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    with sqlite3.connect(run.parent / "mlflow.db") as store:
        return dict(store.execute("select key, value from tags where run_uuid = ?", (run_id,)).fetchall())


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_mlflow_says_where_a_run_comes_from_and_what_each_attempt_ran(
    module_workspace: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--initial-branch=mine")
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    git(tmp_path, "add", "mine.yaml")
    git(tmp_path, "commit", "--message=first")
    monkeypatch.chdir(tmp_path)
    few = ("evaluation.when=after", "training.steps=2")
    train("known", *few)
    first, spec = tags_of(module_workspace / "known"), json.loads((module_workspace / "known/stream.json").read_text())
    assert first["mlflow.source.git.commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert first["mixtura.git.branch"] == "mine"
    assert first["mixtura.git.changed"] == "nothing"
    assert first["mixtura.recipe"] == "quickstart"
    assert first["mixtura.version.torch"] == torch.__version__
    assert first["mixtura.stream"] == StreamSpec.from_dict(spec).fingerprint
    assert {f"mixtura.data.{task['name']}" for task in spec["tasks"]} <= first.keys()

    (tmp_path / "mine.yaml").write_text("a: 2\n")
    train("known", *few, "training.steps=4")
    second = tags_of(module_workspace / "known")
    assert second["mixtura.git.changed"] == "mine.yaml"
    assert second["attempts"] == "2"
    changed = {name for name in first if first[name] != second[name] and not name.startswith("best ")}
    assert changed <= {
        "attempts",
        "mixtura.git.changed",
        "mlflow.note.content",
        "status",
    }


def test_a_folder_without_git_has_no_such_facts(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}
