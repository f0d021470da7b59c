"""Named mixtures: what they hold, their published shares, and the rates of the original's registered ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mixtura.platform.data.mixture import Mixture, proportions, task_rates
from mixtura.platform.errors import ConfigError, UnknownNameError
from mixtura.tasks import get_task, named_mixtures
from mixtura.tasks.mixtures import (
    EVALUATION,
    GLUE,
    HARD_CODED,
    MIXTURES,
    MULTITASK,
    SHARED_DATA,
    SUPER_GLUE,
    SUPERVISED,
    expand,
    written_rates,
)

BY_NAME = {mixture.name: mixture for mixture in MIXTURES}

# The published numbers of training examples, as rates use them.
SIZES = {
    "glue_cola": 8_551,
    "glue_sst2": 67_349,
    "glue_mrpc": 3_668,
    "glue_stsb": 5_749,
    "glue_qqp": 363_849,
    "glue_mnli": 392_702,
    "glue_qnli": 104_743,
    "glue_rte": 2_490,
    "super_glue_boolq": 9_427,
    "super_glue_cb": 250,
    "super_glue_copa": 400,
    "super_glue_multirc": 27_243,
    "super_glue_record": 138_854,
    "super_glue_rte": 2_490,
    "super_glue_wic": 5_428,
    "super_glue_wsc": 259,
    "dpr": 1_322,
    "cnn_dailymail": 287_113,
    "squad": 87_599,
    "wmt_en_de": 4_592_289,
    "wmt_en_fr": 40_853_298,
    "wmt_en_ro": 610_320,
    "c4": 364_868_892,
    **dict.fromkeys(EVALUATION, 0),
}

GROUPS = {
    "C4": ("c4",),
    "GLUE": GLUE,
    "SuperGLUE+DPR": (*SUPER_GLUE, "dpr"),
    "CNN/DM": ("cnn_dailymail",),
    "SQuAD": ("squad",),
    "EnDe": ("wmt_en_de",),
    "EnFr": ("wmt_en_fr",),
    "EnRo": ("wmt_en_ro",),
}

# K, T and the shares in percent of the groups above, as they follow from the paper's formulas (section 3.5.2).
SHARES = [
    (2**16, 1, (8.3, 35.8, 14.1, 8.3, 8.3, 8.3, 8.3, 8.3)),
    (2**17, 1, (9.5, 33.0, 12.9, 9.5, 6.4, 9.5, 9.5, 9.5)),
    (2**18, 1, (11.4, 31.1, 8.0, 11.4, 3.8, 11.4, 11.4, 11.4)),
    (2**19, 1, (14.5, 26.3, 5.1, 8.0, 2.4, 14.5, 14.5, 14.5)),
    (2**20, 1, (19.9, 18.0, 3.5, 5.5, 1.7, 19.9, 19.9, 11.6)),
    (2**21, 1, (24.9, 11.3, 2.2, 3.4, 1.0, 24.9, 24.9, 7.3)),
    (2**21, 2, (16.3, 23.4, 9.4, 6.0, 3.3, 16.3, 16.3, 8.8)),
    (2**21, 4, (10.2, 31.0, 20.1, 6.2, 4.6, 10.2, 10.2, 7.5)),
    (2**21, 8, (7.1, 33.8, 28.7, 5.5, 4.8, 7.1, 7.1, 6.1)),
]

# The original's tasks by our names; forms that differ only in being for evaluation are missing (see `EVALUATED`).
ORIGINAL_TASKS = {
    **{f"{name}_v002": name for name in GLUE},
    **{f"{name}_v102": name for name in SUPER_GLUE if name != "super_glue_wsc"},
    "super_glue_wsc_v102_simple_train": "super_glue_wsc",
    "dpr_v001_simple": "dpr",
    "cnn_dailymail_v002": "cnn_dailymail",
    "squad_v010_allanswers": "squad",
    "wmt_t2t_ende_v003": "wmt_en_de",
    "wmt15_enfr_v003": "wmt_en_fr",
    "wmt16_enro_v003": "wmt_en_ro",
    "c4_v020_unsupervised": "c4",
}
EVALUATED = {
    "glue_mnli_matched_v002": "glue_mnli_matched",
    "glue_mnli_mismatched_v002": "glue_mnli_mismatched",
    "glue_ax_v002": "glue_ax",
    "super_glue_axb_v102": "super_glue_axb",
    "super_glue_axg_v102": "super_glue_axg",
    "super_glue_wsc_v102_simple_eval": "super_glue_wsc",
}
ORIGINAL_MIXTURES = {
    "glue_v002_proportional": ("glue", "released"),
    "all_equal": ("all_equal", "equal"),
    "all_mix": ("all_mix", "released"),
    "wsc_dpr_simple_proportional": ("wsc_dpr", "released"),
    "large_supervised_proportional": ("large_supervised", "released"),
    "glue_mnli_and_dev_v002": ("glue_mnli_and_dev", "equal"),
    "leave_one_out_glue_v002_proportional": ("leave_one_out_glue", "released"),
    "leave_one_out_wmt16_enro_v003": ("leave_one_out_wmt_en_ro", "released"),
}


def rates_of(name: str, kind: str, sizes: dict[str, int] = SIZES, **settings: float | None) -> dict[str, float]:
    weights = expand({name: 1.0}, BY_NAME, SIZES)
    own = {task: sizes[task] for task in weights}
    hard_coded = {task: float(size) for task, size in own.items() if task in HARD_CODED}
    fixed = {**hard_coded, **written_rates([name], BY_NAME)}
    return task_rates(kind, own, weights=weights, shared=SHARED_DATA, fixed=fixed, **settings)


def group_shares(rates: dict[str, float]) -> list[float]:
    shares = proportions(rates)
    return [100 * math.fsum(shares[task] for task in tasks) for tasks in GROUPS.values()]


def test_the_paper_trains_22_supervised_tasks_and_c4() -> None:
    supervised = expand({"paper_supervised": 1.0}, BY_NAME, SIZES)
    multitask = expand({"paper_multitask": 1.0}, BY_NAME, SIZES)
    assert len(supervised) == 22
    assert multitask == {**supervised, "c4": 1.0}
    assert set(multitask.values()) == {1.0}
    assert len(GLUE) == len(SUPER_GLUE) == 8
    assert not {"glue_wnli", "glue_ax"} & set(multitask)


@pytest.mark.parametrize("name", SIZES)
def test_every_task_of_a_mixture_is_registered_with_its_published_size(name: str) -> None:
    task = get_task(name)
    assert (task.rate_size or 0) == SIZES[name]
    assert task.trained == (name not in EVALUATION)


def test_the_registry_has_every_mixture() -> None:
    assert {name: named_mixtures()[name] for name in BY_NAME} == BY_NAME


@pytest.mark.parametrize(("maximum", "temperature", "expected"), SHARES)
def test_paper_rates_give_the_published_shares(maximum: int, temperature: float, expected: tuple[float, ...]) -> None:
    rates = rates_of("paper_multitask", "paper", maximum=maximum, temperature=temperature)
    assert group_shares(rates) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("c4", "expected"),
    [(710_000, 14.7), (2_620_000, 38.9), (8_660_000, 67.8), (33_500_000, 89.1), (133_000_000, 97.0)],
    ids=["small", "base", "large", "3B", "11B"],
)
def test_c4_counts_for_more_in_the_larger_models(c4: int, expected: float) -> None:
    sizes = {**SIZES, "c4": c4, "wmt_en_de": 1_000_000, "wmt_en_fr": 1_000_000}
    rates = rates_of("paper_multitask", "paper", sizes, maximum=None)
    assert 100 * proportions(rates)["c4"] == pytest.approx(expected, abs=0.05)


def test_released_mixtures_have_the_rates_of_the_original(shared: Path) -> None:
    """The original gives tasks for evaluation only a rate of 1 in its equal mixtures, although they have no training
    split or are validation sets; ours never draws them, so what is trained is compared."""
    rows = [json.loads(line) for line in (shared / "golden/mixing.jsonl").read_text().splitlines()]
    registered = {row["name"]: row for row in rows if row["kind"] == "registered"}
    assert set(registered) == set(ORIGINAL_MIXTURES)
    for original, (name, kind) in ORIGINAL_MIXTURES.items():
        row = registered[original]
        counted = {ours: row["examples"][task] for task, ours in ORIGINAL_TASKS.items() if task in row["examples"]}
        rates = rates_of(name, kind, {**SIZES, **counted})
        expected = {ours: row["result"]["rates"].get(task, 0.0) for task, ours in ORIGINAL_TASKS.items()}
        assert {task: rates.get(task, 0.0) for task in expected} == pytest.approx(expected, rel=1e-9), original
        assert set(row["result"]["rates"]) <= {*ORIGINAL_TASKS, *EVALUATED}
        assert not any(rates.get(task, 0.0) for task in EVALUATION)
        if kind == "released":
            assert not any(row["result"]["rates"].get(task, 0.0) for task in EVALUATED)
            shares = {ours: row["result"]["proportions"].get(task, 0.0) for task, ours in ORIGINAL_TASKS.items()}
            ours = proportions(rates)
            assert {task: ours.get(task, 0.0) for task in shares} == pytest.approx(shares, rel=1e-9), original


def test_a_cap_and_a_temperature_leave_the_written_rates_alone() -> None:
    plain = rates_of("paper_multitask", "released")
    capped = rates_of("paper_multitask", "released", maximum=2**18, temperature=2)
    assert {task: capped[task] for task in (*GLUE, *SUPER_GLUE, "dpr")} == {
        task: plain[task] for task in (*GLUE, *SUPER_GLUE, "dpr")
    }
    assert capped["glue_mnli"] == 392_702
    assert capped["c4"] == capped["cnn_dailymail"] == 512.0


def test_written_rates_are_found_in_mixtures_of_mixtures() -> None:
    mine = {**BY_NAME, "mine": Mixture("mine", {"all_mix": 0.5}, "Ours.")}
    assert written_rates(["mine"], mine) == {"c4": 1_000_000.0}
    assert written_rates(["glue"], mine) == {}


@pytest.mark.parametrize("task", MULTITASK)
def test_every_task_can_be_left_out(task: str) -> None:
    rest = expand({f"leave_one_out_{task}": 1.0}, BY_NAME, SIZES)
    assert set(rest) == set(MULTITASK) - {task}


def test_benchmarks_are_left_out_whole() -> None:
    assert set(BY_NAME["leave_one_out_glue"].parts) == set(MULTITASK) - set(GLUE)
    assert set(BY_NAME["leave_one_out_super_glue"].parts) == set(MULTITASK) - set(SUPER_GLUE) - {"dpr"}


def test_rte_counts_in_full_where_its_copy_is_left_out() -> None:
    for kind in ("paper", "released"):
        assert rates_of("leave_one_out_glue", kind)["super_glue_rte"] == 2_490
        assert rates_of("leave_one_out_super_glue", kind)["glue_rte"] == 2_490
        both = rates_of("paper_multitask", kind)
        assert both["glue_rte"] == both["super_glue_rte"] == 1_245


def test_tasks_for_evaluation_belong_to_their_benchmark_and_are_never_drawn() -> None:
    glue = expand({"glue": 1.0}, BY_NAME, SIZES)
    assert {task for task, weight in glue.items() if weight == 0} == {
        "glue_mnli_matched",
        "glue_mnli_mismatched",
        "glue_ax",
    }
    both = expand({"glue_super_glue": 1.0}, BY_NAME, SIZES)
    assert {task for task, weight in both.items() if weight > 0} == {*GLUE, *SUPER_GLUE, "dpr"}
    assert {task for task, weight in both.items() if weight == 0} == set(EVALUATION)


def test_names_of_mixtures_are_their_own_and_every_one_says_what_it_is() -> None:
    assert len(BY_NAME) == len(MIXTURES)
    assert not set(BY_NAME) & set(SIZES)
    for mixture in MIXTURES:
        assert mixture.description.endswith(".")
        assert expand({mixture.name: 1.0}, BY_NAME, SIZES)


def test_a_weight_beside_a_mixture_adds_to_what_the_mixture_gives() -> None:
    weights = expand({"paper_multitask": 2.0, "c4": 0.0, "squad": 0.5}, BY_NAME, SIZES)
    assert (weights["c4"], weights["squad"], weights["glue_rte"]) == (2.0, 2.5, 2.0)


def test_unknown_names_are_answered_with_the_nearest_and_with_the_mixture_that_has_them() -> None:
    with pytest.raises(UnknownNameError, match="no task or mixture 'super_gleu'; nearest: 'super_glue'"):
        expand({"super_gleu": 1.0}, BY_NAME, SIZES)
    mine = {"mine": Mixture("mine", {"squat": 1.0}, "Ours.")}
    with pytest.raises(UnknownNameError, match="no task or mixture 'squat' in mixture 'mine'; nearest: 'squad'"):
        expand({"mine": 1.0}, mine, SIZES)


def test_mixtures_in_a_circle_are_refused() -> None:
    ring = {"a": Mixture("a", {"b": 1.0}, "One."), "b": Mixture("b", {"a": 1.0}, "Two.")}
    with pytest.raises(ConfigError, match="a -> b -> a"):
        expand({"a": 1.0}, ring, SIZES)


def test_supervised_is_multitask_without_c4() -> None:
    assert set(BY_NAME["leave_one_out_c4"].parts) == set(SUPERVISED)
