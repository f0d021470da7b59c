"""Whole checks find what a slow search through decoded text finds, wherever and however often they run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_store import place, serve_s3

from mixtura.platform.config import Config, ExecutorSection
from mixtura.platform.data.cache import begin, open_cache
from mixtura.platform.data.overlap import load_ranges
from mixtura.platform.data.vocabulary import Vocabulary
from mixtura.platform.data.words import normalised
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.overlap import OverlapReport, check_overlap
from mixtura.platform.orchestration.prepare import Job, Prepared, map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.workspace import Workspace

TEXT = "python_docs_span_corruption"
Load = Callable[..., Config]


def check(tree: Config, prepared: Prepared, map_shards: Any = map_inline, n: int = 13) -> OverlapReport:
    return check_overlap(tree, prepared, map_shards, SilentReporter(), n)


@pytest.fixture
def tree(new_workspace: Path, workspace_root: Path, tiny_config: Load) -> Config:
    """The tiny quickstart with caches that this test alone writes beside."""
    (new_workspace / "caches").unlink()
    (new_workspace / "caches").mkdir()
    for cache in (workspace_root / "caches").iterdir():
        (new_workspace / "caches" / cache.name).mkdir()
        for file in cache.iterdir():
            if not file.name.startswith("overlap-"):
                (new_workspace / "caches" / cache.name / file.name).symlink_to(file)
    return tiny_config(new_workspace, "overlap")


@pytest.fixture
def prepared(tree: Config) -> Prepared:
    return prepare(tree, Workspace(Path(tree.run.root)), map_inline, SilentReporter())


def files(report: OverlapReport) -> dict[str, bytes]:
    (folder,) = map(Path, report.folders.values())
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def nothing_left(_: object, jobs: Sequence[Job]) -> Iterator[Job]:
    assert not jobs
    return iter(())


def known_text(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    return vocabulary.decode([number for number in ids if number != vocabulary.unk_id])


def words_of(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    return normalised(known_text(vocabulary, ids))


def ngrams_of(words: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}


def test_what_is_found_is_what_a_slow_search_through_decoded_text_finds(tree: Config, prepared: Prepared) -> None:
    vocabulary, text = Vocabulary(prepared.vocabulary), open_cache(prepared.caches[TEXT])
    wanted: set[tuple[str, ...]] = set()
    for shard in range(text.count):
        for document in text.column(shard, "tokens").to_lists():
            wanted |= ngrams_of(words_of(vocabulary, document), 13)
    rows = check(tree, prepared).rows
    assert len(rows) >= 4
    for row in rows:
        cache = open_cache(prepared.caches[row["task"]], row["split"])
        overlapping = too_short = 0
        for shard in range(cache.count):
            for inputs, targets in zip(
                *(cache.column(shard, name).to_lists() for name in ("inputs", "targets")), strict=True
            ):
                label, colon, field = known_text(vocabulary, inputs).partition(":")
                assert (len(label.split()), colon) == (2, ":")
                own = ngrams_of(normalised(field), 13) | ngrams_of(words_of(vocabulary, targets), 13)
                too_short += not own
                overlapping += bool(own & wanted)
        assert (row["too short"], row["overlapping"]) == (too_short, overlapping)
        assert row["overlapping"] > 0, "documentation repeats itself"


def test_a_check_is_not_done_twice_and_gives_the_same_report(tree: Config, prepared: Prepared) -> None:
    first = check(tree, prepared)
    assert check(tree, prepared, nothing_left) == first
    assert check(tree, prepared, n=5).folders != first.folders


def test_L4_an_interrupted_check_goes_on_and_ends_with_the_same_bytes(tree: Config, prepared: Prepared) -> None:
    whole = files(check(tree, prepared))
    for path in Path(check(tree, prepared).folders[TEXT]).iterdir():
        path.unlink()

    def dies_at_the_third(function: Callable[[Job], Job], jobs: Sequence[Job]) -> Iterator[Job]:
        yield function(jobs[0])
        yield function(jobs[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(tree, prepared, dies_at_the_third)
    asked: list[int] = []

    def noted(function: Callable[[Job], Job], jobs: Sequence[Job]) -> Iterator[Job]:
        asked.extend(job["shard"] for job in jobs)
        return map(function, reversed(jobs))

    assert files(check(tree, prepared, noted)) == whole
    assert asked == list(range(2, open_cache(prepared.caches[TEXT]).count))


def test_ranges_of_every_shard_are_in_order_and_within_it(tree: Config, prepared: Prepared) -> None:
    report, text = check(tree, prepared), open_cache(prepared.caches[TEXT])
    ranges = [load_ranges(report.folders[TEXT], shard) for shard in range(text.count)]
    assert sum(map(len, ranges)) == report.texts[0]["ranges"] > 0
    for shard, own in enumerate(ranges):
        flat = own.ravel()
        assert np.all(np.diff(flat) > 0)
        assert flat.min(initial=0) >= 0
        assert flat.max(initial=0) <= text.entry(shard)["tokens"]


def test_a_bucket_gets_and_gives_the_same_bytes(tree: Config, prepared: Prepared, tmp_path: Path) -> None:
    local = check(tree, prepared)
    objects = {
        f"bucket/caches/{name}/{path.relative_to(cache).as_posix()}": path.read_bytes()
        for name, cache in prepared.caches.items()
        for path in Path(cache).rglob("*")
        if path.is_file() and not path.parent.name.startswith("overlap-")
    }
    with serve_s3(objects) as store:
        caches = {name: place(store, f"bucket/caches/{name}") for name in prepared.caches}
        copies = tree.data.model_copy(update={"copies": str(tmp_path / "copies")})
        remote = check(tree.model_copy(update={"data": copies}), replace(prepared, caches=caches))
        written = {name.rpartition("/")[2]: data for name, data in store.files.items() if "/overlap-" in name}
        assert written == files(local)
        assert np.array_equal(load_ranges(remote.folders[TEXT], 0), load_ranges(local.folders[TEXT], 0))
    assert (remote.rows, remote.samples) == (local.rows, local.samples)
    assert "secret" not in str(remote.texts)


@pytest.mark.parametrize(("left_out", "message"), [("text", "unsupervised"), ("evaluation", "right answers")])
def test_a_mixture_with_nothing_to_compare_is_refused(
    left_out: str, message: str, tree: Config, prepared: Prepared
) -> None:
    tasks = {name: task for name, task in tree.mixture.tasks.items() if (name == TEXT) == (left_out == "evaluation")}
    smaller = tree.model_copy(update={"mixture": tree.mixture.model_copy(update={"tasks": tasks})})
    with pytest.raises(ConfigError, match=message):
        check(smaller, prepared)


def test_text_that_is_not_prepared_whole_is_refused(tree: Config, prepared: Prepared, tmp_path: Path) -> None:
    begun = str(tmp_path / "text-0123456789abcdef")
    begin(begun, TEXT, "unsupervised", {}, {"train": 4})
    with pytest.raises(ConfigError, match=f"{TEXT} is not prepared whole .*prepare=before_training"):
        check(tree, replace(prepared, caches={**prepared.caches, TEXT: begun}))


def test_the_command_prints_the_same_as_json_and_as_a_table(
    tree: Config, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixtura.platform.cli.main import main

    given = ["quickstart", *tiny, f"run.root={tree.run.root}", "executor.kind=inline"]
    said = []
    for option in (["--json"], ["--ngram", "13"]):
        monkeypatch.setattr("sys.argv", ["mixtura", "mixture", "overlap", *given, *option])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        said.append(capsys.readouterr().out)
    report = json.loads(said[0])
    assert {row["split"] for row in report["rows"]} == {"validation", "test"}
    for row in report["rows"]:
        assert row["task"] in said[1]
        assert f"{row['share overlapping']:.2%}" in said[1]
    assert report["samples"][0]["text"] in said[1]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_finds_the_same_bytes(tree: Config, prepared: Prepared) -> None:
    from mixtura.platform.orchestration.cluster import divide
    from mixtura.platform.orchestration.on_ray import RayExecutor

    inline = files(check(tree, prepared))
    for path in Path(check(tree, prepared).folders[TEXT]).iterdir():
        path.unlink()
    executor = RayExecutor(divide(2, 0, ExecutorSection()), 0, shards_at_once=2, blocks_per_lane=1)
    assert files(check(tree, prepared, executor.map_shards)) == inline


def test_real_evaluation_sentences_planted_in_real_web_pages_are_found(shared: Path, tmp_path: Path) -> None:
    """Sentences of RTE in pages of C4: as they are, in capitals, with other signs; and less one word, for others."""
    root = tmp_path / "data"
    for part in ("glue/RTE", "web/c4"):
        (root / part).mkdir(parents=True)
    for file in (shared / "data/glue/RTE").iterdir():
        (root / "glue/RTE" / file.name).symlink_to(file)
    with gzip.open(shared / "data/web/c4/c4-train.sample-1000.json.gz", "rt") as lines:
        pages = [json.loads(line) for line in lines][:300]
    rows = (shared / "data/glue/RTE/dev.tsv").read_text().splitlines()[1:]
    premises = [row.split("\t")[1] for row in rows]
    once = [row for row, text in enumerate(premises) if 20 < len(text.split()) < 200 and premises.count(text) == 1]
    ways: list[Callable[[str], str]] = [
        str,
        str.upper,
        lambda text: f"({text.replace(' ', ' - ', 5)})",
        lambda text: " ".join(word for number, word in enumerate(text.split()) if number % 12 != 11),
    ]
    for number, row in enumerate(once[:80]):
        pages[3 * number]["text"] += "\n" + ways[number % 4](premises[row]) + "\nand so on."
    text = "".join(json.dumps(page) + "\n" for page in pages)
    (root / "web/c4/c4-train.00000-of-00001.json").write_text(text)
    overrides = [f"run.root={tmp_path / 'runs'}", f"data.root={root}", "mixture.tasks=[glue_rte,c4]"]
    tree = load_recipe("twelve_tasks", [*overrides, f"vocabulary.path={shared / 'data/vocab/t5/spiece.model'}"])
    prepared = prepare(tree, Workspace(tmp_path / "runs"), map_inline, SilentReporter())
    report = check(tree, prepared)
    listed = (Path(report.folders["c4"]) / "examples.jsonl").read_text().splitlines()
    found = {json.loads(line)["row"] for line in listed}
    planted = {row for number, row in enumerate(once[:80]) if number % 4 != 3}
    less_a_word = {row for number, row in enumerate(once[:80]) if number % 4 == 3}
    assert planted <= found
    assert not less_a_word & found
    assert report.rows[0]["overlapping"] == len(found) < len(planted) + 10
