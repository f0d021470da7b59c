"""`mixtura corpus report` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .asking import Ask


@pytest.fixture
def corpus(ask: Ask, tmp_path: Path) -> Path:
    said = "The harbour was quiet on evening {0}. Nobody saw the boat leave the pier. A storm came before morning {0}."
    (tmp_path / "raw.jsonl").write_text(
        "".join(json.dumps({"url": f"http://a/{number}", "text": said.format(number)}) + "\n" for number in range(9))
    )
    given = ("--input", str(tmp_path / "raw.jsonl"), "--preset", "c4-noblocklist", "executor.kind=inline")
    assert ask("corpus", "build", *given, "--output", str(tmp_path / "corpus")).code == 0
    return tmp_path / "corpus"


def test_it_prints_tables_and_writes_a_page_beside_the_corpus(ask: Ask, corpus: Path) -> None:
    answer = ask("corpus", "report", str(corpus), "--price", "0.04")
    assert answer.code == 0, answer.message
    for title in ("Records", "Pages", "Lines", "Languages", "Shards", "Time", "sum: pages", "cost"):
        assert title in answer.output
    assert answer.output.strip().endswith(str(corpus / "report.html"))
    assert (corpus / "report.html").read_text().startswith("<!doctype html>")


def test_json_is_all_that_stands_on_standard_output(ask: Ask, corpus: Path, tmp_path: Path) -> None:
    page = tmp_path / "out/page.html"
    answer = ask("corpus", "report", str(corpus), "--json", "--verify", "--output", str(page))
    found = json.loads(answer.output)
    assert found["account"] == json.loads((corpus / "manifest.json").read_text())["account"]
    assert found["page"] == str(page)
    assert page.is_file()
    assert not (corpus / "report.html").exists()


def test_bad_input_gets_its_exit_code_and_one_message(ask: Ask, corpus: Path, tmp_path: Path) -> None:
    typo = ask("corpus", "report", str(tmp_path / "corpsu"))
    assert (typo.code, typo.output) == (2, "")
    assert "check its name" in typo.message
    folder = ask("corpus", "report", str(corpus), "--output", str(tmp_path))
    assert (folder.code, folder.output) == (2, "")
    assert "is a folder: name a file in it" in folder.message
    below = ask("corpus", "report", str(corpus), "--output", str(tmp_path / "raw.jsonl/deep/page.html"))
    assert (below.code, below.output) == (2, "")
    assert f"since {tmp_path / 'raw.jsonl'} is no folder" in below.message
    (corpus / "c4-train.00000-of-00001.parquet").unlink()
    missing = ask("corpus", "report", str(corpus))
    assert (missing.code, missing.output) == (1, "")
    assert "1 of 1 shards" in missing.message
