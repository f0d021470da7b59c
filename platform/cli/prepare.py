"""`mixtura prepare`."""

from __future__ import annotations

from mixtura.platform.cli.arguments import Overrides, Recipe


def prepare(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prepare the vocabulary and the token caches of a recipe; only what is missing is made.

    Example: mixtura prepare quickstart
    """
    from mixtura.platform.cli.output import print_lines
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.data.filesystems import shown
    from mixtura.platform.orchestration.prepare import prepare as prepare_caches
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.orchestration.train import executor_for
    from mixtura.platform.workspace import workspace

    tree = load_recipe(recipe, overrides or [])
    space = workspace(tree.run.root)
    with executor_for(tree) as executor:
        prepared = prepare_caches(tree, space, executor.map_shards, TerminalReporter())
    for name, place in prepared.caches.items():
        print_lines(f"{name}: {shown(place)}")
