"""A corpus on several machines, one of which is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixtura.platform.corpus.stages import read_file
from mixtura.platform.orchestration.corpus_tasks import Job, Lost, _on_ray

from .corpora import build, bytes_of, some_pages, write_pages
from .machines import two_machines

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Iterator[Any]:
    with two_machines(repository) as machines:
        yield machines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that was made in one process, and what it was made of."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "words.txt").write_text("frob\n")
    build(write_pages(folder / "input", some_pages(), 12), folder / "inline", folder / "words.txt")
    return folder


def test_a_file_whose_reader_dies_again_and_again_is_set_aside(cluster: Any, folder: Path, tmp_path: Path) -> None:
    def dying(job: Job) -> Job:
        if job["file"].endswith("/3.jsonl.gz"):
            os._exit(1)
        return read_file(job)

    def with_dying(function: Any, jobs: Sequence[Job], lost: Lost | None) -> Iterator[Job]:
        return _on_ray(dying if function is read_file else function, jobs, lost)

    manifest = build(folder / "input", tmp_path / "corpus", folder / "words.txt", map_jobs=with_dying)
    assert manifest["account"]["set_aside"] == 1
    accounts = [json.loads(line) for line in (tmp_path / "corpus/accounts.jsonl").read_text().splitlines()]
    (cause,) = [account["cause"] for account in accounts if account["cause"]]
    assert "3.jsonl.gz: its process ended 3 times" in cause


def test_a_machine_that_is_lost_costs_only_what_it_was_at(cluster: Any, folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "begun"

    def logged(function: Any) -> Any:
        def run(job: Job) -> Job:
            with open(log, "a") as file:
                file.write("x")
            result: Job = function(job)
            return result

        return run

    begun = 0

    def losing(function: Any, jobs: Sequence[Job], lost: Lost | None) -> Iterator[Job]:
        nonlocal begun
        for number, result in enumerate(_on_ray(logged(function), jobs, lost)):
            yield result
            begun += 1
            if function is read_file and number == 2:
                (other,) = [node for node in cluster.list_all_nodes() if not node.head]
                cluster.remove_node(other, allow_graceful=False)

    build(folder / "input", tmp_path / "corpus", folder / "words.txt", map_jobs=losing)
    assert bytes_of(tmp_path / "corpus") == bytes_of(folder / "inline")
    assert begun <= log.stat().st_size <= begun + 2
