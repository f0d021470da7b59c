"""`mixtura tasks` and `mixtura mixture`: rows in, examples out; answers in, numbers out; mistakes answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ask = Callable[..., Any]


def write_lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line]


RTE = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0, "idx": 7}


def test_preview_makes_examples_of_given_rows_and_names_those_left_out(ask: Ask, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", RTE, {**RTE, "label": 5}, {**RTE, "sentence1": "A\u2028B", "label": -1})
    answer = ask("tasks", "preview", "glue_rte", "--rows", str(rows))
    assert answer.code == 0
    assert lines(answer.output) == [
        {
            "row": 0,
            "idx": 7,
            "inputs": "rte sentence1: It rains. sentence2: It is wet.",
            "targets": "entailment",
        },
        {"row": 2, "idx": 7, "inputs": "rte sentence1: A\u2028B sentence2: It is wet.", "targets": "<unk>"},
    ]
    assert answer.message == "row 1 of rows.jsonl is left out: label is none of the classes\n"


def test_preview_keeps_positives_in_training_and_all_in_validation(ask: Ask, tmp_path: Path) -> None:
    row = {
        "text": "Ann said that she won .",
        "span1_text": "Ann",
        "span1_index": 0,
        "span2_text": "she",
        "span2_index": 3,
    }
    rows = str(write_lines(tmp_path / "rows.jsonl", {**row, "label": 0, "idx": 0}, {**row, "label": 1, "idx": 1}))
    kept = {
        split: [
            example["row"]
            for example in lines(ask("tasks", "preview", "super_glue_wsc", "--rows", rows, "--split", split).output)
        ]
        for split in ("train", "validation")
    }
    assert kept == {"train": [1], "validation": [0, 1]}


def test_preview_reads_the_first_rows_of_a_source(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    table = "index\tsentence1\tsentence2\tlabel\n" + "".join(f"{at}\ta {at}\tb\tentailment\n" for at in range(9))
    (tmp_path / "RTE/train.tsv").write_text(table)
    answer = ask("tasks", "preview", "glue_rte", "--root", str(tmp_path), "--count", "3")
    assert [example["row"] for example in lines(answer.output)] == [0, 1, 2]
    (tmp_path / "mine.tsv").write_text(table.replace("a 0", "first"))
    answer = ask("tasks", "preview", "glue_rte", "--file", f"train={tmp_path}/mine.tsv", "--count", "1")
    assert "rte sentence1: first sentence2: b" in answer.output


def test_an_option_shows_what_it_does(ask: Ask, tmp_path: Path) -> None:
    row = {"premise": "P", "hypothesis": "H", "label": 1, "idx": 0}
    rows = str(write_lines(tmp_path / "rows.jsonl", row))
    shown = [
        lines(ask("tasks", "preview", "glue_mnli", "--rows", rows, *option).output)[0]["inputs"]
        for option in ((), ("--option", "field_order=premise_first"))
    ]
    assert shown == ["mnli hypothesis: H premise: P", "mnli premise: P hypothesis: H"]


def test_score_judges_what_preview_printed(ask: Ask, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", *({**RTE, "label": label, "idx": label} for label in (0, 1, 1)))
    examples = tmp_path / "examples.jsonl"
    examples.write_text(ask("tasks", "preview", "glue_rte", "--rows", str(rows)).output)
    predictions = write_lines(tmp_path / "predictions.jsonl", "entailment", "not_entailment ", "not_entailment")
    answer = ask("tasks", "score", "glue_rte", "--examples", str(examples), "--predictions", str(predictions))
    assert (answer.code, json.loads(answer.output)) == (0, {"accuracy": pytest.approx(200 / 3)})


def test_a_score_that_is_not_a_number_is_said_so(ask: Ask, tmp_path: Path) -> None:
    examples = write_lines(tmp_path / "e.jsonl", *({"inputs": "stsb", "targets": text} for text in ("1.0", "2.0")))
    predictions = write_lines(tmp_path / "p.jsonl", "3.0", "3.0")
    answer = ask("tasks", "score", "glue_stsb", "--examples", str(examples), "--predictions", str(predictions))
    assert json.loads(answer.output) == {"pearson_corrcoef": "nan", "spearman_corrcoef": "nan"}


def test_score_and_preview_answer_bad_input(ask: Ask, tmp_path: Path) -> None:
    example = {"inputs": "rte", "targets": "entailment"}
    good = str(write_lines(tmp_path / "good.jsonl", example))
    said = str(write_lines(tmp_path / "said.jsonl", "entailment"))
    (tmp_path / "broken.jsonl").write_text('{"inputs": \n')
    cases = [
        (("score", "glue_rte", "--examples", good, "--predictions", str(tmp_path / "no")), "there is no such file"),
        (("score", "glue_rte", "--examples", str(tmp_path / "broken.jsonl"), "--predictions", said), "line 1 of"),
        (("score", "glue_rte", "--examples", said, "--predictions", said), "is no example"),
        (("score", "glue_rte", "--examples", good, "--predictions", good), "a prediction is a JSON string"),
        (
            ("score", "glue_rte", "--examples", good, "--predictions", str(write_lines(tmp_path / "two", "a", "b"))),
            "has 1 examples, but",
        ),
        (("score", "glue_ax", "--examples", good, "--predictions", said), "has no metric"),
        (("preview", "glue_rtee"), "nearest: 'glue_rte'"),
        (("preview", "glue_rte", "--rows", said), "row 0 of"),
        (("preview", "glue_rte", "--option", "order=up"), "no option 'order'"),
        (("preview", "glue_rte", "--file", "train"), "write NAME=VALUE"),
        (("preview", "python_docs_module", "--split", "dev"), "no split 'dev'"),
        (("preview", "glue_rte", "--file", "dev=a.tsv"), "no split 'dev' (--file)"),
        (("score", "squad", "--examples", good, "--predictions", said), "line 1 of"),
    ]
    for arguments, message in cases:
        answer = ask("tasks", *arguments)
        assert answer.code == 2, arguments
        assert answer.message.startswith("error: ")
        assert message in answer.message, arguments


def test_missing_files_are_answered_with_what_was_looked_for(ask: Ask, tmp_path: Path) -> None:
    answer = ask("tasks", "preview", "glue_cola", "--root", str(tmp_path))
    assert answer.code in {1, 2}
    for part in ("CoLA/train.tsv", str(tmp_path)):
        assert part in answer.message


def test_show_of_a_folder_without_the_tasks_files_is_answered(ask: Ask, tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        answer = ask("tasks", "show", "super_glue_cb", "--root", str(root))
        assert answer.code in {1, 2}
        assert str(root) in answer.message


def test_text_of_rows_is_never_read_as_markup(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "[red]s.csv").write_text("a,b\nx,[/b]\ny,[bold]z\n")
    (tmp_path / "t.yaml").write_text('name: t\nsource: {train: "*.csv"}\ninputs: "{a}"\ntargets: "{b}"\n')
    page = ask("tasks", "show", str(tmp_path / "t.yaml")).output
    for part in ("[/b]", "[bold]z", "[red]s.csv"):
        assert part in page


def test_a_file_whose_rows_are_all_unfit_says_which_columns_there_are(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,stars\n" + "long " * 200 + ",5\n")
    definition = 'name: t\nsource: {train: rows.csv}\ninputs: "{txt}"\ntargets: "{stars}"\n'
    (tmp_path / "t.yaml").write_text(definition)
    answer = ask("tasks", "preview", str(tmp_path / "t.yaml"))
    assert answer.code == 1
    assert "no field 'txt'" in answer.message
    assert "a row has the fields text, stars" in answer.message


def test_show_tells_sizes_labels_and_lengths(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    rows = ["entailment", "entailment", "not_entailment", "maybe"]
    table = "index\tsentence1\tsentence2\tlabel\n" + "".join(f"{at}\ta\tb\t{label}\n" for at, label in enumerate(rows))
    (tmp_path / "RTE/train.tsv").write_text(table)
    facts = json.loads(ask("tasks", "show", "glue_rte", "--root", str(tmp_path), "--json").output)
    split = facts["splits"]["train"]
    assert (split["rows"], split["examples"]) == (4, 3)
    assert split["left out"] == {"label is none of the classes": 1}
    assert facts["labels"] == {"entailment": 2, "not_entailment": 1}
    assert facts["declared size"] == 2490
    inputs, targets = facts["lengths"]
    assert (inputs["field"], inputs["limit"], inputs["cut"], inputs["longest"]) == ("inputs", 512, 0.0, 5)
    assert sum(part["examples"] for part in targets["histogram"]) == 3
    page = ask("tasks", "show", "glue_rte", "--root", str(tmp_path)).output
    for part in ("rte sentence1: a sentence2: b", "RTE/train.tsv", "66.7%", "limit of 512"):
        assert part in page


def test_show_reads_no_more_rows_than_it_was_told(ask: Ask) -> None:
    facts = json.loads(ask("tasks", "show", "python_docs_module", "--limit", "10", "--json").output)
    assert facts["splits"]["train"]["rows"] == 10
    assert not facts["splits"]["train"]["whole"]


PAPER_SHARES = {  # K to percent of C4, GLUE, CNN/DM and English to Romanian (the paper's formulas, section 3.5.2)
    2**16: (8.3, 35.8, 8.3, 8.3),
    2**19: (14.5, 26.3, 8.0, 14.5),
    2**21: (24.9, 11.3, 3.4, 7.3),
}


@pytest.mark.parametrize("maximum", PAPER_SHARES)
def test_mixture_show_gives_the_papers_shares_without_any_data(ask: Ask, maximum: int) -> None:
    answer = ask("mixture", "show", "paper/multitask", "--maximum", str(maximum), "--json")
    shares = {row["task"]: 100 * row["share of examples"] for row in json.loads(answer.output)}
    assert len(shares) == 23
    glue = sum(share for task, share in shares.items() if task.startswith("glue_"))
    found = (shares["c4_replace_spans"], glue, shares["cnn_dailymail"], shares["wmt_en_ro"])
    assert found == pytest.approx(PAPER_SHARES[maximum], abs=0.051)


def test_all_mix_with_released_rates_has_c4_at_its_written_rate(ask: Ask) -> None:
    given = ("mixture.tasks=[all_mix]", "mixture.rates=released", "mixture.maximum=null", "--json")
    rates = {row["task"]: row["rate"] for row in json.loads(ask("mixture", "show", "paper/multitask", *given).output)}
    assert rates["c4"] == 1_000_000
    assert (rates["glue_rte"], rates["glue_mnli"], rates["squad"]) == (1245, 392_702, 87_599)


def test_mixture_list_names_the_mixtures_and_their_parts(ask: Ask) -> None:
    rows = {row["mixture"]: row["parts"] for row in json.loads(ask("mixture", "list", "--json").output)}
    assert "squad" in rows["paper_multitask"].split(", ")
    assert "squad" not in rows["leave_one_out_squad"].split(", ")
