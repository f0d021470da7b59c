"""What MLflow has of a run: everything, once, whenever the process that sends it dies."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mixtura.platform.errors import ResourceError
from mixtura.platform.tracking import pages
from mixtura.platform.tracking.aliases import read_aliases
from mixtura.platform.tracking.mlflow_data import Dataset
from mixtura.platform.tracking.mlflow_registry import checkpoint_of_alias
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
)
from mixtura.platform.tracking.tracker import Tailer

if TYPE_CHECKING:
    from mixtura.platform.tracking.mlflow_tracker import MlflowTracker

REPOSITORY = Path(__file__).resolve().parents[3]
START_S = 1_790_000_000.0
SCORES = {100: (50.0, 60.0), 200: (70.0, 30.0), 300: (60.0, 70.0)}
"""By step: what it reaches on rte and squad. 300 is best on average and for squad, 200 for rte."""


def evaluation(step: int) -> list[Record]:
    time_s = START_S + step + 0.5
    return [
        EvaluationResult(step, task, "validation", metric, value, value - 5, value + 5, examples=200, time_s=time_s)
        for task, value in zip(("rte", "squad"), SCORES[step], strict=True)
        for metric in ("accuracy", "f1")
    ]


def training(first: int, last: int, offset_s: float = 0.0) -> list[Record]:
    records: list[Record] = []
    for step in range(first, last + 1):
        time_s = START_S + offset_s + step
        if step % 10 == 0:
            metrics = {"loss": 8.0 - step / 100, "loss/rte": 7.0 - step / 100}
            records.append(TrainPoint(step, metrics, time_s=time_s))
        if step % 100 == 0:
            records.append(CheckpointCommitted(step, f"/runs/demo/checkpoints/step-{step:06d}", time_s=time_s + 0.1))
    return records


def write(events: Path, name: str, records: list[Record]) -> None:
    with EventWriter(events / name) as writer:
        writer.write(*records)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new SQLite store; making its tables takes seconds, so tests copy it."""
    from mixtura.platform.tracking.mlflow_store import connect

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def root(tmp_path: Path, empty_store: Path) -> Path:
    """A workspace with a store and a run that has reported its first two evaluated checkpoints."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    events = tmp_path / "demo" / "events"
    write(events, "train-0001.jsonl", [RunStarted(1, time_s=START_S), *training(1, 250)])
    for step in (100, 200):
        write(events, f"evaluate-{step:06d}.jsonl", evaluation(step))
    return tmp_path


def tracker_of(root: Path, **settings: Any) -> MlflowTracker:
    from mixtura.platform.tracking.mlflow_tracker import MlflowTracker

    settings = {"params": {"training.steps": 300}, **settings}
    return MlflowTracker(f"sqlite:///{root}/mlflow.db", "mixtura", "demo", root / "demo" / "mlflow.json", **settings)


def send(root: Path, **settings: Any) -> MlflowTracker:
    tailer = Tailer(root / "demo" / "events", lambda: tracker_of(root, **settings))
    tailer.pump()
    assert tailer.tracker is not None
    return tailer.tracker


def contents(root: Path) -> dict[str, set[tuple[Any, ...]]]:
    """What the store holds, without the ids that it made up."""
    queries = {
        "runs": "select name, status, start_time from runs",
        "metrics": "select name, key, value, timestamp, step from metrics join runs using (run_uuid)",
        "models": "select name, model_type, status from logged_models",
        "model metrics": "select name, metric_name, metric_value, metric_timestamp_ms, metric_step "
        "from logged_model_metrics join logged_models using (model_id)",
        "tags": "select name, key, value from tags join runs using (run_uuid) where key not like 'mlflow.parent%'",
        "model tags": "select name, tag_key, tag_value from logged_model_tags join logged_models using (model_id)",
        "aliases": "select a.alias, v.description from registered_model_aliases a join model_versions v "
        "on a.name = v.name and a.version = v.version",
        "outputs": "select r.name, m.name, i.step from inputs i join runs r on i.source_id = r.run_uuid "
        "join logged_models m on i.destination_id = m.model_id",
        "params": "select name, key, value from params join runs using (run_uuid)",
    }
    with sqlite3.connect(root / "mlflow.db") as store:
        rows = {name: store.execute(query).fetchall() for name, query in queries.items()}
    for name, found in rows.items():
        assert len(found) == len(set(found)), f"{name} are stored twice"
    return {name: {tuple(map(without_ids, row)) for row in found} for name, found in rows.items()}


def without_ids(value: Any) -> Any:
    return re.sub(r"m-[0-9a-f]{32}", "m-ID", value) if isinstance(value, str) else value


def finish(root: Path) -> None:
    events = root / "demo" / "events"
    write(events, "train-0002.jsonl", [*training(251, 300), RunFinished("done", time_s=START_S + 301)])
    write(events, "evaluate-000300.jsonl", evaluation(300))


@pytest.mark.slow
def test_a_run_has_its_curves_parameters_and_status(root: Path) -> None:
    finish(root)
    tracker = send(root)
    found = contents(root)
    assert ("demo", "training.steps", "300") in found["params"]
    assert ("demo", "FINISHED", int(START_S * 1000)) in found["runs"]
    losses = {(step, value) for name, key, value, _, step in found["metrics"] if (name, key) == ("demo", "loss")}
    assert losses == {(step, 8.0 - step / 100) for step in range(10, 301, 10)}
    curve = {(step, value) for name, key, value, _, step in found["metrics"] if key == "validation/rte/accuracy"}
    assert curve == {(100, 50.0), (200, 70.0), (300, 60.0)}
    assert tracker.run_id


@pytest.mark.slow
def test_each_checkpoint_is_one_model_with_its_headline_metrics(root: Path) -> None:
    send(root)
    found = contents(root)
    assert {name for name, _, _ in found["models"]} == {"demo-step-000100", "demo-step-000200"}
    metrics = {(name, key): value for name, key, value, _, _ in found["model metrics"]}
    assert metrics == {
        ("demo-step-000100", "loss"): 7.0,
        ("demo-step-000100", "rte/accuracy"): 50.0,
        ("demo-step-000100", "squad/accuracy"): 60.0,
        ("demo-step-000100", "average"): 55.0,
        ("demo-step-000200", "loss"): 6.0,
        ("demo-step-000200", "rte/accuracy"): 70.0,
        ("demo-step-000200", "squad/accuracy"): 30.0,
        ("demo-step-000200", "average"): 50.0,
    }
    assert ("demo@100", "rte/f1", 50.0) in {(name, key, value) for name, key, value, _, _ in found["metrics"]}
    assert ("demo-step-000100", "checkpoint_uri", "/runs/demo/checkpoints/step-000100") in found["model tags"]
    assert {row for row in found["outputs"] if row[0] == "demo"} == {
        ("demo", "demo-step-000100", 100),
        ("demo", "demo-step-000200", 200),
    }


@pytest.mark.slow
def test_a_better_checkpoint_takes_the_tags_and_aliases_over(root: Path) -> None:
    send(root)
    before = contents(root)
    assert ("demo-step-000100", "best", "average, squad") in before["model tags"]
    assert ("demo-step-000100", "pareto", "yes") in before["model tags"]
    assert before["aliases"] == {("champion", "demo@100"), ("best-squad", "demo@100"), ("best-rte", "demo@200")}
    finish(root)
    tracker = send(root)
    after = contents(root)
    assert ("demo-step-000100", "best", "") in after["model tags"]
    assert ("demo-step-000300", "best", "average, squad") in after["model tags"]
    assert ("demo@300", "best", "average, squad") in after["tags"]
    assert ("demo", "best average", "demo@300 (65)") in after["tags"]
    assert after["aliases"] == {("champion", "demo@300"), ("best-squad", "demo@300"), ("best-rte", "demo@200")}
    assert [one.step for one in tracker.scores()] == [300, 100, 200]


@pytest.mark.slow
def test_what_people_name_on_the_pages_is_written_down_beside_the_run(root: Path) -> None:
    finish(root)
    tracker = send(root)
    assert read_aliases(root / "demo") == {"demo@best-rte": 200, "demo@best-squad": 300, "demo@champion": 300}
    client = tracker._client
    (of_100,) = [
        model for model in client.search_logged_models([tracker.experiment_id]) if model.params["step"] == "100"
    ]
    client.create_registered_model("answers")
    version = client.create_model_version("answers", source=of_100.artifact_location, run_id=of_100.source_run_id)
    client.set_registered_model_alias("answers", "production", version.version)
    place = checkpoint_of_alias(f"sqlite:///{root}/mlflow.db", "answers", "production")
    assert place == "/runs/demo/checkpoints/step-000100"
    client.delete_registered_model_alias("demo", "champion")
    write(root / "demo" / "events", "note.jsonl", [Note("on we go", time_s=START_S + 400)])
    send(root)
    assert read_aliases(root / "demo") == {"demo@best-rte": 200, "demo@best-squad": 300, "answers@production": 100}


@pytest.mark.slow
def test_a_checkpoint_whose_files_are_gone_is_marked_until_they_are_back(root: Path) -> None:
    events, folders = root / "demo" / "events", root / "demo" / "checkpoints"
    for step in (300, 400):
        (folders / f"step-{step:06d}").mkdir(parents=True)
    saved = [CheckpointCommitted(step, str(folders / f"step-{step:06d}"), time_s=START_S + step) for step in (300, 400)]
    write(events, "train-0002.jsonl", [*saved])
    send(root)
    assert not [tag for tag in contents(root)["model tags"] if tag[1] == "files"]

    (folders / "step-000300").rmdir()
    write(events, "note-1.jsonl", [Note("on we go", time_s=START_S + 401)])
    send(root)
    found = contents(root)
    assert {tag for tag in found["model tags"] if tag[1] == "files"} == {("demo-step-000300", "files", "deleted")}
    assert ("demo@300", "files", "deleted") in found["tags"]

    (folders / "step-000300").mkdir()
    write(events, "note-2.jsonl", [Note("and on", time_s=START_S + 402)])
    send(root)
    assert ("demo-step-000300", "files", "") in contents(root)["model tags"]


@pytest.mark.slow
def test_the_order_is_the_one_in_mlflow(root: Path) -> None:
    from mlflow import MlflowClient

    finish(root)
    tracker = send(root)
    store = f"sqlite:///{root}/mlflow.db"
    client = MlflowClient(store, registry_uri=store)
    models = client.search_logged_models(
        [tracker.experiment_id], order_by=[{"field_name": "metrics.average", "ascending": False}]
    )
    assert [model.params["step"] for model in models] == [str(one.step) for one in tracker.scores()]
    assert client.get_model_version_by_alias("demo", "champion").tags["model_id"] == models[0].model_id


@pytest.mark.slow
def test_the_named_view_has_the_sort_and_the_columns(root: Path) -> None:
    from mlflow import MlflowClient

    tracker = send(root)
    tags = MlflowClient(f"sqlite:///{root}/mlflow.db").get_experiment(tracker.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(json.loads(tags["mlflow.sharedViewState.demo"])["state"])
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`average`", False)
    assert view["columnOrder"][2:8] == [
        "metrics.`average`",
        "metrics.`rte/accuracy`",
        "metrics.`squad/accuracy`",
        "tags.`best`",
        "tags.`pareto`",
        "tags.`files`",
    ]


@pytest.mark.slow
def test_metrics_name_the_data_that_they_were_measured_on_and_runs_what_they_trained_on(root: Path) -> None:
    results = [
        replace(record, data=f"3f0c-{record.task}", data_source=f"/caches/{record.task}", time_s=START_S + 310)
        for record in evaluation(200)
        if isinstance(record, EvaluationResult)
    ]
    write(root / "demo" / "events", "again.jsonl", [*results])
    trained = [Dataset("rte/train", "77aa", "s3://bucket/rte", 2490), Dataset("squad/train", "88bb", "/caches/squad")]
    for _ in range(2):
        send(root, data=trained)
        (root / "demo" / "mlflow.json").unlink()
    with sqlite3.connect(root / "mlflow.db") as store:
        metrics = store.execute(
            "select name, metric_name, dataset_name, dataset_digest from logged_model_metrics "
            "join logged_models using (model_id) where dataset_name is not null"
        ).fetchall()
        inputs = store.execute(
            "select r.name, d.name, d.digest, d.dataset_source_type, d.dataset_source, d.dataset_profile, t.value "
            "from datasets d join inputs i on i.source_id = d.dataset_uuid "
            "join runs r on r.run_uuid = i.destination_id join input_tags t using (input_uuid)"
        ).fetchall()
    assert sorted(metrics) == [
        ("demo-step-000200", "rte/accuracy", "rte/validation", "3f0c-rte"),
        ("demo-step-000200", "squad/accuracy", "squad/validation", "3f0c-squad"),
    ]
    rows, source = '{"num_rows": 200}', '{"uri": "/caches/%s"}'
    assert sorted(inputs, key=str) == [
        ("demo", "rte/train", "77aa", "s3", '{"uri": "s3://bucket/rte"}', '{"num_rows": 2490}', "training"),
        ("demo", "squad/train", "88bb", "local", source % "squad", None, "training"),
        ("demo@200", "rte/validation", "3f0c-rte", "local", source % "rte", rows, "eval"),
        ("demo@200", "squad/validation", "3f0c-squad", "local", source % "squad", rows, "eval"),
    ]


@pytest.mark.slow
def test_a_sample_of_the_answers_and_the_plot_are_on_the_pages_once(root: Path) -> None:
    answer = {"inputs": "in " * 999, "targets": "yes", "prediction": "no", "log_probability": -0.5, "scores": {"f1": 0}}
    answers = root / "demo" / "predictions" / "step-000300" / "rte.validation.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text(f"{json.dumps(answer)}\n" * 5000)
    (root / "demo" / "losses.png").write_bytes(b"a picture")
    finish(root)
    for _ in range(2):
        tracker = send(root)
        (root / "demo" / "mlflow.json").unlink()
    files = [path for path in (root / "mlflow-artifacts").rglob("*") if path.is_file()]
    table, picture = sorted(files, key=lambda path: path.suffix)
    assert (picture.name, picture.read_bytes()) == ("losses.png", b"a picture")
    assert table.relative_to(root / "mlflow-artifacts").parts[1:] == ("artifacts", "predictions", "rte.validation.json")
    found = json.loads(table.read_text())
    assert found["columns"] == ["inputs", "targets", "prediction", "log_probability", "f1"]
    assert len(found["data"]) == 100
    assert found["data"][0][1:] == ["yes", "no", -0.5, 0]
    assert len(found["data"][0][0]) == 1003
    shown = {(name, value) for name, key, value in contents(root)["tags"] if key == "mlflow.loggedArtifacts"}
    assert shown == {("demo@300", '[{"path": "predictions/rte.validation.json", "type": "table"}]')}
    assert tracker.run_id


@pytest.mark.slow
def test_a_place_for_files_that_cannot_be_written_to_keeps_no_number_back(root: Path) -> None:
    (root / "mlflow-artifacts").write_text("a file where a folder should be")
    (root / "demo" / "losses.png").write_bytes(b"a picture")
    finish(root)
    tailer = Tailer(root / "demo" / "events", lambda: tracker_of(root))
    with pytest.raises(ResourceError, match="tracking store sqlite:.* cannot be used"):
        tailer.pump()
    found = contents(root)
    assert ("demo", "FINISHED", int(START_S * 1000)) in found["runs"]
    assert ("demo@300", "rte/accuracy", 60.0) in {(name, key, value) for name, key, value, _, _ in found["metrics"]}
    (root / "mlflow-artifacts").unlink()
    tailer.pump()
    assert contents(root) == found
    assert list((root / "mlflow-artifacts").rglob("losses.png"))


@pytest.mark.slow
def test_a_restarted_process_sends_nothing_twice_and_goes_on(root: Path) -> None:
    run_id = send(root).run_id
    before = contents(root)
    assert send(root).run_id == run_id
    assert contents(root) == before
    # A run that resumes from an earlier checkpoint repeats its steps, at another time.
    write(root / "demo" / "events", "train-0002.jsonl", [RunStarted(2, time_s=START_S + 500), *training(201, 260, 500)])
    send(root, params={"training.steps": 400, "workers": 2})
    after = contents(root)
    steps = sorted(step for name, key, _, _, step in after["metrics"] if (name, key) == ("demo", "loss"))
    assert steps == list(range(10, 261, 10))
    assert after["models"] == before["models"]
    assert {("demo", "training.steps", "300"), ("demo", "workers", "2")} == after["params"]


@pytest.mark.slow
def test_a_lost_state_file_finds_the_same_run_and_changes_nothing(root: Path) -> None:
    finish(root)
    run_id = send(root).run_id
    before = contents(root)
    (root / "demo" / "mlflow.json").unlink()
    assert send(root).run_id == run_id
    assert contents(root) == before


@pytest.mark.slow
def test_a_new_store_gets_everything(root: Path, empty_store: Path) -> None:
    send(root)
    before = contents(root)
    shutil.copy(empty_store, root / "mlflow.db")
    send(root)
    assert contents(root) == before


@pytest.mark.slow
def test_another_run_of_the_same_name_is_another_run(root: Path) -> None:
    first = send(root).run_id
    shutil.rmtree(root / "demo")
    write(root / "demo" / "events", "train-0001.jsonl", [RunStarted(1, time_s=START_S + 9999)])
    assert send(root).run_id != first


class Dying:
    """A client whose process dies at the n-th call, before or after the call took effect."""

    def __init__(self, client: Any, calls: int, after: bool) -> None:
        self._client, self._calls, self._after = client, calls, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls -= 1
            if self._calls == 0:
                if self._after:
                    method(*args, **kwargs)
                raise KeyboardInterrupt
            return method(*args, **kwargs)

        return call


@pytest.mark.slow
def test_dying_at_any_call_to_the_store_stores_nothing_twice_and_loses_nothing(root: Path) -> None:
    finish(root)
    pristine = root / "pristine.db"
    shutil.copy(root / "mlflow.db", pristine)
    send(root)
    expected = contents(root)
    for calls, after in ((2, True), (7, True), (9, False), (12, True), (23, False), (38, True), (61, False)):
        shutil.copy(pristine, root / "mlflow.db")
        (root / "demo" / "mlflow.json").unlink()
        tracker = tracker_of(root)
        tracker._client = Dying(tracker._client, calls, after)
        reader = EventReader(root / "demo" / "events")
        records = reader.read()
        with pytest.raises(KeyboardInterrupt):
            tracker.log(records, reader.positions)
        send(root)
        assert contents(root) == expected, (calls, after)


@pytest.mark.slow
def test_an_unevaluated_checkpoint_and_notes_are_there_too(root: Path) -> None:
    events = root / "demo" / "events"
    write(events, "train-0003.jsonl", [*training(300, 300), Note("step 200 was passed over", time_s=START_S + 400)])
    send(root)
    found = contents(root)
    assert "demo-step-000300" in {name for name, _, _ in found["models"]}
    assert "step 200 was passed over" in {value for _, _, value in found["tags"]}


@pytest.mark.slow
def test_it_is_quiet_and_leaves_nothing_in_the_working_directory(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mixtura.platform.tracking.tracker import Tailer\n"
        "from mixtura.platform.tracking.mlflow_tracker import MlflowTracker\n"
        "root = Path(sys.argv[1]); run = root / 'demo'\n"
        "with Tailer(run / 'events', lambda: MlflowTracker(f'sqlite:///{root}/new.db', 'm', 'demo', "
        "run / 'mlflow.json')): pass\n"
    )
    here = root / "elsewhere"
    here.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY / "src"), "HOME": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=here, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_a_store_that_cannot_be_used_is_one_clear_answer(tmp_path: Path) -> None:
    from mixtura.platform.tracking.mlflow_store import connect

    (tmp_path / "mlflow.db").write_text("this is no database, but quite a long text " * 100)
    with pytest.raises(ResourceError, match=r"tracking store sqlite:.* cannot be used .*MLFLOW_TRACKING_URI"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ResourceError, match=r"tracking store http://127.0.0.1:9 does not answer .Connection refused."):
        connect("http://127.0.0.1:9")


def test_links_lead_to_the_right_pages() -> None:
    base = "http://127.0.0.1:5000"
    assert pages.checkpoint_link(base, "7", "my run").endswith(
        "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=my%20run"
    )
    assert pages.run_link(base, "7", "ab").startswith("http://127.0.0.1:5000/#/experiments/7/runs/ab?")
    assert "/#/experiments/7/models?" in pages.models_link(base, "7")


def test_descriptions_are_tables() -> None:
    from mixtura.platform.tracking.selection import scores

    records: list[Record] = [record for step in SCORES for record in evaluation(step)]
    lines = pages.run_description("demo", scores(records)).splitlines()
    assert lines[0].startswith("Best on average: **demo@300** (65).")
    assert [line.replace("&emsp;", "") for line in lines[2:]] == [
        "| checkpoint | average | rte | squad | best for | Pareto front |",
        "| --- | --- | --- | --- | --- | --- |",
        "| demo@300 | 65 | 60 | 70 | average, squad | yes |",
        "| demo@100 | 55 | 50 | 60 |  |  |",
        "| demo@200 | 50 | 70 | 30 | rte | yes |",
    ]
    results = [record for record in evaluation(100) if isinstance(record, EvaluationResult)]
    use, _, _, _, first, *_ = pages.checkpoint_description("demo@100", "m-7", results).splitlines()
    assert "`mixtura predict demo@100`" in use
    assert "`mlflow models serve -m models:/m-7 --env-manager local`" in use
    assert first.replace("&emsp;", "") == "| validation | rte | accuracy | 50 | 45 to 55 | - | 200 |"


def test_the_state_can_be_read_by_a_person(tmp_path: Path) -> None:
    from mixtura.platform.tracking.mlflow_state import State

    assert State.load(tmp_path / "absent.json") == State()
    positions: Mapping[str, int] = State().positions
    assert positions == {}


def test_a_store_whose_making_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from mixtura.platform.tracking.mlflow_store import connect

    uri, search = f"sqlite:///{tmp_path / 'mlflow.db'}", MlflowClient.search_experiments

    def full(self: MlflowClient, **given: Any) -> Any:
        search(self, **given)
        raise OSError("No space left on device")

    monkeypatch.setattr(MlflowClient, "search_experiments", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        connect(uri)
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]
    monkeypatch.undo()
    assert connect(uri).search_experiments()
    assert (tmp_path / "mlflow.db").is_file()
