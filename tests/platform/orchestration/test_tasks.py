"""From a recipe's names to its tasks: mixtures are written out, judges join, mistakes are answered before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtura.platform.errors import ConfigError, DataError, UnknownNameError
from mixtura.platform.orchestration.tasks import load_recipe, refuse_unusable, task_of, tasks_of


def weights(*overrides: str) -> dict[str, float]:
    return {name: task.weight for name, task in load_recipe("quickstart", overrides).mixture.tasks.items()}


def test_a_recipe_of_tasks_stays_as_it_is() -> None:
    assert list(weights()) == [
        "python_docs_span_corruption",
        "python_docs_module",
        "python_docs_returns",
        "python_docs_arguments",
    ]


def test_a_mixture_is_written_out_and_a_task_named_twice_has_the_sum() -> None:
    found = weights("mixture.tasks={glue: {weight: 2}, glue_rte: {weight: 0.5}}", "mixture.rates=proportional")
    assert found["glue_cola"] == 2.0
    assert found["glue_rte"] == 2.5
    assert found["glue_mnli_matched"] == found["glue_ax"] == 0.0


def test_the_tasks_that_judge_another_join_with_its_options() -> None:
    found = load_recipe(
        "quickstart", ["mixture.tasks=[glue_mnli]", "mixture.tasks.glue_mnli.options.field_order=premise_first"]
    )
    assert {name: task.weight for name, task in found.mixture.tasks.items()} == {
        "glue_mnli": 1.0,
        "glue_mnli_matched": 0.0,
        "glue_mnli_mismatched": 0.0,
    }
    assert tasks_of(found)["glue_mnli_matched"].chosen == {"field_order": "premise_first"}


def test_writing_out_twice_changes_nothing() -> None:
    from mixtura.platform.orchestration.tasks import expanded

    once = load_recipe("quickstart", ["mixture.tasks=[glue_super_glue]"])
    assert expanded(once) == once


def test_a_task_that_is_never_trained_on_has_no_weight() -> None:
    assert weights("mixture.tasks=[glue_rte, glue_wnli]") == {"glue_rte": 1.0, "glue_wnli": 0.0}


@pytest.mark.parametrize(
    ("override", "kind", "answer"),
    [
        ("mixture.tasks=[glue_rtee]", UnknownNameError, "no task or mixture 'glue_rtee'"),
        ("mixture.tasks={glue: {size: 5}}", ConfigError, "mixture.tasks.glue.size: 'glue' is a mixture"),
        ("mixture.tasks={glue_rte: {options: {order: up}}}", UnknownNameError, "no option 'order' of task 'glue_rte'"),
        (
            "mixture.tasks={glue_mnli: {options: {field_order: up}}}",
            UnknownNameError,
            "no value 'up' of option 'field_order'",
        ),
        ("mixture.tasks={python_docs_module: {files: {train: a.txt}}}", ConfigError, "reads no files"),
    ],
)
def test_a_wrong_mixture_is_answered(override: str, kind: type[Exception], answer: str) -> None:
    with pytest.raises(kind, match=answer):
        load_recipe("quickstart", ["mixture.tasks=[glue_rte]", override] if "{" in override else [override])


REVIEWS = """
name: reviews
source: {train: train.csv}
inputs: "review: {txt}"
targets: "{label}"
"""


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    (tmp_path / "reviews.yaml").write_text(REVIEWS)
    (tmp_path / "train.csv").write_text("text,label\nFine.,good\nBroken.,bad\n")
    return tmp_path / "reviews.yaml"


def test_a_template_with_an_unknown_field_says_which_fields_there_are(reviews: Path) -> None:
    tree = load_recipe("quickstart", [f"mixture.tasks=[{reviews}]"])
    with pytest.raises(DataError, match=r"task 'reviews': none of the first 2 rows .*no field 'txt'.*text, label"):
        refuse_unusable(tree)
    reviews.write_text(REVIEWS.replace("txt", "text"))
    refuse_unusable(load_recipe("quickstart", [f"mixture.tasks=[{reviews}]"]))


def test_a_task_file_whose_data_is_missing_says_what_was_looked_for(reviews: Path) -> None:
    (reviews.parent / "train.csv").unlink()
    tree = load_recipe("quickstart", [f"mixture.tasks=[{reviews}]"])
    with pytest.raises(DataError, match=r"train\.csv"):
        refuse_unusable(tree)


def test_the_files_of_a_task_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tentailment\n")
    given = ["mixture.tasks=[glue_rte]", f"data.root={tmp_path}", "mixture.tasks.glue_rte.files.train=mine.tsv"]
    task = task_of(load_recipe("quickstart", given), "glue_rte")
    (shard,) = task.shards("train")
    assert [item.fields["inputs"] for item in task.examples(shard)] == [  # type: ignore[union-attr]
        "rte sentence1: It rains. sentence2: It is wet."
    ]


def test_a_task_file_with_the_name_of_a_registered_task_is_refused(reviews: Path) -> None:
    for name in ("glue_rte", "glue"):
        reviews.write_text(REVIEWS.replace("name: reviews", f"name: {name}"))
        with pytest.raises(ConfigError, match=f"the task file of '{name}' has the name of a registered"):
            load_recipe("quickstart", [f"mixture.tasks=[{reviews}]"])
