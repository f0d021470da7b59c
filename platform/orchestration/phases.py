"""Runs that follow each other, as a recipe's phases: pre-training, then fine-tuning from where it ended.

    pretrain    run NAME-pretrain, steps 1 to 524288
    finetune    run NAME-finetune, from NAME-pretrain@524288: its weights, its vocabulary, its optimizer's state, whose
                count of updates goes on (so does Adafactor's decay); stream, schedule and steps begin anew

See `recipe_files` for how a recipe says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from mixtura.platform.config import Config
from mixtura.platform.data.vocabulary import ROWS_MULTIPLE
from mixtura.platform.errors import ConfigError
from mixtura.platform.orchestration.assemble import model_config
from mixtura.platform.orchestration.prepare import prepare_vocabulary
from mixtura.platform.orchestration.reporter import Reporter
from mixtura.platform.orchestration.result import summary_line
from mixtura.platform.orchestration.tasks import chosen, has_data, load_runs, tasks_of
from mixtura.platform.orchestration.train import is_done, refuse_bad_request, train_recipe
from mixtura.platform.recipe_files import Phase, several_runs
from mixtura.platform.workspace import Run, workspace

_CHOSEN_ANEW = {"dropout_rate", "dropout_over_length"}
"""What a later phase may say otherwise about the model."""


def train_phases(recipe: str, phases: Sequence[Phase], reporter: Reporter) -> None:
    """Train the runs of a recipe one after the other, from wherever they stand; a phase that is done is passed over.

    All are checked before the first begins. Where a run is asked to stop, those after it wait for the same command.
    """
    refuse_differing(phases)
    for phase in phases[1:]:
        run = _run_of(phase)
        begins_later = phase.config.run.model_copy(update={"fork": None})
        refuse_bad_request(workspace(phase.config.run.root), run, phase.config.model_copy(update={"run": begins_later}))
    for number, phase in enumerate(phases, start=1):
        run, title = _run_of(phase), f"phase {phase.name!r}, {number} of {len(phases)}"
        if number < len(phases) and is_done(run, phase.config):
            reporter.line(f"{title}: run {run.name!r} is done, {summary_line(run)}")
            continue
        after = "" if phase.config.run.fork is None else f", begins with {phase.config.run.fork}"
        reporter.line(f"{title}: run {run.name!r}, {phase.config.training.steps} steps{after}")
        if not train_recipe(recipe, phase.config, reporter):
            return


def refuse_differing(phases: Sequence[Phase]) -> None:
    """Raise ConfigError where a later phase cannot begin with the state that the first ends with."""
    first = phases[0]
    for later in phases[1:]:
        before, after = _kept(first.config), _kept(later.config)
        if changed := [key for key in before if before[key] != after[key]]:
            key = changed[0]
            raise ConfigError(
                f"phase {later.name!r} goes on with the weights and the optimizer of {first.name!r}, but its {key} is "
                f"{after[key]!r}, and there it is {before[key]!r}: give both the same"
            )


def single(recipe: str, overrides: Sequence[str], phase: str | None, reporter: Reporter) -> Config:
    """The configuration of a recipe, or of one of its phases, for looking at its data; see `with_first_vocabulary`.

    Raises RequestError where there are phases and none is named.
    """
    runs = load_runs(recipe, overrides)
    found = chosen(recipe, runs, phase)
    if len(found) > 1:
        raise several_runs(recipe, found)
    return with_first_vocabulary(runs, found[0], reporter)


def with_first_vocabulary(phases: Sequence[Phase], phase: Phase, reporter: Reporter) -> Config:
    """A phase's configuration for looking at its data before the phases ahead of it were trained: with the vocabulary
    that they would hand on."""
    config, first = phase.config, phases[0].config
    if phase.name == phases[0].name or config.vocabulary.path is not None:
        return config
    tasks = [task for task in tasks_of(first).values() if has_data(task)]
    path = prepare_vocabulary(first, workspace(first.run.root), tasks, reporter).path
    return config.model_copy(update={"vocabulary": config.vocabulary.model_copy(update={"path": str(path)})})


def _run_of(phase: Phase) -> Run:
    return workspace(phase.config.run.root).run(str(phase.config.run.name))


def _kept(config: Config) -> dict[str, object]:
    """What a phase hands on to the next: workspace, shape, vocabulary and the kind of optimizer."""
    shape = asdict(model_config(config.model, embedding_rows=ROWS_MULTIPLE))
    return {
        "run.root": config.run.root,
        **{f"model.{name}": value for name, value in shape.items() if name not in _CHOSEN_ANEW},
        "vocabulary.path": config.vocabulary.path,
        "optimizer.name": config.optimizer.name,
    }
