"""Law L3, nothing is lost silently, and law L4, committed or absent, for token caches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.config import Config, ExecutorSection
from mixtura.platform.data.cache import MANIFEST, read_manifest
from mixtura.platform.data.task import Task
from mixtura.platform.orchestration.cluster import divide
from mixtura.platform.orchestration.on_ray import RayExecutor
from mixtura.platform.orchestration.prepare import Prepared, describe_cache, map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.workspace import Workspace
from mixtura.tasks import get_task


@pytest.fixture(scope="module")
def prepared(workspace_root: Path, tiny_config: Callable[..., Config]) -> Prepared:
    """The caches of the tiny quickstart, made without disturbance."""
    tree = tiny_config(workspace_root, "prepare")
    return prepare(tree, Workspace(workspace_root), map_inline, SilentReporter())


def contents(caches: dict[str, Path]) -> dict[str, bytes]:
    """All files of caches but their locks."""
    return {
        f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
        for folder in caches.values()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# ---- L3 --------------------------------------------------------------------------------------------------------------


def splits(prepared: Prepared) -> Iterator[tuple[Task, str, dict[str, Any]]]:
    """Every task and split, with what its manifest says."""
    for name, folder in prepared.caches.items():
        for split, totals in read_manifest(folder)["splits"].items():
            yield get_task(name), split, totals


def test_rows_read_are_rows_used_and_rows_rejected_by_reason(prepared: Prepared) -> None:
    for task, split, totals in splits(prepared):
        read = sum(1 for shard in task.shards(split) for _ in task.source.read(shard))
        assert read > 0
        assert totals["counters"]["rows read"] == read
        assert totals["rows"] + sum(totals["rejected"].values()) == read


def test_every_rejected_row_is_kept_with_its_reason_and_origin(prepared: Prepared) -> None:
    for task, split, totals in splits(prepared):
        files = sorted(prepared.caches[task.name].glob(f"rejected/{split}-*"))
        rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        assert rows
        assert Counter(row["reason"] for row in rows) == totals["rejected"]
        assert all(row["origin"] for row in rows)


def test_what_was_left_out_is_told(prepared: Prepared) -> None:
    for task, _, totals in splits(prepared):
        told = describe_cache(task, prepared.caches[task.name])
        assert f"{totals['rows']} examples" in told
        for reason, count in totals["rejected"].items():
            assert f"{count} {reason}" in told


# ---- L4 --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_preparation_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    prepared: Prepared,
    new_workspace: Path,
    tiny: list[str],
    tiny_config: Callable[..., Config],
    mixtura: Callable[..., Any],
    wait_for: Callable[..., None],
) -> None:
    (new_workspace / "caches").unlink()
    given = [f"run.root={new_workspace}", f"vocabulary.path={prepared.vocabulary}"]
    command = mixtura("prepare", "quickstart", *tiny, *given, "executor.kind=inline")
    wait_for(lambda: list(new_workspace.glob("caches/*/*-of-*.json")), "the first shard", command)
    command.process.kill()
    command.process.wait()
    half_written = next(new_workspace.glob("caches/*/*.arrow")).with_name(".train-00001-of-00004.arrow.abc123")
    half_written.write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in new_workspace.glob("caches/*/*-of-*.json")}
    assert len(list(new_workspace.glob(f"caches/*/{MANIFEST}"))) < len(prepared.caches)
    tree = tiny_config(new_workspace, "prepare", *given)
    again = prepare(tree, Workspace(new_workspace), map_inline, SilentReporter())
    assert contents(again.caches) == contents(prepared.caches)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_committed_cache_is_not_made_again(prepared: Prepared, tiny_config: Callable[..., Config]) -> None:
    def nothing(_: object, jobs: object) -> object:
        raise AssertionError(f"these shards were there: {jobs}")

    space = Workspace(prepared.vocabulary.parents[2])
    again = prepare(tiny_config(space.root, "prepare"), space, nothing, SilentReporter())  # type: ignore[arg-type]
    assert again == prepared


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_prepares_the_same_bytes(
    prepared: Prepared, new_workspace: Path, tiny_config: Callable[..., Config]
) -> None:
    (new_workspace / "caches").unlink()
    last = list(prepared.caches)[-1]
    given = [f"vocabulary.path={prepared.vocabulary}", f"mixture.tasks=[{last}]"]
    ray = RayExecutor(divide(2, 0, ExecutorSection()), 0, shards_at_once=2, blocks_per_lane=1)
    tree = tiny_config(new_workspace, "prepare", *given)
    on_ray = prepare(tree, Workspace(new_workspace), ray.map_shards, SilentReporter())
    assert contents(on_ray.caches) == contents({last: prepared.caches[last]})


def test_a_vocabulary_takes_a_bounded_part_of_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixtura.platform.orchestration import prepare as module
    from mixtura.tasks import get_task

    tasks = [get_task("python_docs_span_corruption"), get_task("python_docs_module")]
    whole = [list(module._texts_of(task)) for task in tasks]
    monkeypatch.setattr(module, "_VOCABULARY_BYTES", 20_000)
    texts = list(module._training_texts(tasks))
    first = [text for text in texts if text in whole[0][: len(texts)]]
    assert texts[: len(first)] == whole[0][: len(first)]
    assert texts[len(first) :] == whole[1][: len(texts) - len(first)]
    assert 20_000 <= sum(len(text.encode()) for text in texts) < 20_000 + 2 * max(map(len, texts))
