"""Tasks are found by name, in this folder and in installed packages; every declaration is complete."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import mixtura.tasks
from mixtura.platform.data.objectives import OBJECTIVES
from mixtura.platform.errors import ConfigError, DataError, UnknownNameError
from mixtura.tasks import get_task, named_mixtures, task_names

REGISTERED = """
    glue_cola glue_sst2 glue_mrpc glue_stsb glue_qqp glue_mnli glue_mnli_matched glue_mnli_mismatched glue_qnli glue_rte
    glue_wnli glue_wnli_pair glue_ax
    super_glue_boolq super_glue_cb super_glue_copa super_glue_multirc super_glue_record super_glue_rte super_glue_wic
    super_glue_wsc super_glue_wsc_marked super_glue_axb super_glue_axg dpr
    squad squad_context_free squad_span trivia_qa cnn_dailymail xsum wmt_en_de wmt_en_fr wmt_en_ro
    c4 c4_prefix_lm c4_lm c4_deshuffling c4_bert_style c4_mass_style c4_replace_spans c4_drop_tokens
    python_docs_span_corruption python_docs_module python_docs_returns python_docs_arguments python_docs_summary
    python_docs_name
"""
WITHOUT_DECLARED_SIZE = "python_docs"


@pytest.fixture
def fresh_registry() -> object:
    """The registry is read again in this test, and after it."""
    mixtura.tasks._registered.cache_clear()
    yield
    mixtura.tasks._registered.cache_clear()


def test_all_tasks_of_the_paper_are_registered() -> None:
    assert set(REGISTERED.split()) <= set(task_names())
    assert list(task_names()) == sorted(task_names())
    assert all(get_task(name).name == name for name in task_names())


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="no task 'python_docs_modul'; nearest: 'python_docs_module'"):
        get_task("python_docs_modul")


@pytest.mark.parametrize("name", task_names())
def test_every_declaration_is_complete(name: str) -> None:
    task = get_task(name)
    assert task.description.endswith(".")
    assert task.version
    assert task.trained == ("train" in task.splits)
    assert not task.metrics or task.kind == "supervised"
    if task.trained and not name.startswith(WITHOUT_DECLARED_SIZE):
        assert task.rate_size
    for judge in task.evaluated_by:
        assert get_task(judge).metrics
        assert not get_task(judge).trained
    if task.kind == "unsupervised" and task.objective is not None:
        assert task.objective[0] in OBJECTIVES
    for option in task.options.values():
        assert option.description
        assert not option.values[option.default]


@pytest.mark.parametrize("name", sorted(named_mixtures()))
def test_every_part_of_a_mixture_is_registered(name: str) -> None:
    assert set(named_mixtures()[name].parts) <= {*task_names(), *named_mixtures()}


MODULE = """
from mixtura.platform.data.definition import task_of
from mixtura.platform.evaluation.metrics import METRICS

TASKS = (task_of({"name": %r, "inputs": "{a}", "targets": "{b}"}, METRICS),)
"""


def test_a_file_dropped_into_the_folder_of_tasks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_registry: object
) -> None:
    (tmp_path / "dropped_in.py").write_text(MODULE % "dropped")
    monkeypatch.setattr(mixtura.tasks, "__path__", [*mixtura.tasks.__path__, str(tmp_path)])
    try:
        assert get_task("dropped").description
    finally:
        sys.modules.pop("mixtura.tasks.dropped_in", None)


def test_a_task_of_an_installed_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_registry: object
) -> None:
    (tmp_path / "their_tasks.py").write_text(MODULE % "theirs")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("theirs", "their_tasks", "mixtura.tasks")
    monkeypatch.setattr(mixtura.tasks, "entry_points", lambda group: [point] if group == point.group else [])
    assert get_task("theirs").description


def test_two_tasks_of_one_name_are_refused_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_registry: object
) -> None:
    (tmp_path / "twice.py").write_text(MODULE % "glue_rte")
    monkeypatch.setattr(mixtura.tasks, "__path__", [*mixtura.tasks.__path__, str(tmp_path)])
    try:
        with pytest.raises(ConfigError, match=r"'glue_rte' is declared in mixtura\.tasks\.glue and in .*twice"):
            task_names()
    finally:
        sys.modules.pop("mixtura.tasks.twice", None)


def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_registry: object
) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_at_all")
    monkeypatch.setattr(mixtura.tasks, "__path__", [*mixtura.tasks.__path__, str(tmp_path)])
    with pytest.raises(DataError, match=r"broken\.py in the folder of tasks .* ModuleNotFoundError"):
        task_names()
