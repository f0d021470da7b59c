"""C4, GLUE and SuperGLUE together at the paper's lengths (temperature 2, K = 2^21, published sizes), on real text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixtura.platform.data.stream import MixtureStream, StreamSpec, count_rows, ragged_columns
from mixtura.platform.orchestration.mixture import stream_spec
from mixtura.platform.orchestration.places import copies_of
from mixtura.platform.orchestration.prepare import map_inline, prepare
from mixtura.platform.orchestration.reporter import SilentReporter
from mixtura.platform.orchestration.tasks import load_recipe
from mixtura.platform.workspace import workspace

pytestmark = pytest.mark.slow

BLOCKS = 40
TASKS = (
    *("c4", "glue", "super_glue_boolq", "super_glue_multirc", "super_glue_record"),
    *("super_glue_rte", "super_glue_wsc", "dpr"),
)


@pytest.fixture(scope="module")
def make_stream(shared: Path, tmp_path_factory: pytest.TempPathFactory):
    """The mixture's stream with other settings of the section `data`."""
    root = tmp_path_factory.mktemp("real") / "runs"

    def make(**data: object) -> MixtureStream:
        given = {
            "mixture.tasks": f"[{','.join(TASKS)}]",
            "mixture.rates": "paper",
            "mixture.temperature": 2,
            "mixture.maximum": 2**21,
            "data.root": shared / "data",
            "vocabulary.path": shared / "data/vocab/t5/spiece.model",
            "data.inputs_length": 512,
            "data.targets_length": 114,
            "run.root": root,
            **{f"data.{name}": value for name, value in data.items()},
        }
        tree = load_recipe("twelve_tasks", [f"{key}={value}" for key, value in given.items()])
        prepared = prepare(tree, workspace(str(root)), map_inline, SilentReporter())
        return MixtureStream(stream_spec(tree, prepared), copies_of(tree))

    return make


def counted(stream: MixtureStream) -> tuple[float, float, dict[str, np.ndarray]]:
    """Shares of encoder and decoder positions that hold tokens, and what the blocks hold."""
    blocks = [ragged_columns(stream.build_block(block)) for block in range(BLOCKS)]
    counts = [count_rows(block, len(stream.spec.tasks)) for block in blocks]
    totals = {name: sum(count[name] for count in counts) for name in counts[0]}
    rows = sum(len(block["tasks"]) for block in blocks)
    encoder, decoder = stream.spec.row_lengths
    return totals["input_tokens"].sum() / rows / encoder, totals["target_tokens"].sum() / rows / decoder, totals


def test_best_fit_fills_98_percent_of_the_encoder_and_trims_what_unpacked_rows_would(make_stream) -> None:
    stream = make_stream()
    filled, _, totals = counted(stream)
    assert filled >= 0.98
    drawn = [stream.schedule.drawn_before(task, BLOCKS) for task in range(len(stream.spec.tasks))]
    assert totals["examples"].tolist() == drawn
    _, _, unpacked = counted(make_stream(packing="none"))
    for name in ("trimmed_inputs", "trimmed_targets", "trimmed_input_tokens", "input_tokens", "target_tokens"):
        assert totals[name].tolist() == unpacked[name].tolist()


def test_the_original_s_greedy_packing_leaves_a_quarter_empty(make_stream) -> None:
    filled, _, _ = counted(make_stream(packing="greedy"))
    assert 0.7 < filled < 0.8


def test_a_measured_decoder_row_saves_positions_where_only_supervised_tasks_are_drawn(make_stream) -> None:
    specs: dict[object, StreamSpec] = {row: make_stream(decoder_row=row).spec for row in ("null", "measured")}
    assert specs["null"].row_lengths == (512, 114)
    encoder, decoder = specs["measured"].row_lengths
    # C4's targets fill 114: with it in the mixture no shorter row holds them
    assert (encoder, decoder) == (512, 114)
