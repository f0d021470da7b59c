"""`mixtura stream` and what `mixtura mixture show` says of drawn examples: any step as a person can read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ask = Callable[..., Any]


@pytest.fixture
def given(tiny: list[str], new_workspace: Path) -> list[str]:
    return [*tiny, f"run.root={new_workspace}"]


def shown(ask: Ask, *arguments: str) -> Any:
    answer = ask("stream", "show", "quickstart", *arguments, "--json")
    assert answer.code == 0, answer
    return json.loads(answer.output)


def hashes(ask: Ask, window: str, *arguments: str) -> list[str]:
    return [row["fingerprint"] for row in shown(ask, *arguments, "--fingerprint", window)]


def test_a_step_is_shown_with_the_origin_of_every_segment_and_its_padding(ask: Ask, given: list[str]) -> None:
    rows = shown(ask, *given, "--step", "7")
    assert [row["row"] for row in rows] == list(range(12))
    for row in rows:
        segments = row["segments"]
        assert row["encoder_padding"] == 48 - sum(one["inputs_length"] for one in segments) >= 0
        assert row["decoder_padding"] == 24 - sum(one["targets_length"] for one in segments) >= 0
        for one in segments:
            assert one["source"].startswith("train-0000")
            assert one["rows"][0] <= one["rows"][1]
            assert one["epoch"] == 0
    text = [one for row in rows for one in row["segments"] if one["task"] == "python_docs_span_corruption"]
    assert text
    assert all("<extra_id_0>" in one["inputs"] and one["targets"].startswith("<extra_id_0>") for one in text)


def test_a_step_is_made_of_the_rows_of_its_blocks(ask: Ask, given: list[str]) -> None:
    drawn = {
        (one["task"], one["draw"]): one["inputs"]
        for block in range(6)
        for row in shown(ask, *given, "--block", str(block))
        for one in row["segments"]
    }
    for row in shown(ask, *given, "--step", "0"):
        for one in row["segments"]:
            assert drawn[one["task"], one["draw"]] == one["inputs"]


def test_people_read_lines(ask: Ask, given: list[str]) -> None:
    answer = ask("stream", "show", "quickstart", *given, "--step", "3", "--rows", "2")
    lines = answer.output.splitlines()
    assert sum(line.startswith("step 3, row ") for line in lines) == 2
    assert "padding: encoder " in answer.output
    assert "2 of 12 rows" in lines[-1]


def test_fingerprints_are_those_of_the_walked_steps_and_differ_for_another_seed_or_rate(
    ask: Ask, given: list[str]
) -> None:
    from_start = hashes(ask, "0:9", *given)
    assert len(set(from_start)) == 9
    assert hashes(ask, "6:9", *given) == from_start[6:]
    assert hashes(ask, "6:9", *given, "executor.workers=3", "training.steps=99") == from_start[6:]
    assert not set(hashes(ask, "0:9", *given, "run.seed=1")) & set(from_start)
    assert not set(hashes(ask, "6:9", *given, "mixture.tasks.python_docs_module.weight=9")) & set(from_start)


def test_a_block_however_far_is_shown(ask: Ask, given: list[str]) -> None:
    rows = shown(ask, *given, "--block", str(10**9))
    epochs = [one["epoch"] for row in rows for one in row["segments"]]
    assert min(epochs) > 10**5


def test_what_is_not_a_window_is_refused(ask: Ask, given: list[str]) -> None:
    answer = ask("stream", "show", "quickstart", *given, "--fingerprint", "9:3")
    assert answer.code == 2
    assert "write A:B with A below B" in answer.message


# ---- limits, caps and kinds of rows ----------------------------------------------------------------------------------


def table(ask: Ask, *arguments: str) -> dict[str, dict[str, Any]]:
    answer = ask("mixture", "show", "quickstart", *arguments, "--tokens", "--json")
    assert answer.code == 0, answer
    return {row["task"]: row for row in json.loads(answer.output)}


def test_requested_and_drawn_agree_and_a_capped_task_is_drawn_less(ask: Ask, given: list[str]) -> None:
    module = "python_docs_module"
    for row in table(ask, *given, "training.steps=4000").values():
        assert row["drawn"] == pytest.approx(row["share of examples"], abs=0.001)
        assert row["epochs"] == pytest.approx(row["draws"] / row["examples"])
    capped = table(ask, *given, "training.steps=4000", f"mixture.tasks.{module}.repeats=1")
    assert capped[module]["epochs"] == pytest.approx(1, abs=0.01)
    assert capped[module]["epochs"] <= 1
    assert capped[module]["drawn"] < capped[module]["share of examples"]
    assert sum(row["drawn"] for row in capped.values()) == pytest.approx(1)


def test_the_notes_say_where_a_capped_task_stops_and_how_full_rows_are(ask: Ask, given: list[str]) -> None:
    answer = ask("mixture", "show", "quickstart", *given, "--tokens", "mixture.tasks.python_docs_module.repeats=1")
    assert "not drawn any more: python_docs_module" in answer.output
    assert "encoder rows of 48 are " in answer.output


def test_a_task_held_to_its_first_examples_counts_those(ask: Ask, given: list[str]) -> None:
    rows = table(ask, *given, "mixture.tasks.python_docs_returns.first_examples=50", "mixture.sizes=counted")
    assert rows["python_docs_returns"]["examples"] == rows["python_docs_returns"]["size"] == 50
    text = "python_docs_span_corruption"
    rows = table(ask, *given, f"mixture.tasks.{text}.first_tokens=1000")
    whole = table(ask, *given)
    assert 1000 / 60 < rows[text]["examples"] < 1000 / 40 < whole[text]["examples"]


def test_unimax_is_even_within_its_repeats(ask: Ask, given: list[str]) -> None:
    rows = table(ask, *given, "mixture.rates=unimax", "mixture.budget=1000", "mixture.repeats=3")
    weights = {"python_docs_span_corruption": 0.3, "python_docs_module": 1.2}
    for name, weight in weights.items():
        assert rows[name]["rate"] == pytest.approx(250 * weight)
    answer = ask("mixture", "show", "quickstart", *given, "mixture.rates=unimax")
    assert answer.code == 2
    assert "mixture.budget" in answer.message


def test_a_chart_is_drawn(ask: Ask, given: list[str], tmp_path: Path) -> None:
    chart = tmp_path / "mixture.png"
    answer = ask("mixture", "show", "quickstart", *given, "--tokens", "--chart", str(chart))
    assert answer.code == 0
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["prefix_lm", "lm"])
def test_rows_for_one_stack_hold_inputs_and_targets_together(ask: Ask, given: list[str], kind: str) -> None:
    rows = shown(ask, *given, f"model.architecture={kind}", "--step", "1")
    for row in rows:
        used = sum(one["inputs_length"] + one["targets_length"] for one in row["segments"])
        assert row["decoder_padding"] == 72 - used >= 0
        assert "encoder_padding" not in row


def test_which_tokens_count_is_a_question_for_one_stack(ask: Ask, given: list[str]) -> None:
    answer = ask("stream", "show", "quickstart", *given, "data.loss_on=all")
    assert answer.code == 2
    assert "data.loss_on is for models of one stack" in answer.message


def test_a_measured_decoder_row_is_shorter_where_targets_are_short(ask: Ask, given: list[str]) -> None:
    no_text = "mixture.tasks.python_docs_span_corruption.weight=0"
    rows = shown(ask, *given, no_text, "data.targets_length=96", "data.decoder_row=measured", "--step", "1")
    length = {row["decoder_padding"] + sum(one["targets_length"] for one in row["segments"]) for row in rows}
    assert len(length) == 1
    assert max(length) < 96


def test_the_original_s_ways_are_options(ask: Ask, given: list[str]) -> None:
    exact = hashes(ask, "0:3", *given)
    for change in ("data.draws=sampled", "data.chunks=original", "data.packing=greedy"):
        assert not set(hashes(ask, "0:3", *given, change)) & set(exact)
    answer = ask("stream", "show", "quickstart", *given, "data.draws=sampled", "mixture.repeats=2")
    assert answer.code == 2
    assert "data.draws=exact" in answer.message


def test_a_run_that_would_outlast_its_stream_is_refused(ask: Ask, given: list[str]) -> None:
    answer = ask("train", "quickstart", *given, "executor.kind=inline", "mixture.repeats=1", "training.steps=100000")
    assert answer.code == 2
    assert "lets the stream last for about" in answer.message
    assert "raise mixture.repeats, or train fewer steps" in answer.message


# ---- phases ----------------------------------------------------------------------------------------------------------


def test_the_stream_of_a_phase_is_shown_before_any_was_trained(ask: Ask, given: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text("extends: quickstart\nphases: {first: {}, second: {mixture: {tasks: [python_docs_module]}}}\n")
    tasks = {
        phase: {
            one["task"]
            for row in json.loads(ask("stream", "show", str(recipe), *given, "--phase", phase, "--json").output)
            for one in row["segments"]
        }
        for phase in ("first", "second")
    }
    assert len(tasks["first"]) > 1
    assert tasks["second"] == {"python_docs_module"}
    answer = ask("stream", "show", str(recipe), *given)
    assert answer.code == 2
    assert "choose one with --phase" in answer.message
