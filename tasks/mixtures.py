"""Named mixtures: which tasks are trained together, and how much each weighs beside the others.

A weight multiplies the rate that a recipe's `mixture.rates` gives a task; 0 stands for a task that is evaluated with
the others and never drawn. The sizes are the tasks' own (`Task.rate_size`). A mixture may have other mixtures among its
parts, and a recipe may name several, with single tasks beside them: see `expand`.

    glue, super_glue, glue_super_glue   the benchmarks; DPR, more examples for WSC, trains with SuperGLUE
    wsc_dpr, large_supervised           as released
    paper_multitask                     22 supervised tasks and C4 (Raffel et al. 2020, section 3.5.2)
    paper_supervised                    the same without C4 (section 3.5.3)
    leave_one_out_NAME                  paper_multitask without a benchmark or a task (section 3.5.3)
    all_mix, all_equal                  paper_multitask with the tasks that are for evaluation only
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from mixtura.platform.data.mixture import Mixture, nested_rates, nested_weights
from mixtura.platform.errors import UnknownNameError

GLUE = (
    "glue_cola",
    "glue_sst2",
    "glue_mrpc",
    "glue_stsb",
    "glue_qqp",
    "glue_mnli",
    "glue_qnli",
    "glue_rte",
)
"""The trained tasks of GLUE; the original never trains on WNLI, and AX has nothing to train on."""

GLUE_EVALUATION = ("glue_mnli_matched", "glue_mnli_mismatched", "glue_ax")

SUPER_GLUE = (
    "super_glue_boolq",
    "super_glue_cb",
    "super_glue_copa",
    "super_glue_multirc",
    "super_glue_record",
    "super_glue_rte",
    "super_glue_wic",
    "super_glue_wsc",
)

SUPER_GLUE_EVALUATION = ("super_glue_axb", "super_glue_axg")

WSC_DPR = ("super_glue_wsc", "dpr")

TRANSLATION = ("wmt_en_de", "wmt_en_fr", "wmt_en_ro")

SUPERVISED = (*GLUE, *SUPER_GLUE, "dpr", "cnn_dailymail", "squad", *TRANSLATION)

MULTITASK = (*SUPERVISED, "c4")

EVALUATION = (*GLUE_EVALUATION, *SUPER_GLUE_EVALUATION)

UNITS: Mapping[str, tuple[str, ...]] = {"glue": GLUE, "super_glue": (*SUPER_GLUE, "dpr")}
"""Benchmarks that the paper leaves out as one; every other task is a unit of its own."""

SHARED_DATA: tuple[frozenset[str], ...] = (frozenset({"glue_rte", "super_glue_rte"}),)
"""Tasks with the same training examples, which `rates: paper` and `rates: released` count once in all."""

HARD_CODED = frozenset({*GLUE, *SUPER_GLUE, "dpr"})
"""Tasks whose rate the released mixtures have as a written number, their published size."""


def _parts(trained: Iterable[str], evaluated: Iterable[str] = ()) -> dict[str, float]:
    return {**dict.fromkeys(trained, 1.0), **dict.fromkeys(evaluated, 0.0)}


def _leave_one_out(name: str) -> Mixture:
    """The paper's mixture without one unit or task. A copy of RTE whose other copy left counts in full again."""
    out = UNITS.get(name, (name,))
    rest = _parts(task for task in MULTITASK if task not in out)
    return Mixture(f"leave_one_out_{name}", rest, f"The paper's multi-task mixture without {name}.")


MIXTURES: tuple[Mixture, ...] = (
    Mixture("glue", _parts(GLUE, GLUE_EVALUATION), "The eight trained tasks of GLUE, and its tasks for evaluation."),
    Mixture(
        "super_glue",
        _parts((*SUPER_GLUE, "dpr"), SUPER_GLUE_EVALUATION),
        "The eight trained tasks of SuperGLUE with DPR, and its tasks for evaluation.",
    ),
    Mixture("glue_super_glue", {"glue": 1.0, "super_glue": 1.0}, "Both benchmarks together."),
    Mixture("glue_mnli_and_dev", _parts(["glue_mnli"], GLUE_EVALUATION[:2]), "MNLI with both its validation sets."),
    Mixture("wsc_dpr", _parts(WSC_DPR), "Pronouns: SuperGLUE's WSC and DPR."),
    Mixture(
        "large_supervised",
        _parts(("cnn_dailymail", "wmt_en_de", "wmt_en_fr")),
        "Summaries, and translation to German and French.",
    ),
    Mixture("paper_multitask", _parts(MULTITASK), "The paper's multi-task mixture: 22 supervised tasks and C4."),
    Mixture("paper_supervised", _parts(SUPERVISED), "The paper's 22 supervised tasks, without C4."),
    Mixture("all_equal", _parts(MULTITASK, EVALUATION), "All of the paper's tasks, for equal rates."),
    Mixture(
        "all_mix",
        _parts(MULTITASK, EVALUATION),
        "All of the paper's tasks, with C4 at a constant rate.",
        released={"c4": 1_000_000.0},
    ),
    *(_leave_one_out(name) for name in (*UNITS, *MULTITASK)),
)


def expand(
    chosen: Mapping[str, float], mixtures: Mapping[str, Mixture], task_names: Collection[str], *, divide: bool = False
) -> dict[str, float]:
    """The tasks behind names of tasks and mixtures, each with its weight.

    Weights multiply on the way down to a task, and a task that is reached on several ways has the sum. Fixed rates are
    divided instead (`divide`): then a mixture's weight is shared out among its tasks, as in the original. Mixtures that
    contain each other and names of neither kind are refused.

    >>> mixtures = {"glue": Mixture("glue", {"cola": 1.0, "rte": 1.0, "ax": 0.0}, "Two tasks and one to look at.")}
    >>> expand({"glue": 2.0, "rte": 0.5}, mixtures, ["ax", "cola", "rte"])
    {'cola': 2.0, 'rte': 2.5, 'ax': 0.0}
    >>> expand({"glue": 2.0, "rte": 0.5}, mixtures, ["ax", "cola", "rte"], divide=True)
    {'cola': 1.0, 'rte': 1.5, 'ax': 0.0}
    """
    parts = {name: mixture.parts for name, mixture in mixtures.items()}
    flat = nested_rates(chosen, parts) if divide else nested_weights(chosen, parts)
    for name in flat:
        if name not in task_names:
            inside = [mixture for mixture, own in parts.items() if name in own and name not in chosen]
            where = f" in mixture {inside[0]!r}" if inside else ""
            raise UnknownNameError("task or mixture", name, [*task_names, *mixtures], where)
    return flat


def written_rates(chosen: Iterable[str], mixtures: Mapping[str, Mixture]) -> dict[str, float]:
    """The rates, beside those of `HARD_CODED`, that the released mixtures in `chosen` have as written numbers.

    >>> written_rates(["all_mix", "squad"], {mixture.name: mixture for mixture in MIXTURES})
    {'c4': 1000000.0}
    """
    found: dict[str, float] = {}
    for name in chosen:
        if name in mixtures:
            found |= {**written_rates(mixtures[name].parts, mixtures), **mixtures[name].released}
    return found
