"""`mixtura report` and `mixtura compare`: pages that open offline, with the numbers that stand everywhere else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mixtura.platform.config import Config
from mixtura.platform.errors import RequestError, UnknownNameError
from mixtura.platform.orchestration.compare import compare, write_comparison
from mixtura.platform.orchestration.report import example_answers, report_values, write_report
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.select import checkpoint_table
from mixtura.platform.orchestration.train import train_recipe
from mixtura.platform.tracking.pages import shown
from mixtura.platform.tracking.records import evaluation_results, read_events
from mixtura.platform.training.checkpoint import delete_checkpoint, list_checkpoints
from mixtura.platform.workspace import Workspace, workspace

pytestmark = pytest.mark.slow

MODULE = "python_docs_module"


@pytest.fixture(scope="module")
def space(module_workspace: Path, tiny_config: Callable[..., Config]) -> Workspace:
    """With the runs `base` and `other`, of another seed, each with two checkpoints measured on the same 40 examples."""
    inline = ("executor.kind=inline", "evaluation.examples=40", "evaluation.test=false")
    train_recipe("quickstart", tiny_config(module_workspace, "base", *inline), SilentReporter())
    train_recipe("quickstart", tiny_config(module_workspace, "other", "run.seed=7", *inline), SilentReporter())
    return workspace(str(module_workspace))


class Page(HTMLParser):
    """The cells of a page, and whatever it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [
            value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_a_page_loads_nothing_and_has_the_table_of_the_command_line(space: Workspace, tmp_path: Path) -> None:
    path = write_report(space, "base", tmp_path / "out/page.html", price=None)
    page = Page(path.read_text())
    assert page.loaded == []
    assert "script" not in page.tags
    cells = {row[0]: row for row in page.rows if row and row[0].startswith("base@")}
    table = checkpoint_table(space.run("base"))
    assert list(cells) == [row["checkpoint"] for row in table]
    headlines = [name for name in table[0] if name.startswith("python_docs")]
    assert len(headlines) == 4
    for row in table:
        ours = cells[row["checkpoint"]]
        assert ours[1] == shown(row["average"])
        for place, name in enumerate(headlines, start=2):
            assert ours[place].startswith(shown(row[name]))
            assert " to " in ours[place]


def test_it_says_what_was_trained_on_and_what_it_cost(space: Workspace) -> None:
    values = report_values(space.run("base"), price=3.0)
    assert sum(row["rate"] for row in values["mixture"]) == pytest.approx(1)
    assert sum(row["drawn"] for row in values["mixture"]) == pytest.approx(1)
    assert all(row["examples"] > 0 for row in values["mixture"])
    cost = {row["what"]: row["how much"] for row in values["cost"]}
    assert cost["steps"] == "8"
    assert cost["money"].endswith("at 3 for an hour of a worker")
    assert values["loss_curve"].startswith("<svg")
    assert [row["what"] for row in values["events"]][:2] == ["attempt 1 began", "checkpoint of step 4"]


def test_it_says_where_the_run_came_from_and_not_the_report(
    space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = report_values(space.run("base"))["provenance"]
    assert {row["what"] for row in before} >= {"mixtura.version.torch", "mixtura.stream", "mixtura.recipe"}
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    assert report_values(space.run("base"))["provenance"] == before


def test_answers_are_shown_as_they_were_given_whatever_they_hold(space: Workspace, tmp_path: Path) -> None:
    run = space.run("base")
    path = run.predictions / f"step-000008/{MODULE}.validation.jsonl"
    before = path.read_text()
    records = [json.loads(line) for line in before.splitlines()]
    records[0] |= {"inputs": "<script>alert(1)</script> " + "long " * 200, "scores": {"accuracy": 100.0}}
    try:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        task = next(one for one in example_answers(run, 8) if one["name"] == MODULE)
        assert task["shown"][0]["mark"] == "good"
        assert task["count"].endswith("of 40 right")
        page = write_report(space, "base", tmp_path / "page.html", None).read_text()
    finally:
        path.write_text(before)
    assert "<script>" not in page
    if "base@8" in re.findall(r"Answers of (\S+?)<", page):
        assert "&lt;script&gt;alert(1)" in page
        assert "characters</summary>" in page


def test_a_file_without_answers_shows_none(space: Workspace, tmp_path: Path) -> None:
    copy = Workspace(tmp_path)
    shutil.copytree(space.run("base").path, tmp_path / "base")
    (copy.run("base").predictions / f"step-000008/{MODULE}.validation.jsonl").write_text("")
    assert MODULE not in [task["name"] for task in example_answers(copy.run("base"), 8)]


def test_runs_that_share_no_task_are_told_so(space: Workspace, tmp_path: Path) -> None:
    copy = Workspace(tmp_path)
    for name in ("base", "apart"):
        shutil.copytree(space.run("base").path, tmp_path / name)
    for path in copy.run("apart").events.glob("evaluate-*.jsonl"):
        path.write_text(path.read_text().replace("python_docs_", "other_"))
    found = compare(copy, ["base@8", "apart@8"])
    assert found.results == []
    assert found.notes() == ["no task was measured on both: `mixtura evaluate` measures what is missing"]
    write_comparison(found, tmp_path / "both.html")


def test_a_deleted_checkpoint_keeps_its_numbers(space: Workspace, tmp_path: Path) -> None:
    copy = Workspace(tmp_path)
    shutil.copytree(space.run("base").path, tmp_path / "base")
    run = copy.run("base")
    delete_checkpoint(list_checkpoints(run.checkpoints)[0])
    rows = {row["name"]: row for row in report_values(run)["results"]}
    assert {name: row["files"] for name, row in rows.items()} == {"base@4": "deleted", "base@8": "kept"}
    assert all(cell["value"] is not None for cell in rows["base@4"]["cells"])


def test_a_run_that_did_nothing_yet_has_a_page(space: Workspace, tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(space.run("base").path / name, run / name)
    page = write_report(Workspace(tmp_path), "begun", None, None)
    assert page == run / "report.html"
    assert "No step of this run has ended yet" in page.read_text()


def test_runs_are_compared_pair_by_pair(space: Workspace, tmp_path: Path) -> None:
    found = compare(space, ["base@8", "other@8"])
    assert [row["setting"] for row in found.settings] == ["run.seed"]
    values = {
        name: {
            (one.task, one.metric): one.value
            for one in evaluation_results(read_events(space.run(name).events))
            if one.step == 8
        }
        for name in ("base", "other")
    }
    assert {(row["task"], row["metric"]) for row in found.results} == values["base"].keys()
    for row in found.results:
        key = row["task"], row["metric"]
        assert (row["base@8"], row["value"]) == (values["base"][key], values["other"][key])
        if row["task"] != "python_docs_span_corruption":  # of rounded log-probabilities and bytes
            assert row["difference"] == pytest.approx(row["value"] - row["base@8"], abs=1e-6)
        assert row["verdict"] in ("better", "worse", "within noise")
    write_comparison(found, tmp_path / "both.html")
    page = Page((tmp_path / "both.html").read_text())
    assert page.loaded == []
    assert "run.seed" in [row[0] for row in page.rows if row]


def test_a_run_differs_from_itself_by_nothing_and_other_examples_are_not_paired(
    space: Workspace, tmp_path: Path
) -> None:
    copy = Workspace(tmp_path)
    for name in ("base", "twin"):
        shutil.copytree(space.run("base").path, tmp_path / name)
    same = compare(copy, ["base@8", "twin@8"])
    assert {row["verdict"] for row in same.results} == {"within noise"}
    assert {row["difference"] for row in same.results} == {0.0}
    answers = copy.run("twin").predictions / f"step-000008/{MODULE}.validation.jsonl"
    answers.write_text("".join(reversed(answers.read_text().splitlines(keepends=True))))
    (row,) = [
        row for row in compare(copy, ["base@8", "twin@8"]).results if (row["task"], row["metric"]) == (MODULE, "loss")
    ]
    assert row["verdict"] == "within noise (other examples: not paired)"
    assert row["95 % interval"] != "0 to 0"
    answers.unlink()
    verdicts = {row["task"]: row["verdict"] for row in compare(copy, ["base@8", "twin@8"]).results}
    assert verdicts[MODULE] == "unknown"


def test_what_cannot_be_compared_is_refused(space: Workspace, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="two runs or more"):
        compare(space, ["base"])
    with pytest.raises(UnknownNameError, match="no run 'bse'"):
        compare(space, ["base", "bse"])
    with pytest.raises(RequestError, match="given twice"):
        compare(space, ["base@8", "base@last"])
    shutil.copytree(space.run("base").path, tmp_path / "dumb", ignore=shutil.ignore_patterns("evaluate-*"))
    with pytest.raises(RequestError, match="dumb@8 was not evaluated"):
        compare(Workspace(tmp_path), ["dumb", "dumb@4"])
    with pytest.raises(UnknownNameError, match="no run 'bse'"):
        write_report(space, "bse", None, None)
