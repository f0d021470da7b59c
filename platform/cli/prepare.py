"""`mixtura prepare`."""

from __future__ import annotations

from mixtura.platform.cli.arguments import Overrides, Phase, Recipe


def prepare(recipe: Recipe, overrides: Overrides = None, phase: Phase = None) -> None:
    """Prepare the vocabulary and the token caches of a recipe, for all its phases; only what is missing is made.

    Example: mixtura prepare quickstart
    """
    from mixtura.platform.cli.output import print_lines
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.filesystems import shown
    from mixtura.platform.orchestration.phases import with_first_vocabulary
    from mixtura.platform.orchestration.prepare import prepare as prepare_caches
    from mixtura.platform.orchestration.tasks import chosen, load_runs
    from mixtura.platform.orchestration.train import executor_for
    from mixtura.platform.workspace import workspace

    runs, reporter = load_runs(recipe, overrides or []), TerminalReporter()
    for run in chosen(recipe, runs, phase):
        tree = with_first_vocabulary(runs, run, reporter)
        with executor_for(tree) as executor:
            prepared = prepare_caches(tree, workspace(tree.run.root), executor.map_shards, reporter)
        for name, place in prepared.caches.items():
            print_lines(f"{name}: {shown(place)}")
