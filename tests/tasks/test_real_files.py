"""Every public data file that belongs to a task loads through it; the counts are those of the files' description."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mixtura.platform.data.task import Example, Task
from mixtura.tasks import get_task

# What is found below the folder: task, split, examples, and rows rejected under a reason.
FOUND = [
    ("glue_cola", "train", 8_551, {}),
    ("glue_cola", "validation", 1_043, {}),
    ("glue_sst2", "train", 67_349, {}),
    ("glue_sst2", "validation", 872, {}),
    ("glue_mrpc", "train", 3_668, {}),
    ("glue_mrpc", "validation", 408, {}),
    ("glue_mrpc", "test", 1_725, {}),
    ("glue_stsb", "train", 5_749, {}),
    ("glue_stsb", "validation", 1_500, {}),
    ("glue_qqp", "train", 8_999, {}),
    ("glue_qqp", "validation", 1_000, {}),
    ("glue_mnli", "train", 8_999, {}),
    ("glue_mnli_matched", "validation", 9_815, {}),
    ("glue_mnli_mismatched", "validation", 1_000, {}),
    ("glue_qnli", "train", 8_999, {}),
    ("glue_qnli", "validation", 5_463, {}),
    ("glue_rte", "train", 2_490, {}),
    ("glue_rte", "validation", 277, {}),
    ("glue_wnli", "validation", 71, {}),
    ("glue_wnli_pair", "train", 635, {}),
    ("glue_wnli_pair", "validation", 71, {}),
    ("super_glue_boolq", "train", 32, {}),
    ("super_glue_boolq", "validation", 3_270, {}),
    ("super_glue_multirc", "train", 27_243, {}),
    ("super_glue_multirc", "validation", 4_848, {}),
    ("super_glue_record", "train", 44, {}),
    ("super_glue_record", "validation", 46, {}),
    ("super_glue_rte", "train", 2_490, {}),
    ("super_glue_rte", "validation", 277, {}),
    ("super_glue_wsc", "train", 259, {"phrase is not what the pronoun means": 295}),
    ("super_glue_wsc", "validation", 104, {}),
    ("super_glue_wsc_marked", "train", 554, {}),
    ("super_glue_wsc_marked", "validation", 104, {}),
    ("super_glue_axb", "test", 1_104, {}),
    ("super_glue_axg", "test", 356, {}),
    ("dpr", "train", 1_322, {}),
    ("dpr", "test", 564, {}),
]
# Files in other layouts, named for a split.
NAMED = [
    ("glue_mrpc", "glue/MRPC/msr_paraphrase_train.txt", 4_076, {}),
    ("glue_qqp", "glue/QQP/subset.tsv", 23_496, {"5 fields, the table has 6": 1}),
    ("glue_qqp", "glue/QQP/original_columns_train_32.tsv", 32, {}),
    ("glue_mnli", "glue/MNLI/original_columns_train_48.tsv", 48, {}),
    ("glue_mnli", "glue/MNLI/original_columns_dev_matched_48.tsv", 48, {}),
    ("glue_mnli", "glue/MNLI/subset_dev.json.gz", 1_000, {}),
    ("glue_qnli", "glue/QNLI/subset_dev.json.gz", 1_000, {}),
]


def counted(task: Task, split: str) -> tuple[int, dict[str, int], set[str]]:
    """Examples, rejected rows by reason, and the targets."""
    examples, rejected, targets = 0, Counter[str](), set()
    for shard in task.source.shards(split):
        for item in task.examples(replace(shard, split=split)):
            if isinstance(item, Example):
                examples += 1
                targets.add(item.fields["targets"])
            else:
                rejected[item.reason] += 1
    return examples, dict(rejected), targets


@pytest.mark.parametrize(("name", "split", "examples", "rejected"), FOUND, ids=[f"{row[0]}-{row[1]}" for row in FOUND])
def test_a_split_has_as_many_examples_as_its_file(
    name: str, split: str, examples: int, rejected: dict[str, int], shared: Path
) -> None:
    found = counted(get_task(name).bound(str(shared / "data"), {}), split)
    assert found[:2] == (examples, rejected)
    assert "<unk>" not in found[2]


@pytest.mark.parametrize(("name", "file", "examples", "rejected"), NAMED, ids=[row[1] for row in NAMED])
def test_every_layout_of_a_file_is_read(
    name: str, file: str, examples: int, rejected: dict[str, int], shared: Path
) -> None:
    found = counted(get_task(name).bound(str(shared / "data"), {"train": [file]}), "train")
    assert found[:2] == (examples, rejected)
    assert "<unk>" not in found[2]


def test_the_four_layouts_of_mnli_agree_on_which_text_is_the_premise(shared: Path) -> None:
    folder = shared / "data/glue/MNLI"
    layouts = {
        "dev_matched.jsonl": (
            "The new rights are nice enough",
            "Everyone really likes the newest benefits ",
            "neutral",
        ),
        "dev_mismatched_1000.tsv": (
            "You ca n't take it with you -- neither can I , unfortunately .",
            "You are not able to bring it with you .",
            "entailment",
        ),
        "subset_dev.json.gz": ("Salt kept the town fed.", "Salt kept the town thriving.", "entailment"),
        "original_columns_train_48.tsv": (
            "Price caps may sound more attractive with every passing rate case.",
            "Rate cases make price caps sound more attractive.",
            "entailment",
        ),
    }
    for file, (premise, hypothesis, label) in layouts.items():
        task = get_task("glue_mnli").bound(None, {"train": [str(folder / file)]})
        first = next(task.examples(task.shards("train")[0]))
        assert isinstance(first, Example)
        assert first.fields == {"inputs": f"mnli hypothesis: {hypothesis} premise: {premise}", "targets": label}


def test_premise_and_hypothesis_of_both_forms_of_rte_are_the_same_but_for_a_few_spellings(shared: Path) -> None:
    def pairs(name: str, fields: tuple[str, str], step: int) -> list[tuple[str, ...]]:
        task = get_task(name).bound(str(shared / "data"), {})
        items = (item for shard in task.shards("validation") for item in task.examples(shard))
        made = [item.fields for item in items if isinstance(item, Example)]
        cut = [row["inputs"].removeprefix(f"rte {fields[0]}: ").split(f" {fields[1]}: ") for row in made]
        return [(*texts[::step], row["targets"]) for texts, row in zip(cut, made, strict=True)]

    glue = pairs("glue_rte", ("sentence1", "sentence2"), 1)
    super_glue = pairs("super_glue_rte", ("hypothesis", "premise"), -1)
    assert len(set(glue) & set(super_glue)) == 271


def test_every_real_wnli_pair_has_a_star_and_all_but_one_a_phrase_of_the_second_sentence(shared: Path) -> None:
    task = get_task("glue_wnli").bound(str(shared / "data"), {})
    items = [item for shard in task.shards("validation") for item in task.examples(shard)]
    made = [item.fields for item in items if isinstance(item, Example)]
    assert all(row["inputs"].count("*") == 2 for row in made)
    assert all(row["targets"] in row["hypothesis"] for row in made)
    assert [row["premise"][:17] for row in made if not row["targets"]] == ["They broadcast an"]
