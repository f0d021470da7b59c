"""Laws L1 and L5 for whole runs: the executor and the number of workers change neither a batch nor a loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixtura.platform.config import Config
from mixtura.platform.data.lanes import drawn
from mixtura.platform.data.stream import MixtureStream, StreamSpec
from mixtura.platform.orchestration.cluster import divide
from mixtura.platform.orchestration.executor import InlineExecutor
from mixtura.platform.orchestration.on_ray import RayExecutor
from mixtura.platform.orchestration.show import Shown
from mixtura.platform.tracking.records import TrainPoint, read_events

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Step = tuple[float, str]
Steps = Callable[[Path], dict[int, Step]]

STEPS, SAVED = 8, 4
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def inline_run(module_workspace: Path, tiny_config: Callable[..., Config], train_only: Callable[..., Path]) -> Path:
    """The tiny quickstart in one process without Ray."""
    return train_only(tiny_config(module_workspace, "inline", "executor.kind=inline"), InlineExecutor())


@pytest.fixture(scope="module")
def ray_run(
    ray_cluster: None,
    module_workspace: Path,
    tiny_config: Callable[..., Config],
    train_only: Callable[..., Path],
) -> Callable[[int], Path]:
    """The same under Ray with so many workers, made once for each number."""
    made: dict[int, Path] = {}

    def run(workers: int) -> Path:
        if workers not in made:
            tree = tiny_config(module_workspace, f"ray-{workers}", f"executor.workers={workers}")
            executor = RayExecutor(divide(2, 0, tree.executor), 0, shards_at_once=1, blocks_per_lane=1)
            made[workers] = train_only(tree, executor)
        return made[workers]

    return run


def worst(found: dict[int, Step], expected: dict[int, Step]) -> float:
    """The largest difference between losses of the same step."""
    assert found.keys() == expected.keys()
    return float(np.max([abs(found[step][0] - loss) for step, (loss, _) in expected.items()]))


def test_the_comparison_trains_with_dropout(inline_run: Path, tiny_config: Callable[..., Config]) -> None:
    assert tiny_config(inline_run.parent, "inline").model.dropout_rate > 0


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray_with_any_workers_steps_on_the_batches_of_one_process(
    ray_run: Callable[[int], Path], inline_run: Path, steps_of: Steps, workers: int
) -> None:
    found, expected = steps_of(ray_run(workers)), steps_of(inline_run)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert {step: print_ for step, (_, print_) in found.items()} == {
        step: print_ for step, (_, print_) in expected.items()
    }
    assert len({print_ for _, print_ in found.values()}) == STEPS


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray_with_any_workers_gives_the_losses_of_one_process(
    ray_run: Callable[[int], Path], inline_run: Path, steps_of: Steps, workers: int
) -> None:
    assert worst(steps_of(ray_run(workers)), steps_of(inline_run)) <= TOLERANCE


def test_ray_with_one_worker_gives_exactly_the_losses_of_one_process(
    ray_run: Callable[[int], Path], inline_run: Path, steps_of: Steps
) -> None:
    assert steps_of(ray_run(1)) == steps_of(inline_run)


def test_any_workers_count_the_same_examples(ray_run: Callable[[int], Path], inline_run: Path) -> None:
    def trained(run: Path) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = json.loads((run / f"checkpoints/step-{STEPS:06d}/state.json").read_text())[
            "trained"
        ]
        return counts

    expected = trained(inline_run)
    assert sum(expected["examples"].values()) > STEPS
    assert trained(ray_run(3)) == expected


def test_points_and_checkpoints_say_what_was_drawn_and_how_many_epochs_that_is(
    ray_run: Callable[[int], Path], inline_run: Path
) -> None:
    stream = MixtureStream(StreamSpec.from_dict(json.loads((inline_run / "stream.json").read_text())))
    for run in (inline_run, ray_run(3)):
        state = json.loads((run / f"checkpoints/step-{STEPS:06d}/state.json").read_text())
        last = [one for one in read_events(run / "events") if isinstance(one, TrainPoint)][-1]
        place = {"lanes": [[int(lane), *at] for lane, at in state["lanes"].items()]}
        for task, there in zip(stream.spec.tasks, drawn(stream, place).tolist(), strict=True):
            assert state["trained"]["drawn"][task.name] == there == last.metrics[f"drawn/{task.name}"]
            examples = state["trained"]["examples"][task.name]
            assert there >= examples
            assert state["epochs"][task.name] == examples / stream.epoch_sizes[task.name]
            assert last.metrics[f"epochs/{task.name}"] == state["epochs"][task.name]
            assert last.metrics[f"input_tokens/{task.name}"] == state["trained"]["input_tokens"][task.name] > 0


def test_every_ranks_rows_came_through_a_pipeline_of_its_own(ray_run: Callable[[int], Path]) -> None:
    for rank in range(2):
        assert "MapBatches(build_" in (ray_run(2) / f"ray-data-rank-{rank}.txt").read_text()


def test_what_stream_show_says_is_what_the_run_stepped_on(inline_run: Path, steps_of: Steps, tmp_path: Path) -> None:
    stream = MixtureStream(StreamSpec.from_dict(json.loads((inline_run / "stream.json").read_text())))
    show = Shown(stream, Path(), tmp_path, {})
    shown = {step + 1: print_ for step, print_ in show.fingerprints(2, STEPS)}
    assert shown == {step: print_ for step, (_, print_) in steps_of(inline_run).items() if step > 2}


def test_a_run_of_three_workers_goes_on_inline_with_another_microbatch_and_stage(
    ray_run: Callable[[int], Path],
    inline_run: Path,
    steps_of: Steps,
    tiny_config: Callable[..., Config],
    train_only: Callable[..., Path],
) -> None:
    """Its first half was made by three workers; what it does next is what one process did from the start."""
    whole = ray_run(3)
    half = whole.with_name("half")
    saved = f"checkpoints/step-{SAVED:06d}"
    shutil.copytree(whole / saved, half / saved)
    free = ("executor.kind=inline", "training.microbatch_size=5", "training.zero_stage=2", "executor.workers=1")
    train_only(tiny_config(half.parent, "half", *free), InlineExecutor())
    found, expected = steps_of(half), steps_of(inline_run)
    assert sorted(found) == list(range(SAVED + 1, STEPS + 1))
    for step, (loss, print_) in found.items():
        assert print_ == expected[step][1]
        assert loss == pytest.approx(expected[step][0], abs=TOLERANCE)
