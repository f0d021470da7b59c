"""C4, the Colossal Clean Crawled Corpus (Raffel et al. 2020, section 2.2), once for each objective of section 3.3.

`c4` has the objective of the final models. The others are the same documents: to compare objectives, a recipe names
another of them. Corruption rates and span lengths are parameters of the objectives and no tasks of their own. In the
released configurations' names (pattern, density, inputs, targets):

    c4                 span_3_15_u_u     c4_prefix_lm     prefix_lm
    c4_replace_spans   iid_15_u_u        c4_lm            lm
    c4_drop_tokens     iid_15_d_d        c4_deshuffling   all_permute
    c4_mass_style      iid_15_m_f        c4_bert_style    iid_15_r10s90_f
"""

from __future__ import annotations

from collections.abc import Iterator

from mixtura.platform.data.sources import FileSource
from mixtura.platform.data.task import Rejected, Row, Task

SIZE = 364_868_892
"""Documents for training."""

OBJECTIVES = {
    "c4": ("span_corruption", "Web pages; spans are left out, and the targets are what they were."),
    "c4_replace_spans": ("replace_spans", "C4 with single tokens drawn as noise: the baseline of the paper's study."),
    "c4_drop_tokens": ("drop_tokens", "C4 with noise tokens dropped; the targets are those tokens."),
    "c4_bert_style": ("bert_style", "C4 with noise tokens masked or made random; the targets are the whole text."),
    "c4_mass_style": ("mass_style", "C4 with noise tokens masked; the targets are the whole text."),
    "c4_prefix_lm": ("prefix_lm", "C4 cut at a random place; the targets are how the text goes on."),
    "c4_deshuffling": ("deshuffling", "C4 with all tokens in a random order; the targets are the text."),
    "c4_lm": ("lm", "C4 as targets only, for a language model."),
}
"""Task to the objective that makes its inputs and targets, and a description."""


def document(row: Row) -> Iterator[Row]:
    """The text of a page, with its address where the file has it."""
    text, url = row.get("text"), row.get("url")
    if not isinstance(text, str):
        raise Rejected("no field 'text'")
    if not text:
        raise Rejected("empty document")
    yield {"text": text, **({"url": url} if isinstance(url, str) else {})}


SOURCE = FileSource(
    hub={split: (f"hf://datasets/allenai/c4/en/c4-{split}.*.json.gz",) for split in ("train", "validation")},
    original={
        split: tuple(
            f"{folder}c4-{split}.*.{ending}"
            for folder in ("c4/en/", "en/", "c4/", "", "web/c4/")
            for ending in ("json", "parquet")
        )
        for split in ("train", "validation")
    },
)

TASKS = tuple(
    Task(
        name,
        SOURCE,
        (document,),
        kind="unsupervised",
        version="1",
        description=description,
        rate_size=SIZE,
        evaluated=("validation",),
        objective=(objective, {}),
    )
    for name, (objective, description) in OBJECTIVES.items()
)
