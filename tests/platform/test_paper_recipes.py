"""The recipes of the paper's runs against its tables: numbers here are the specification's, none is computed."""

from __future__ import annotations

from typing import Any

import pytest

from mixtura.platform.config import Config
from mixtura.platform.data.objectives import make_objective
from mixtura.platform.orchestration.mixture import declared_table, objective_of
from mixtura.platform.orchestration.tasks import expanded
from mixtura.platform.recipe_files import Phase, load_phases, recipe_names

PAPER = [name for name in recipe_names() if name.startswith("paper/")]

UNITS = {"glue": 84, "super_glue": 62, "squad": 97, "cnn_dailymail": 512}
UNITS |= {"wmt_en_de": 512, "wmt_en_fr": 512, "wmt_en_ro": 512}
"""What the study fine-tunes on, and tokens of targets (specification, section 4.3)."""

# ---- what each recipe is to say: steps, rows, objective's task, tokens of targets ------------------------------------

BASE = (524_288, 128, "c4_replace_spans", 192)

PRE_TRAINED: dict[str, tuple[int, int, str, int]] = {
    "baseline": BASE,
    # table 2
    "architectures/shared_denoising": BASE,
    "architectures/half_depth_denoising": BASE,
    "architectures/lm_denoising": BASE,
    "architectures/prefix_lm_denoising": BASE,
    "architectures/encoder_decoder_lm": (524_288, 128, "c4_prefix_lm", 512),
    "architectures/shared_lm": (524_288, 128, "c4_prefix_lm", 512),
    "architectures/half_depth_lm": (524_288, 128, "c4_prefix_lm", 512),
    "architectures/lm_lm": (524_288, 128, "c4_lm", 512),
    "architectures/prefix_lm_lm": (524_288, 128, "c4_prefix_lm", 512),
    # tables 4 and 5
    "objectives/prefix_lm": (524_288, 128, "c4_prefix_lm", 512),
    "objectives/bert_style": (524_288, 128, "c4_bert_style", 512),
    "objectives/deshuffling": (524_288, 128, "c4_deshuffling", 512),
    "objectives/mass_style": (524_288, 128, "c4_mass_style", 512),
    "objectives/replace_spans": BASE,
    "objectives/drop_tokens": (524_288, 128, "c4_drop_tokens", 104),
    # tables 6 and 7
    "corruption_rates/10": (524_288, 128, "c4_replace_spans", 103),
    "corruption_rates/15": BASE,
    "corruption_rates/25": (524_288, 128, "c4_replace_spans", 256),
    "corruption_rates/50": (524_288, 128, "c4_replace_spans", 512),
    "span_lengths/2": (524_288, 128, "c4", 126),
    "span_lengths/3": (524_288, 128, "c4", 114),
    "span_lengths/5": (524_288, 128, "c4", 105),
    "span_lengths/10": (524_288, 128, "c4", 99),
    # tables 8 and 9
    "corpora/unfiltered": BASE,
    "corpora/realnews_like": BASE,
    "corpora/webtext_like": BASE,
    "corpora/wikipedia": BASE,
    "corpora/wikipedia_books": BASE,
    "repeated_data/2_29": BASE,
    "repeated_data/2_27": BASE,
    "repeated_data/2_25": BASE,
    "repeated_data/2_23": BASE,
    # sizes; T5 1.1 has span corruption
    **{f"sizes/{size}": BASE for size in ("small", "base", "large", "3B", "11B", "2x", "4x")},
    **{f"sizes/v1_1-{size}": (524_288, 128, "c4", 114) for size in ("small", "base", "large", "xl", "xxl")},
    # table 13
    "scaling/4x_steps": (2_097_152, 128, "c4_replace_spans", 192),
    "scaling/4x_batch": (524_288, 512, "c4_replace_spans", 192),
    "scaling/2x_size_2x_steps": (1_048_576, 128, "c4_replace_spans", 192),
    "scaling/4x_size": BASE,
    **{f"scaling/ensemble_{number}": BASE for number in (1, 2, 3, 4)},
}

MIXED: dict[str, tuple[int, int, str, int | None, float]] = {
    # steps, rows, rates, K, temperature
    "multitask": (786_432, 128, "paper", 524_288, 1),
    "mixing/equal": (786_432, 128, "equal", 524_288, 1),
    "mixing/k_2_16": (786_432, 128, "paper", 65_536, 1),
    "mixing/k_2_17": (786_432, 128, "paper", 131_072, 1),
    "mixing/k_2_18": (786_432, 128, "paper", 262_144, 1),
    "mixing/k_2_19": (786_432, 128, "paper", 524_288, 1),
    "mixing/k_2_20": (786_432, 128, "paper", 1_048_576, 1),
    "mixing/k_2_21": (786_432, 128, "paper", 2_097_152, 1),
    "mixing/t_2": (786_432, 128, "paper", 2_097_152, 2),
    "mixing/t_4": (786_432, 128, "paper", 2_097_152, 4),
    "mixing/t_8": (786_432, 128, "paper", 2_097_152, 8),
    **{f"final/{size}": (1_000_000, 2048, "paper", None, 1) for size in ("small", "base", "large", "3B", "11B")},
}

FINE_TUNED: dict[str, tuple[int, int, int, str | None, str, int]] = {
    # steps, rows, steps between checkpoints, what it begins with, task, tokens of targets
    **{
        f"finetune/{unit}": (262_144, 128, 5_000, "paper-baseline@last", unit, length) for unit, length in UNITS.items()
    },
    **{f"strategies/adapters_{size}": (262_144, 128, 5_000, None, "squad", 97) for size in (32, 128, 512, 2048)},
    "strategies/gradual_unfreezing": (262_144, 128, 5_000, "paper-baseline@last", "squad", 97),
    "scaling/4x_steps_finetune": (1_048_576, 128, 5_000, "paper-scaling-4x_steps@last", "squad", 97),
    "scaling/2x_size_2x_steps_finetune": (524_288, 128, 5_000, "paper-scaling-2x_size_2x_steps@last", "squad", 97),
    "scaling/4x_size_finetune": (262_144, 128, 5_000, "paper-scaling-4x_size@last", "squad", 97),
    **{
        f"scaling/ensemble_{number}_finetune": (
            262_144,
            128,
            5_000,
            f"paper-scaling-ensemble_{number}@last",
            "squad",
            97,
        )
        for number in (1, 2, 3, 4)
    },
    **{
        f"scaling/finetuned_ensemble_{number}": (262_144, 128, 5_000, "paper-baseline@last", "squad", 97)
        for number in (1, 2, 3, 4)
    },
    "final/finetune/glue": (262_144, 8, 1_000, "paper-final-base@last", "glue_rte", 84),
    "final/finetune/super_glue": (262_144, 8, 1_000, "paper-final-base@last", "super_glue_boolq", 62),
    **{
        f"final/finetune/{unit}": (262_144, 128, 5_000, "paper-final-base@last", unit, UNITS[unit])
        for unit in ("squad", "cnn_dailymail", "wmt_en_de", "wmt_en_fr", "wmt_en_ro")
    },
}

TWO_PHASES = {"multitask_then_finetune": "squad", "supervised_then_finetune": "squad"}
TWO_PHASES |= {f"leave_one_out/{unit}": unit for unit in UNITS}


def loaded(name: str, *overrides: str) -> Config:
    (run,) = load_phases(f"paper/{name}", overrides)
    return run.config


def phases(name: str, *overrides: str) -> tuple[Phase, Phase]:
    first, second = load_phases(f"paper/{name}", overrides)
    return first, second


def test_every_recipe_is_in_a_table() -> None:
    tables: list[dict[str, Any]] = [PRE_TRAINED, MIXED, FINE_TUNED, TWO_PHASES]
    assert sorted(name for table in tables for name in table) == sorted(name.removeprefix("paper/") for name in PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_all_set_to_the_original_what_is_otherwise_by_default(name: str) -> None:
    for run in load_phases(name):
        tree = run.config
        data, training = tree.data, tree.training
        assert (data.draws, data.packing, data.chunks) == ("sampled", "greedy", "original")
        assert (data.sentinels, data.closing_sentinel, data.decoder_row, data.drop_overlap) == (None, False, None, None)
        assert (training.z_loss, training.label_smoothing, training.normalizer) == (1e-4, 0.0, "padded_targets")
        assert (tree.optimizer.name, tree.optimizer.weight_decay) == ("adafactor", 0.0)
        assert tree.optimizer.clip_gradient_norm is None
        assert tree.model.dropout_over_length == "shared"
        assert tree.model.dropout_rate == (0.0 if name.startswith("paper/sizes/v1_1") else 0.1)
        assert (tree.data.inputs_length, tree.checkpoints.keep) == (512, None)
        assert tree.vocabulary.size == 32_100


@pytest.mark.parametrize("name", PRE_TRAINED)
def test_pre_training_has_the_numbers_of_its_table(name: str) -> None:
    tree = loaded(name)
    steps, rows, task, targets = PRE_TRAINED[name]
    assert (tree.training.steps, tree.training.global_batch_size) == (steps, rows)
    assert (list(tree.mixture.tasks), tree.data.targets_length) == ([task], targets)
    assert (tree.schedule.name, tree.schedule.warmup_steps, tree.schedule.factor) == (
        "inverse_square_root",
        10_000,
        1.0,
    )
    assert (tree.checkpoints.every, tree.run.fork, tree.model.start) == (5_000, None, None)
    objective, parameters = objective_of(tree, task)
    pieces = make_objective(objective, 32_099, parameters).piece_length(512, targets)  # refuses targets that do not fit
    assert pieces == PIECES.get(name, 568 if task == "c4" else 511)


PIECES = {"span_lengths/2": 552, "span_lengths/5": 581, "span_lengths/10": 591}
"""Raw tokens of a piece, where another mean length of spans makes other ones."""


@pytest.mark.parametrize(("rate", "density"), [("10", 0.1), ("15", 0.15), ("25", 0.25), ("50", 0.5)])
def test_rates_of_corruption(rate: str, density: float) -> None:
    assert loaded(f"corruption_rates/{rate}").data.noise_density == density


@pytest.mark.parametrize(("span", "mean"), [("2", 2.0), ("3", 3.0), ("5", 5.0), ("10", 10.0)])
def test_lengths_of_spans(span: str, mean: float) -> None:
    tree = loaded(f"span_lengths/{span}")
    assert (tree.data.mean_noise_span_length, tree.data.noise_density) == (mean, 0.15)


@pytest.mark.parametrize(
    ("name", "tokens", "repeats"),
    [("2_29", 536_870_912, 64), ("2_27", 134_217_728, 256), ("2_25", 33_554_432, 1024), ("2_23", 8_388_608, 4096)],
)
def test_repeated_data_is_passed_over_as_often_as_in_table_9(name: str, tokens: int, repeats: int) -> None:
    tree = loaded(f"repeated_data/{name}")
    assert tree.mixture.tasks["c4_replace_spans"].first_tokens == tokens
    seen = tree.training.steps * tree.training.global_batch_size * tree.data.inputs_length
    assert (seen, seen / tokens) == (34_359_738_368, repeats)


def test_corpora_are_other_files_of_the_same_task() -> None:
    files = {
        name: loaded(f"corpora/{name}").mixture.tasks["c4_replace_spans"].files["train"]
        for name in ("unfiltered", "realnews_like", "webtext_like", "wikipedia", "wikipedia_books")
    }
    assert len({tuple(names) for names in files.values()}) == 5
    assert "en.noclean" in files["unfiltered"][0]
    assert "realnewslike" in files["realnews_like"][0]
    assert files["wikipedia_books"][0] == files["wikipedia"][0]


# ---- models ----------------------------------------------------------------------------------------------------------

PARAMETERS = {
    "baseline": 222_903_552,
    "sizes/small": 60_506_624,
    "sizes/base": 222_903_552,
    "sizes/large": 737_668_096,
    "sizes/3B": 2_851_598_336,
    "sizes/11B": 11_307_321_344,
    "sizes/2x": 502_746_112,
    "sizes/4x": 972_590_080,
    "sizes/v1_1-small": 76_961_152,
    "sizes/v1_1-base": 247_577_856,
    "sizes/v1_1-large": 783_150_080,
    "sizes/v1_1-xl": 2_849_757_184,
    "sizes/v1_1-xxl": 11_135_332_352,
    "architectures/encoder_decoder_lm": 222_903_552,
    "architectures/shared_denoising": 137_949_312,
    "architectures/shared_lm": 137_949_312,
    "architectures/half_depth_denoising": 123_790_080,
    "architectures/half_depth_lm": 123_790_080,
    "architectures/lm_denoising": 109_628_544,
    "architectures/lm_lm": 109_628_544,
    "architectures/prefix_lm_denoising": 109_628_544,
    "architectures/prefix_lm_lm": 109_628_544,
    "scaling/2x_size_2x_steps": 502_746_112,
    "scaling/2x_size_2x_steps_finetune": 502_746_112,
    "scaling/4x_size": 972_590_080,
    "scaling/4x_size_finetune": 972_590_080,
    "final/small": 60_506_624,
    "final/base": 222_903_552,
    "final/large": 737_668_096,
    "final/3B": 2_851_598_336,
    "final/11B": 11_307_321_344,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_have_the_parameters_of_the_original(name: str) -> None:
    import torch

    from mixtura.models.t5 import create_model
    from mixtura.platform.orchestration.assemble import model_config

    with torch.device("meta"):
        model = create_model(model_config(loaded(name).model, embedding_rows=32_128))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


# ---- mixtures --------------------------------------------------------------------------------------------------------

SHARES = {
    # C4, GLUE, SuperGLUE and DPR, CNN/DM, SQuAD, EnDe, EnFr, EnRo in percent (specification, section 5.2)
    "mixing/k_2_16": (8.3, 35.8, 14.1, 8.3, 8.3, 8.3, 8.3, 8.3),
    "mixing/k_2_17": (9.5, 33.0, 12.9, 9.5, 6.4, 9.5, 9.5, 9.5),
    "mixing/k_2_18": (11.4, 31.1, 8.0, 11.4, 3.8, 11.4, 11.4, 11.4),
    "mixing/k_2_19": (14.5, 26.3, 5.1, 8.0, 2.4, 14.5, 14.5, 14.5),
    "multitask": (14.5, 26.3, 5.1, 8.0, 2.4, 14.5, 14.5, 14.5),
    "mixing/k_2_20": (19.9, 18.0, 3.5, 5.5, 1.7, 19.9, 19.9, 11.6),
    "mixing/k_2_21": (24.9, 11.3, 2.2, 3.4, 1.0, 24.9, 24.9, 7.3),
    "mixing/t_2": (16.3, 23.4, 9.4, 6.0, 3.3, 16.3, 16.3, 8.8),
    "mixing/t_4": (10.2, 31.0, 20.1, 6.2, 4.6, 10.2, 10.2, 7.5),
    "mixing/t_8": (7.1, 33.8, 28.7, 5.5, 4.8, 7.1, 7.1, 6.1),
    "mixing/equal": (4.3, 34.8, 39.1, 4.3, 4.3, 4.3, 4.3, 4.3),
}
FINAL_C4 = {"final/small": 14.7, "final/base": 38.9, "final/large": 67.8, "final/3B": 89.1, "final/11B": 97.0}
FINAL_SIZES = {"small": 710_000, "base": 2_620_000, "large": 8_660_000, "3B": 33_500_000, "11B": 133_000_000}


def shares_of(tree: Config) -> dict[str, float]:
    """Percent of the examples, of the study's units."""
    shares: dict[str, float] = {}
    for row in declared_table(expanded(tree)):
        benchmark = str(row["task"]).partition("_")[0] + "_"
        unit = {"glue_": "GLUE", "super_": "SuperGLUE", "dpr_": "SuperGLUE", "c4_": "C4"}.get(benchmark, row["task"])
        shares[unit] = shares.get(unit, 0.0) + 100 * row["share of examples"]
    return shares


@pytest.mark.parametrize("name", MIXED)
def test_mixtures_have_the_numbers_of_their_table(name: str) -> None:
    tree = loaded(name)
    mixture = tree.mixture
    found = (tree.training.steps, tree.training.global_batch_size, mixture.rates, mixture.maximum, mixture.temperature)
    assert found == MIXED[name]
    assert (tree.data.targets_length, tree.checkpoints.every) == (512, 5_000)
    assert (tree.schedule.name, tree.schedule.warmup_steps) == ("inverse_square_root", 10_000)


@pytest.mark.parametrize("name", SHARES)
def test_mixtures_have_the_shares_of_the_specification(name: str) -> None:
    shares = shares_of(loaded(name))
    order = ("C4", "GLUE", "SuperGLUE", "cnn_dailymail", "squad", "wmt_en_de", "wmt_en_fr", "wmt_en_ro")
    assert [shares[unit] for unit in order] == pytest.approx(SHARES[name], abs=0.06)


@pytest.mark.parametrize("size", FINAL_SIZES)
def test_final_models_have_their_c4_and_a_million_of_the_large_translations(size: str) -> None:
    tree = loaded(f"final/{size}")
    assert tree.mixture.tasks["c4"].size == FINAL_SIZES[size]
    assert tree.mixture.tasks["wmt_en_de"].size == tree.mixture.tasks["wmt_en_fr"].size == 1_000_000
    assert "c4_replace_spans" not in tree.mixture.tasks
    assert (tree.data.mean_noise_span_length, tree.data.noise_density) == (3.0, 0.15)
    assert tree.training.global_batch_size * tree.data.inputs_length == 1_048_576
    assert shares_of(tree)["C4"] == pytest.approx(FINAL_C4[f"final/{size}"], abs=0.06)


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINE_TUNED)
def test_fine_tuning_has_the_numbers_of_the_paper(name: str) -> None:
    tree = loaded(name)
    steps, rows, every, begins, task, targets = FINE_TUNED[name]
    assert (tree.training.steps, tree.training.global_batch_size, tree.checkpoints.every) == (steps, rows, every)
    assert (tree.schedule.name, tree.schedule.factor) == ("constant", 0.001)
    assert tree.run.fork == begins
    assert (list(tree.mixture.tasks), tree.data.targets_length) == ([task], targets)
    assert (tree.mixture.rates, tree.mixture.maximum, tree.mixture.temperature) == ("proportional", None, 1)


@pytest.mark.parametrize("size", [32, 128, 512, 2048])
def test_adapters_begin_with_the_baseline_and_train_alone(size: int) -> None:
    tree = loaded(f"strategies/adapters_{size}")
    assert (tree.model.adapter_size, tree.model.start) == (size, "paper-baseline@last")
    assert tree.training.unfreeze_every is None


def test_unfreezing_takes_twelve_episodes() -> None:
    tree = loaded("strategies/gradual_unfreezing")
    assert tree.training.unfreeze_every == 21_845
    assert (tree.training.steps - 1) // 21_845 == 12  # the thirteenth is 4 steps long: 2^18 is not divisible by 12


def test_ensembles_are_four_seeds() -> None:
    for kind in ("ensemble_{}", "ensemble_{}_finetune", "finetuned_ensemble_{}"):
        seeds = [loaded(f"scaling/{kind.format(number)}").run.seed for number in (1, 2, 3, 4)]
        assert seeds == [1, 2, 3, 4]


def test_final_summaries_and_translations_are_beam_searched() -> None:
    for unit in ("cnn_dailymail", "wmt_en_de", "wmt_en_fr", "wmt_en_ro"):
        evaluation = loaded(f"final/finetune/{unit}").evaluation
        assert (evaluation.beams, evaluation.length_penalty) == (4, 0.6)
    for name in ("baseline", "finetune/wmt_en_de", "final/finetune/squad", "final/finetune/glue"):
        assert loaded(name).evaluation.beams == 1


# ---- two phases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWO_PHASES)
def test_two_phases_are_pre_training_and_fine_tuning(name: str) -> None:
    before, after = phases(name)
    run = "paper-" + name.replace("/", "-")
    assert (before.name, before.config.run.name, before.config.run.fork) == ("pretrain", f"{run}-pretrain", None)
    assert (after.name, after.config.run.name) == ("finetune", f"{run}-finetune")
    assert after.config.run.fork == f"{run}-pretrain@524288"
    assert (before.config.training.steps, after.config.training.steps) == (524_288, 262_144)
    assert (before.config.schedule.name, before.config.schedule.warmup_steps) == ("inverse_square_root", 10_000)
    assert (after.config.schedule.name, after.config.schedule.factor) == ("constant", 0.001)
    assert before.config.mixture.maximum == 524_288
    task = TWO_PHASES[name]
    assert list(after.config.mixture.tasks) == [task]
    assert (after.config.mixture.maximum, after.config.mixture.rates) == (None, "proportional")
    assert (before.config.data.targets_length, after.config.data.targets_length) == (512, UNITS[task])
    everything = {"c4_replace_spans", *UNITS}
    left_out = {task} if name.startswith("leave_one_out") else set()
    left_out |= {"c4_replace_spans"} if name.startswith("supervised") else set()
    assert set(before.config.mixture.tasks) == everything - left_out


def test_fine_tuning_on_one_task_is_an_override() -> None:
    before, after = phases("multitask_then_finetune", "phases.finetune.mixture.tasks=[rte]")
    assert list(after.config.mixture.tasks) == ["rte"]
    assert before.config == phases("multitask_then_finetune")[0].config
