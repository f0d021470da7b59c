"""Training begins when the first shards of a big source are there, and sees what it would see with all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from object_store import S3Handler, place, serve

from mixtura.platform.config import Config
from mixtura.platform.data.cache import is_closed, open_cache, read_manifest
from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.stream_spec import first_epoch_shards
from mixtura.platform.data.task import BadRecord, Row, Shard
from mixtura.platform.errors import DataError
from mixtura.platform.orchestration.cluster import divide
from mixtura.platform.orchestration.executor import InlineExecutor, Job
from mixtura.platform.orchestration.on_ray import RayExecutor
from mixtura.platform.orchestration.prepare import Prepared, interleaved, lock_of, map_inline, prepare
from mixtura.platform.orchestration.preparer import Preparer
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.orchestration.train import Training, train_recipe
from mixtura.platform.tracking.records import TrainPoint, read_events
from mixtura.platform.workspace import workspace

SHARDS = 12
MANY_SHARDS = 64
READ = FileSource.read


@pytest.fixture
def given(
    tmp_path: Path, tiny: list[str], web_text: Callable[..., Path], web_vocabulary: Path
) -> Callable[..., Config]:
    """A recipe that trains on a web corpus of 12 files alone, in a folder of runs."""

    def load(runs: str, *overrides: str) -> Config:
        small = ["mixture.tasks=[c4]", "data.window_shards=2", f"data.root={web_text(SHARDS)}", "training.steps=4"]
        own = [f"run.root={tmp_path / runs}", f"vocabulary.path={web_vocabulary}", "executor.kind=inline"]
        return load_recipe("quickstart", [*tiny, *small, *own, *overrides])

    return load


def begun(config: Config) -> Prepared:
    return prepare(config, workspace(config.run.root), map_inline, SilentReporter(), leave_pending=True)


def shards_of(cache: str) -> dict[str, bytes]:
    files = [path for path in Path(cache).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(cache)): path.read_bytes() for path in files}


class Watched(InlineExecutor):
    """Notes which shards it was given, and waits before each until it is let go on."""

    def __init__(self, free: int = SHARDS) -> None:
        super().__init__()
        self.order: list[int] = []
        self.free = threading.Semaphore(free)

    def map_beside(
        self, function: Callable[..., Job], jobs: Sequence[Job], stopped: Callable[[], bool]
    ) -> Iterator[Job]:
        for job in jobs:
            while not self.free.acquire(timeout=0.01):
                if stopped():
                    return
            self.order.append(job["index"])
            yield function(job, stopped)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- the preparer alone ----------------------------------------------------------------------------------------------


def test_shards_are_made_in_the_order_of_the_first_epoch_and_closed_with_the_bytes_of_a_cache_made_whole(
    given: Callable[..., Config],
) -> None:
    whole = given("whole", "data.prepare=before_training")
    expected = begun(whole)
    assert not expected.pending
    made = begun(given("later"))
    executor = Watched()
    with Preparer(made.pending, executor, SilentReporter()):
        wait_until(lambda: is_closed(made.caches["c4"]))
    assert executor.order == first_epoch_shards(0, "c4", SHARDS)
    assert shards_of(made.caches["c4"]) == shards_of(expected.caches["c4"])
    assert not begun(given("later")).pending


def test_a_reader_waits_for_its_shard_and_no_longer(given: Callable[..., Config]) -> None:
    made = begun(given("runs"))
    executor = Watched(free=3)
    first, second, third, fourth = first_epoch_shards(0, "c4", SHARDS)[:4]
    cache = open_cache(made.caches["c4"])
    with Preparer(made.pending, executor, SilentReporter()):
        assert cache.entry(third)["rows"] == 38
        assert not cache.is_committed(fourth)
        executor.free.release()
        assert cache.entry(fourth)["rows"] == 38
    assert sorted(executor.order) == sorted([first, second, third, fourth])


def tear(monkeypatch: pytest.MonkeyPatch, broken: int) -> None:
    """From now on this shard of the source cannot be read."""

    def torn(source: FileSource, shard: Shard) -> Iterator[Row | BadRecord]:
        if f"{broken:05d}-of" in shard.name:
            raise DataError(f"{shard.name} is torn")
        return READ(source, shard)

    monkeypatch.setattr(FileSource, "read", torn)


def test_a_failure_reaches_whoever_waits(given: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun(given("runs"))
    broken = first_epoch_shards(0, "c4", SHARDS)[2]
    tear(monkeypatch, broken)
    with Preparer(made.pending, InlineExecutor(), SilentReporter()), pytest.raises(DataError, match="is torn"):
        open_cache(made.caches["c4"], timeout_s=60).entry(broken)
    monkeypatch.setattr(FileSource, "read", READ)
    with Preparer(begun(given("runs")).pending, InlineExecutor(), SilentReporter()):
        assert open_cache(made.caches["c4"], timeout_s=60).entry(broken)["rows"] == 38


def test_what_is_stopped_keeps_its_shards_and_goes_on_from_them(given: Callable[..., Config]) -> None:
    made = begun(given("runs"))
    executor = Watched(free=5)
    with Preparer(made.pending, executor, SilentReporter()):
        wait_until(lambda: len(list(Path(made.caches["c4"]).glob("*-of-*.json"))) == 5)
    assert not is_closed(made.caches["c4"])
    again = Watched()
    with Preparer(begun(given("runs")).pending, again, SilentReporter()):
        wait_until(lambda: is_closed(made.caches["c4"]))
    assert executor.order + again.order == first_epoch_shards(0, "c4", SHARDS)


def test_a_cache_that_another_run_prepares_is_waited_for_and_then_finished(given: Callable[..., Config]) -> None:
    made = begun(given("runs"))
    executor = Watched()
    with ExitStack() as other:
        other.enter_context(lock_of(made.caches["c4"], "held", wait=False))
        with Preparer(made.pending, executor, SilentReporter()):
            time.sleep(0.3)
            assert executor.order == []
            other.close()
            wait_until(lambda: is_closed(made.caches["c4"]))
    assert read_manifest(made.caches["c4"])["splits"]["train"]["rows"] == 38 * SHARDS


def test_several_tasks_take_turns(given: Callable[..., Config]) -> None:
    made = begun(given("runs", "mixture.tasks=[c4, c4_lm]"))
    assert [cache.name for cache in made.pending] == ["c4", "c4_lm"]
    executor = Watched(free=10)
    with Preparer(made.pending, executor, SilentReporter()):
        wait_until(lambda: len(executor.order) == 10)
    assert executor.order[0::2] == first_epoch_shards(0, "c4", SHARDS)[:5]
    assert executor.order[1::2] == first_epoch_shards(0, "c4_lm", SHARDS)[:5]


def test_turns_go_on_when_one_has_ended() -> None:
    jobs: list[list[dict[str, Any]]] = [[{"a": 1}, {"a": 2}, {"a": 3}], [], [{"b": 1}]]
    assert interleaved(jobs) == [{"a": 1}, {"b": 1}, {"a": 2}, {"a": 3}]


# ---- training --------------------------------------------------------------------------------------------------------

STEPS = 60
"""Their rows are made from about ten shards, five windows of two."""
FIRST = 8
"""Shards that there are before the first step; under Ray some blocks are built ahead of it."""


@pytest.fixture(scope="module")
def steps_with_everything_prepared(
    tmp_path_factory: pytest.TempPathFactory, tiny: list[str], web_text: Callable[..., Path], web_vocabulary: Path
) -> dict[int, tuple[float, str | None]]:
    config = recipe(tmp_path_factory.mktemp("whole"), tiny, web_text(MANY_SHARDS), web_vocabulary)
    train_recipe("quickstart", config, SilentReporter())
    assert is_closed(begun(config).caches["c4"])
    return steps(config)


def recipe(root: Path, tiny: list[str], web: Path | str, vocabulary: Path, *overrides: str) -> Config:
    own = [f"run.root={root}", f"data.root={web}", f"vocabulary.path={vocabulary}", "executor.kind=inline"]
    long = ["mixture.tasks=[c4]", "data.window_shards=2", f"training.steps={STEPS}", "checkpoints.every=100"]
    return load_recipe("quickstart", [*tiny, *own, *long, "data.prepare=before_training", *overrides])


def points(config: Config) -> list[TrainPoint]:
    run = workspace(config.run.root).run("quickstart")
    return [record for record in read_events(run.events) if isinstance(record, TrainPoint)]


def steps(config: Config) -> dict[int, tuple[float, str | None]]:
    return {point.step: (point.metrics["loss"], point.fingerprint) for point in points(config)}


def committed_at(cache: str, time_s: float) -> int:
    return sum(path.stat().st_mtime < time_s for path in Path(cache).glob("*-of-*.json"))


class Gate:
    """Lets the first shards of a run's source through, and the others when the run has reported a step.

    The listing's first one too, of which some rows are read to see whether the task can use them.
    """

    def __init__(self, config: Config) -> None:
        self.run = workspace(config.run.root).run("quickstart")
        first = (0, *first_epoch_shards(0, "c4", MANY_SHARDS)[:FIRST])
        self.first = {f"c4-train.{shard:05d}-" for shard in first}

    def wait(self, name: str) -> None:
        """Wait as long as it takes for a file."""
        if "c4-train" in name and not any(part in name for part in self.first):
            wait_until(lambda: any("loss" in path.read_text() for path in self.run.events.glob("train-*.jsonl")))


@pytest.mark.slow
def test_the_first_step_comes_after_the_first_shards_and_every_step_is_the_same(
    tmp_path: Path,
    tiny: list[str],
    web_text: Callable[..., Path],
    web_vocabulary: Path,
    steps_with_everything_prepared: dict[int, tuple[float, str | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = recipe(tmp_path, tiny, web_text(MANY_SHARDS), web_vocabulary, "data.prepare=while_training")
    gate = Gate(config)

    def slowly(source: FileSource, shard: Shard) -> Iterator[Row | BadRecord]:
        gate.wait(shard.name)
        return READ(source, shard)

    monkeypatch.setattr(FileSource, "read", slowly)
    train_recipe("quickstart", config, SilentReporter())
    cache = begun(config).caches["c4"]
    assert 2 <= committed_at(cache, points(config)[0].time_s) <= FIRST
    assert len(steps_with_everything_prepared) == STEPS
    assert steps(config) == steps_with_everything_prepared


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_shards_are_prepared_beside_training_and_every_step_is_the_same(
    tmp_path: Path,
    tiny: list[str],
    web_text: Callable[..., Path],
    web_vocabulary: Path,
    steps_with_everything_prepared: dict[int, tuple[float, str | None]],
) -> None:
    files = {f"bucket/web/{path.name}": path.read_bytes() for path in web_text(MANY_SHARDS).iterdir()}
    gates: list[Gate] = []

    class SlowS3(S3Handler):
        def handle_path(self, path: str, query: Mapping[str, str]) -> None:
            if self.command == "GET" and gates:
                gates[0].wait(path)
            super().handle_path(path, query)

    with serve(SlowS3, files) as store:
        corpus = place(store, "bucket/web")
        config = recipe(tmp_path, tiny, corpus, web_vocabulary, "data.prepare=while_training", "executor.kind=ray")
        space = workspace(config.run.root)
        run = space.run("quickstart")
        gates.append(Gate(config))
        executor = RayExecutor(divide(2, 0, config.executor, preparing=True), 0, shards_at_once=1, blocks_per_lane=1)
        Training(space, run, config, executor, SilentReporter(), run.begin("quickstart", config)).go()
        cache = begun(config).caches["c4"]
    assert 2 <= committed_at(cache, points(config)[0].time_s) <= FIRST
    found = steps(config)
    assert {step: print_ for step, (_, print_) in found.items()} == {
        step: print_ for step, (_, print_) in steps_with_everything_prepared.items()
    }


@pytest.mark.slow
def test_a_run_whose_source_turns_out_to_be_torn_says_so(
    given: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = first_epoch_shards(0, "c4", SHARDS)[1]
    tear(monkeypatch, broken)
    with pytest.raises(DataError, match="is torn"):
        train_recipe("quickstart", given("runs", "data.prepare=while_training"), SilentReporter())
