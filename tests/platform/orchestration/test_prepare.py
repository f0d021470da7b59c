"""Law L3, nothing is lost silently, and law L4, committed or absent, for token caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from object_store import place, serve_s3

from mixtura.platform.config import Config, ExecutorSection
from mixtura.platform.data.cache import MANIFEST, begin, open_cache, read_manifest
from mixtura.platform.data.stream import MixtureStream
from mixtura.platform.data.task import BadRecord, Row, Shard, Task
from mixtura.platform.data.vocabulary import EOS_ID, Vocabulary, train_vocabulary
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration import shard_job
from mixtura.platform.orchestration.cluster import divide
from mixtura.platform.orchestration.evaluation_examples import text_examples
from mixtura.platform.orchestration.mixture import held_out_spec, stream_spec
from mixtura.platform.orchestration.on_ray import RayExecutor
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.prepare import Prepared, describe_cache, map_inline, prepare
from mixtura.platform.orchestration.prepare_plan import refuse_waiting_in_vain
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.shard_job import GivenUpError, ShardJob, prepare_shard
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.workspace import Workspace, workspace
from mixtura.tasks import get_task


class Lines(SilentReporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def line(self, text: str = "") -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def prepared(workspace_root: Path, tiny_config: Callable[..., Config]) -> Prepared:
    """The caches of the tiny quickstart, made without disturbance."""
    tree = tiny_config(workspace_root, "prepare")
    return prepare(tree, Workspace(workspace_root), map_inline, SilentReporter())


def contents(caches: dict[str, str]) -> dict[str, bytes]:
    """All files of caches but their locks."""
    return {
        f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
        for folder in map(Path, caches.values())
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
        files = sorted(Path(prepared.caches[task.name]).glob(f"rejected/{split}-*"))
        rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        assert rows
        assert Counter(row["reason"] for row in rows) == totals["rejected"]
        assert all(row["origin"] for row in rows)


def test_what_was_left_out_is_told(prepared: Prepared) -> None:
    for task, _, totals in splits(prepared):
        told = describe_cache(prepared.caches[task.name])
        assert f"{totals['rows']} examples" in told
        for reason, count in totals["rejected"].items():
            assert f"{count} {reason}" in told


def test_files_of_a_split_that_is_not_read_are_named(
    web_text: Callable[[int], Path], web_vocabulary: Path, tmp_path: Path
) -> None:
    file = next(web_text(2).iterdir())
    files = f"{{train: {file}, test: {file}}}"
    given = ("mixture.tasks=[c4]", f"mixture.tasks.c4.files={files}")
    config = load_recipe("quickstart", [*given, f"vocabulary.path={web_vocabulary}"])
    told = Lines()
    prepare(config, workspace(str(tmp_path / "runs")), map_inline, told)
    said = "c4: the files of its test split are not read: it is not evaluated there"
    assert [line for line in told.said if "not read" in line] == [said]


def test_of_held_out_text_only_the_first_shards_are_prepared(
    web_text: Callable[[int], Path], web_vocabulary: Path, tmp_path: Path
) -> None:
    train, files = next(web_text(2).iterdir()), web_text(6)
    given = [f"mixture.tasks.c4.files={{train: {train}, validation: {files}/*.json}}", "evaluation.text_pieces=30"]
    config = load_recipe("quickstart", ["mixture.tasks=[c4]", *given, f"vocabulary.path={web_vocabulary}"])
    space = workspace(str(tmp_path / "runs"))
    made = prepare(config, space, map_inline, SilentReporter())
    shards = [path.name for path in Path(made.held_out["c4"]).glob("validation-*.arrow")]
    assert 1 <= len(shards) < 6
    examples = text_examples(held_out_spec(config, made, "c4"), Vocabulary(made.vocabulary))
    assert len(examples) == 30
    assert all(one.ids[-1] == one.targets[-1] == EOS_ID for one in examples)
    assert all(one.target_bytes > 0 for one in examples)
    assert "validation" not in read_manifest(made.caches["c4"])["splits"]
    without = load_recipe(
        "quickstart", ["mixture.tasks=[c4]", *given, f"vocabulary.path={web_vocabulary}", "evaluation.text_pieces=0"]
    )
    assert not prepare(without, space, map_inline, SilentReporter()).held_out


class Rows:
    """A source of the rows that it is given."""

    splits = ("train", "validation")

    def __init__(self, rows: Sequence[Row | BadRecord]) -> None:
        self.rows = rows

    def shards(self, split: str) -> list[Shard]:
        return [Shard("rows", (), split)]

    def read(self, shard: Shard) -> Iterator[Row | BadRecord]:
        return iter(self.rows)

    def fingerprint(self, split: str) -> str:
        return "1"


@pytest.fixture
def prepare_rows(
    tmp_path: Path, web_vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Prepares rows with `inputs` and `targets` as the only shard of a task, and returns its entry."""

    def run(rows: Sequence[Row | BadRecord], split: str = "train", **given: Any) -> dict[str, Any]:
        task = Task("rows", Rows(rows), (), kind="supervised", version="1", description="Rows.")
        monkeypatch.setattr(shard_job, "chosen_task", lambda _: task)
        begin(tmp_path / "rows", "rows", "supervised", {}, {split: 1})
        job = ShardJob({}, asdict(task.shards(split)[0]), split, 0, 1, str(tmp_path / "rows"), str(web_vocabulary))
        return prepare_shard(asdict(job), **given)

    return run


def test_half_of_a_surrogate_pair_is_counted_and_costs_no_other_row(
    prepare_rows: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    good = {"inputs": "the cat", "targets": "sat"}
    rows = [
        good,
        {"inputs": "half \ud800", "targets": "x"},
        BadRecord("not JSON", "{"),
        good,
        {**good, "more": "\udfff"},
    ]
    entry = prepare_rows(rows)
    assert entry["rows"] == 3
    assert entry["rejected"] == {"half of a surrogate pair": 1, "not JSON": 1}
    assert entry["counters"] == {"rows read": 5}
    lines = (tmp_path / "rows/rejected/train-00000-of-00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [2, 1]
    # what evaluation keeps of a row has to be text too
    assert prepare_rows(rows, "validation")["rejected"] == {"half of a surrogate pair": 2, "not JSON": 1}


def test_the_division_into_batches_changes_no_byte(
    prepare_rows: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"inputs": "the cat " * (number % 7), "targets": f"sat {number}"} for number in range(50)]
    whole = prepare_rows(rows)
    monkeypatch.setattr(shard_job, "_BATCH_CHARACTERS", 100)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert prepare_rows(rows) == whole
    assert whole["rows"] == 50


def test_a_shard_given_up_leaves_nothing(prepare_rows: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(GivenUpError):
        prepare_rows([{"inputs": "the cat", "targets": "sat"}], stopped=lambda: True)
    assert [path.name for path in (tmp_path / "rows").rglob("*") if path.is_file()] == ["listing.json"]


# ---- L4 --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_preparation_that_was_killed_goes_on_from_the_shards_that_are_there(
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

    tasks = [get_task("python_docs_span_corruption"), get_task("python_docs_module")]
    whole = [list(module._texts_of(task)) for task in tasks]
    monkeypatch.setattr(module, "_VOCABULARY_BYTES", 20_000)
    texts = list(module._training_texts(tasks))
    first = [text for text in texts if text in whole[0][: len(texts)]]
    assert texts[: len(first)] == whole[0][: len(first)]
    assert texts[len(first) :] == whole[1][: len(texts) - len(first)]
    assert 20_000 <= sum(len(text.encode()) for text in texts) < 20_000 + 2 * max(map(len, texts))


# ---- a web corpus of many small files, and a task of the user's own beside it ----------------------------------------

# Runs `prepare` in children that are forked with everything imported: two at once, or one after another, each killed
# after a few more files are there and a random time, until one lives to the end. Prints the number of kills, or most
# KiB of memory that a child had of its own (mapped files can be let go of).
CHILDREN = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import sentencepiece, mixtura.tasks
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.workspace import workspace
how, *overrides = sys.argv[1:]
config = load_recipe("quickstart", overrides)

def child():
    pid = os.fork()
    if pid:
        return pid
    try:
        prepare(config, workspace(config.run.root), map_inline, SilentReporter())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

if how != "killed":
    left, most = [child() for _ in range(int(how))], 0
    while left:
        ended, status = os.waitpid(left[0], os.WNOHANG)
        if status:
            sys.exit(1)
        if ended:
            left.pop(0)
        else:
            own = Path(f"/proc/{left[0]}/status").read_text().split("RssAnon:")
            most = max(most, int(own[-1].split()[0])) if len(own) > 1 else most
            time.sleep(0.002)
    print(most)
    sys.exit(0)

def files():
    return sum(1 for _ in Path(config.run.root).rglob("*"))

chance, kills = random.Random(7), 0
while True:
    more = files() + chance.randrange(0, 4 if kills < 20 else 12)
    pid = child()
    while files() < more:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            print(kills)
            sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(chance.uniform(0, 0.004))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
"""


def in_children(how: str, overrides: Sequence[str], repository: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILDREN, how, *overrides]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def web(tmp_path: Path, web_text: Callable[..., Path], web_vocabulary: Path) -> Callable[..., list[str]]:
    """Overrides for a mixture of a web corpus of so many files and a task of the user's own, in a folder of runs."""
    reviews = tmp_path / "reviews"
    reviews.mkdir()
    rows = [f"{number % 2},the cat {number} sat\n" for number in range(40)]
    (reviews / "train.csv").write_text("stars,text\n" + "".join(rows))
    (reviews / "dev.csv").write_text("stars,text\n" + "".join(rows[:10]))
    (reviews / "reviews.yaml").write_text(
        "name: reviews\nsource: {train: train.csv, validation: dev.csv}\n"
        'inputs: "review: {text}"\ntargets: "{stars}"\nlabels: {0: bad, 1: good}\n'
    )

    def given(runs: str, *overrides: str, files: int = 6) -> list[str]:
        root = web_text(files)
        return [
            f"mixture.tasks=[c4, {reviews / 'reviews.yaml'}]",
            f"run.root={tmp_path / runs}",
            f"data.root={root}",
            f"vocabulary.path={web_vocabulary}",
            *overrides,
        ]

    return given


def prepared_web(overrides: list[str], reporter: SilentReporter | None = None, **given: Any) -> Prepared:
    tree = load_recipe("quickstart", overrides)
    return prepare(tree, workspace(tree.run.root), map_inline, reporter or SilentReporter(), **given)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_bytes(web: Callable[..., list[str]], repository: Path) -> None:
    undisturbed = prepared_web(web("undisturbed", files=24))
    overrides = web("killed", files=24)
    assert int(in_children("killed", overrides, repository)) >= 20
    killed = prepared_web(overrides)
    assert contents(killed.caches) == contents(undisturbed.caches)
    assert len(contents(killed.caches)) > 2 * 24


@pytest.mark.slow
def test_two_runs_that_need_the_same_cache_at_once_make_one_whole_cache(
    web: Callable[..., list[str]], repository: Path
) -> None:
    alone = prepared_web(web("alone"))
    overrides = web("together")
    in_children("2", overrides, repository)
    caches = Path(alone.caches["c4"]).parents[1].with_name("together") / "caches"
    assert len(list(caches.glob(f"*/{MANIFEST}"))) == 2
    assert contents(prepared_web(overrides).caches) == contents(alone.caches)


@pytest.mark.slow
def test_two_runs_that_write_to_one_bucket_at_once_make_one_whole_cache(
    web: Callable[..., list[str]], repository: Path
) -> None:
    alone = prepared_web(web("alone"))
    with serve_s3({"bucket/readme": b""}) as store:
        in_children("2", web("together", f"data.caches={place(store, 'bucket/caches')}"), repository)
        found = {name.removeprefix("bucket/caches/"): data for name, data in store.files.items() if "caches/" in name}
        assert found == contents(alone.caches)
        in_bucket = prepared_web(web("later", f"data.caches={place(store, 'bucket/caches')}"))
        assert not store.parts
        assert {name: read_manifest(cache)["splits"] for name, cache in in_bucket.caches.items()} == {
            name: read_manifest(cache)["splits"] for name, cache in alone.caches.items()
        }


def test_another_source_vocabulary_or_preprocessing_makes_another_cache_and_says_why(
    web: Callable[..., list[str]], web_vocabulary: Path, tmp_path: Path
) -> None:
    first = prepared_web(web("runs", files=2))
    said = Lines()
    assert prepared_web(web("runs", files=2), said).caches == first.caches
    assert said.said == []

    more = prepared_web(web("runs", files=3), said)
    assert more.caches["c4"] != first.caches["c4"]
    assert more.caches["reviews"] == first.caches["reviews"]
    assert any("c4" in line and "source" in line for line in said.said)

    other = tmp_path / "other.model"
    train_vocabulary(["another text for another vocabulary", *(f"word {n}" for n in range(200))], other, 140)
    said.said.clear()
    changed = prepared_web([*web("runs", files=2), f"vocabulary.path={other}"], said)
    assert not set(changed.caches.values()) & set(first.caches.values())
    assert sum("vocabulary" in line for line in said.said) == 2

    yaml = tmp_path / "reviews/reviews.yaml"
    yaml.write_text(yaml.read_text().replace("review: {text}", "review text: {text}"))
    said.said.clear()
    reworded = prepared_web(web("runs", files=2), said)
    assert reworded.caches["c4"] == first.caches["c4"]
    assert reworded.caches["reviews"] != first.caches["reviews"]
    assert any("reviews" in line and "preprocessing" in line for line in said.said)


def test_caches_and_copies_lie_where_the_recipe_says(web: Callable[..., list[str]], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    overrides = web("runs", f"data.caches={elsewhere}", f"data.copies={tmp_path}/copies", "data.copies_size=2MB")
    made = prepared_web(overrides)
    assert {Path(cache).parent for cache in made.caches.values()} == {elsewhere}
    copies = copies_of(load_recipe("quickstart", overrides))
    assert (copies.folder, copies.size_bytes) == (f"{tmp_path}/copies", 2_000_000)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_size_of_a_shard(
    web: Callable[..., list[str]], web_text: Callable[..., Path], repository: Path, tmp_path: Path
) -> None:
    peaks = []
    for files in (40, 400):
        root = web_text(files)
        whole = tmp_path / f"whole-{files}"
        whole.mkdir()
        texts = [path.read_text() for path in sorted(root.glob("*.json"))]
        (whole / "c4-train.00000-of-00001.json").write_text("".join(texts) * 10)
        overrides = [*web(f"runs-{files}"), "mixture.tasks=[c4]", f"data.root={whole}"]
        peaks.append(int(in_children("1", overrides, repository)))
    assert peaks[1] < peaks[0] + 20_000, f"{peaks} KiB for shards of {40} and {400} files"


# ---- only what is needed, or later -----------------------------------------------------------------------------------


def test_a_task_held_to_its_first_tokens_has_its_first_shards_prepared_and_goes_on_later(
    web: Callable[..., list[str]],
) -> None:
    whole = prepared_web(web("whole"))
    tokens = [entry["tokens"] for entry in read_manifest(whole.caches["c4"])["splits"]["train"]["shards"]]
    needed = sum(tokens[:2]) + 1
    held = prepared_web(web("held", f"mixture.tasks.c4.first_tokens={needed}"))
    cache = open_cache(held.caches["c4"], timeout_s=0)
    assert [cache.is_committed(shard) for shard in range(6)] == [True] * 3 + [False] * 3
    exactly = prepared_web(web("exactly", f"mixture.tasks.c4.first_tokens={sum(tokens[:2])}"))
    assert [open_cache(exactly.caches["c4"]).is_committed(shard) for shard in range(6)] == [True] * 2 + [False] * 4
    more = prepared_web(web("held", f"mixture.tasks.c4.first_tokens={sum(tokens) + 1}"))
    assert contents(more.caches) == contents(whole.caches)
    assert contents(prepared_web(web("exactly")).caches) == contents(whole.caches)


def test_a_task_held_to_its_first_examples_has_as_many_tokens_as_they_take(web: Callable[..., list[str]]) -> None:
    whole = prepared_web(web("whole"))
    tokens = [entry["tokens"] for entry in read_manifest(whole.caches["c4"])["splits"]["train"]["shards"]]
    # 128 input tokens with EOS and sentinels hold pieces of 141 tokens (15 % noise in spans of 3)
    pieces = -(-tokens[0] // 141)
    for examples, shards in ((pieces, 1), (pieces + 1, 2)):
        given = [f"mixture.tasks.c4.first_examples={examples}", "data.inputs_length=128", "data.targets_length=40"]
        held = open_cache(prepared_web(web(f"held-{shards}", *given)).caches["c4"])
        assert sum(held.is_committed(shard) for shard in range(6)) == shards


@pytest.mark.parametrize(
    "overrides",
    [
        ["mixture.tasks=[c4]", "mixture.tasks.c4.first_examples=100", "data.chunks=original"],
        ["mixture.tasks=[c4]", "mixture.tasks.c4.first_tokens=5000", "data.chunks=original"],
        ["mixture.tasks=[c4]", "mixture.tasks.c4.first_examples=100", "mixture.tasks.c4.first_tokens=5000"],
        [
            "mixture.tasks=[c4_lm]",
            "mixture.tasks.c4_lm.first_examples=60",
            "model.architecture=lm",
            "data.inputs_length=60",
        ],
    ],
)
def test_a_held_task_is_trained_on_with_its_first_shards_alone(
    web: Callable[..., list[str]], overrides: list[str]
) -> None:
    tree = load_recipe("quickstart", web("runs", *overrides, files=12))
    made = prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
    ((name, cache),) = made.caches.items()
    assert sum(open_cache(cache).is_committed(shard) for shard in range(12)) < 12
    stream = MixtureStream(stream_spec(tree, made))
    assert [len(stream.build_block(block)) > 0 for block in (0, 1, 1000)] == [True] * 3
    own = tree.mixture.tasks[name]
    size = stream.epoch_sizes[name]
    assert size == own.first_examples if own.first_tokens is None else 0 < (size or 0) <= own.first_tokens


def test_text_that_is_to_be_left_out_is_looked_for_after_preparing(web: Callable[..., list[str]]) -> None:
    made = prepared_web(web("runs", "data.drop_overlap=3"))
    assert set(made.overlap) == {"c4"}
    assert prepared_web(web("runs")).overlap == {}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["mixture.sizes=counted"], "its rate is made from the number of its examples: give mixture.tasks.c4.size"),
        (["mixture.repeats=4"], "mixture.repeats counts passes"),
        (["mixture.tasks.c4.repeats=4"], "mixture.tasks.c4.repeats counts passes"),
        (["data.drop_overlap=13"], "data.drop_overlap looks through all of its text"),
        (["mixture.rates=unimax", "mixture.repeats=4", "mixture.budget=1000"], "rates: unimax needs the number"),
    ],
)
def test_what_needs_the_number_of_examples_is_prepared_whole_and_says_so(
    web: Callable[..., list[str]], overrides: list[str], reason: str
) -> None:
    given = web("runs", "data.window_shards=2", *overrides)
    said = Lines()
    made = prepared_web(given, said, leave_pending=True)
    assert made.pending == ()
    assert any(
        line.startswith("c4: all of its 6 shards are prepared before training") and reason in line for line in said.said
    )
    with pytest.raises(ConfigError, match=f"task 'c4' must be prepared whole first: {reason}"):
        refuse_waiting_in_vain(load_recipe("quickstart", [*given, "data.prepare=while_training"]))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.prepare=while_training"],
        ["mixture.sizes=counted", "mixture.tasks.c4.size=1000"],
        ["mixture.sizes=counted", "mixture.rates=equal"],
        ["mixture.sizes=counted", "mixture.tasks.c4.rate=0.5"],
    ],
)
def test_a_big_source_of_known_size_is_left_for_later_in_the_order_of_its_first_epoch(
    web: Callable[..., list[str]], overrides: list[str]
) -> None:
    from mixtura.platform.data.stream_spec import first_epoch_shards

    given = web("runs", "data.window_shards=2", *overrides)
    refuse_waiting_in_vain(load_recipe("quickstart", given))
    made = prepared_web(given, leave_pending=True)
    assert [cache.name for cache in made.pending] == ["c4"]
    assert [job["index"] for job in made.pending[0].jobs] == first_epoch_shards(0, "c4", 6)
    assert not open_cache(made.caches["c4"]).is_committed(0)
    assert read_manifest(made.caches["reviews"])["kind"] == "supervised"


@pytest.mark.parametrize("overrides", [["data.prepare=before_training"], ["data.window_shards=6"]])
def test_a_source_is_prepared_whole_where_asked_or_where_the_first_draws_need_all_of_it(
    web: Callable[..., list[str]], overrides: list[str]
) -> None:
    assert prepared_web(web("runs", "data.window_shards=2", *overrides), leave_pending=True).pending == ()
