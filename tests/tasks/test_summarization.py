from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.data.task import Example, RejectedRow
from mixtura.tasks.summarization import TASKS, FirstSentences

CNN_DAILYMAIL, XSUM = TASKS


def test_both_sides_are_left_as_they_are() -> None:
    row = {"article": "  two  spaces\n", "highlights": " h .\nNEW: i .", "id": "0"}
    (example,) = CNN_DAILYMAIL.transform([row], "test")
    assert isinstance(example, Example)
    assert example.fields == {"inputs": "summarize:   two  spaces\n", "targets": " h .\nNEW: i ."}


def test_xsum_has_the_prefix_of_the_other_and_its_own_columns() -> None:
    example, rejected = XSUM.transform(
        [{"document": "It rains.", "summary": "Rain.", "id": "0"}, {"document": "x"}], "test"
    )
    assert isinstance(example, Example)
    assert example.fields == {"inputs": "summarize: It rains.", "targets": "Rain."}
    assert isinstance(rejected, RejectedRow)
    assert rejected.reason == "no field 'summary'"


def test_rouge_2_comes_first_and_both_ways_to_report_it_have_the_same_names() -> None:
    for task in TASKS:
        names = [metric.name for metric in task.metrics]
        assert names == ["rouge2", "rouge1", "rougeLsum"]
        mean = task.with_options({"rouge": "mean"})
        assert [metric.name for metric in mean.metrics] == names
        assert mean.metrics != task.metrics


def test_the_median_of_the_bootstrap_is_the_same_every_time_and_not_the_mean() -> None:
    predictions = ["a cat", "", "a fox", "one dog ran", "the owl"]
    targets = ["a cat", "a dog", "the fox", "one dog ran off", "an owl sat"]
    first = [metric(predictions, targets) for metric in CNN_DAILYMAIL.metrics]
    assert first == [metric(predictions, targets) for metric in CNN_DAILYMAIL.metrics]
    mean = [metric(predictions, targets) for metric in CNN_DAILYMAIL.with_options({"rouge": "mean"}).metrics]
    assert mean == pytest.approx([36.0, 55.143, 55.143], abs=0.001)
    assert first == pytest.approx(mean, abs=10)


def test_leading_sentences_are_a_rule_to_beat() -> None:
    example = {"inputs": "summarize: It rains. It pours? No . The end."}
    assert FirstSentences(3)(example) == "It rains.\nIt pours?\nNo ."
    assert FirstSentences(3)({"inputs": "summarize: "}) == ""


def test_files_give_as_many_examples_as_they_have_rows(shared: Path) -> None:
    for task, split, count in ((CNN_DAILYMAIL, "test", 200), (XSUM, "validation", 10)):
        bound = task.bound(str(shared / "data"), {})
        assert bound.splits == (split,)
        items = [item for shard in bound.shards(split) for item in bound.examples(shard)]
        assert len(items) == count
        assert all(isinstance(item, Example) for item in items)


def test_aligned_articles_and_summaries_are_read(tmp_path: Path) -> None:
    (tmp_path / "cnn_dailymail").mkdir()
    (tmp_path / "cnn_dailymail/val.source").write_text("An article .\nAnother .\n")
    (tmp_path / "cnn_dailymail/val.target").write_text("One .\nTwo .\n")
    bound = CNN_DAILYMAIL.bound(str(tmp_path), {})
    (shard,) = bound.shards("validation")
    assert [item.fields["targets"] for item in bound.examples(shard) if isinstance(item, Example)] == ["One .", "Two ."]
