"""docs/faithfulness.md names every option that there is, and no key that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mixtura.platform.config import Config, MixtureTask, leaves
from mixtura.platform.corpus.settings import CorpusSettings
from mixtura.platform.recipe_files import load
from mixtura.tasks import get_task, task_names


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "docs/faithfulness.md").read_text()


@pytest.mark.parametrize("name", [name for name in task_names() if get_task(name).options])
def test_every_option_of_a_task_is_listed_with_its_values_the_default_first(name: str, text: str) -> None:
    (line,) = [line for line in text.split("\n") if f"`{name}`" in line and "**" in line]
    for option, declared in get_task(name).options.items():
        values = [f"**`{declared.default}`**", *(f"`{value}`" for value in list(declared.values)[1:])]
        assert f"`{option}` = {', '.join(values)}" in line


def test_every_key_is_one_of_the_config_tree(text: str) -> None:
    paths = {path for path, _, _ in leaves(load("quickstart"))}
    paths |= {f"mixture.tasks.{key}" for key in MixtureTask.model_fields}
    sections = "|".join(Config.model_fields)
    named = set(re.findall(rf"`((?:{sections})\.[a-z_0-9.]+)`", text))
    named = {re.sub(r"^mixture\.tasks\.c4\.", "mixture.tasks.", name) for name in named}
    assert len(named) > 8
    assert named <= paths


def test_every_setting_of_a_corpus_is_one(text: str, repository: Path) -> None:
    paths = {path for path, _, _ in leaves(CorpusSettings())}
    sections = "|".join(CorpusSettings.model_fields.keys() - Config.model_fields.keys())
    named = set(re.findall(rf"`((?:{sections})\.[a-z_0-9.]+)`", text))
    assert len(named) > 8
    assert named <= paths
    how_to = (repository / "docs/how-to/corpus.md").read_text()
    assert set(re.findall(rf"`((?:{sections})\.[a-z_]+)`", how_to)) <= paths
