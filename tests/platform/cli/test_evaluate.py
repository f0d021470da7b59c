"""`mixtura evaluate --submission` from the command line: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_hub import write_model

from mixtura.models.t5 import T5Config

SHAPE = T5Config(640, 32, 8, 64, 4, num_layers=1, num_decoder_layers=1, feed_forward="gated-gelu", tie_embeddings=False)


@pytest.fixture
def request_of(tiny_vocabulary: Path, tmp_path: Path) -> list[str]:
    """The command that asks a model three rows of WiC, two of them under the numbers 1 and 0."""
    write_model(tmp_path / "model", SHAPE, tiny_vocabulary)
    (tmp_path / "data/WiC").mkdir(parents=True)
    rows = [{"word": "run", "sentence1": "They run.", "sentence2": f"Run {n} now.", "idx": n} for n in (1, 0, 2)]
    (tmp_path / "data/WiC/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "wic.yaml"
    recipe.write_text(
        f"extends: quickstart\nmixture: {{tasks: {{super_glue_wic: {{}}}}}}\ndata: {{root: {tmp_path / 'data'}}}\n"
        "evaluation: {decode_length: 4}\nexecutor: {kind: inline}\n"
    )
    root = ["--root", str(tmp_path / "runs")]
    return ["evaluate", str(tmp_path / "model"), "--recipe", str(recipe), *root]


def test_what_was_written_is_said_with_warnings_and_exit_code_0(
    ask: Any, request_of: list[str], tmp_path: Path
) -> None:
    answer = ask(*request_of, "--submission", str(tmp_path / "sg.zip"))
    assert answer.code == 0
    assert f"{tmp_path}/sg.zip was written" in answer.output
    assert "warning: WiC.jsonl: 3 of 3 answers are no label, written as false, for example" in answer.output
    assert "warning: WiC.jsonl has 3 answers, and the site wants 1,400" in answer.output
    assert "BoolQ.jsonl (super_glue_boolq)" in answer.output


def test_json_has_all_that_is_said(ask: Any, request_of: list[str], tmp_path: Path) -> None:
    answer = ask(*request_of, "--submission", str(tmp_path / "sg.zip"), "--json")
    said = json.loads(answer.output)
    assert (answer.code, said["path"], said["benchmark"]) == (0, str(tmp_path / "sg.zip"), "super_glue")
    (file,) = said["files"]
    assert (file["name"], file["task"], file["rows"], file["published_rows"]) == (
        *("WiC.jsonl", "super_glue_wic"),
        *(3, 1_400),
    )
    assert [(fault["what"], fault["answers"]) for fault in file["faults"]] == [("no label, written as false", 3)]
    assert said["missing"]["WSC.jsonl"] == ["super_glue_wsc", "super_glue_wsc_marked"]
    assert len(said["warnings"]) == 3


def test_options_that_do_not_go_together_are_refused(ask: Any, request_of: list[str], tmp_path: Path) -> None:
    whole = ask(*request_of, "--whole", "--submission", str(tmp_path / "sg.zip"))
    assert (whole.code, "leave one out" in whole.message) == (2, True)
    alone = ask(*request_of, "--benchmark", "super_glue")
    assert (alone.code, "--submission FILE.zip" in alone.message) == (2, True)
    assert not (tmp_path / "sg.zip").exists()
