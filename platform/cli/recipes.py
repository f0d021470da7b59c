"""`mixtura recipes`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Phase, Recipe

app = typer.Typer(help="Recipes that come with the package, and what any recipe says.", no_args_is_help=True)


@app.command("list")
def list_recipes(
    beginning: Annotated[str, typer.Argument(help="Only names that begin so, for example paper/mixing.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the packaged recipes with their steps, the rows of a batch, and the tokens of a step: encoder positions, or
    all positions of a model of one stack. A recipe of several phases has a line for each.

    Example: mixtura recipes list paper/mixing
    """
    from mixtura.platform.cli.output import print_table
    from mixtura.platform.recipe_files import description, load_phases, recipe_names

    rows: list[dict[str, Any]] = []
    for recipe in recipe_names():
        if not recipe.startswith(beginning):
            continue
        for run in load_phases(recipe):
            training, data = run.config.training, run.config.data
            row = data.inputs_length
            if run.config.features != "encoder_decoder":
                row += data.targets_length
            rows.append(
                {
                    "recipe": recipe,
                    "phase": run.name,
                    "description": description(recipe),
                    "steps": training.steps,
                    "batch": training.global_batch_size,
                    "tokens a step": training.global_batch_size * row,
                    "tokens": training.steps * training.global_batch_size * row,
                }
            )
    print_table("Recipes", rows, as_json=as_json)


@app.command("show")
def show(recipe: Recipe, overrides: Overrides = None, phase: Phase = None, as_json: AsJson = False) -> None:
    """Print every setting of a recipe, with what it extends and with overrides, as YAML.

    Of a recipe with phases each phase is printed whole; of any other, what is printed is a recipe itself.

    Example: mixtura recipes show paper/baseline model.size=small
    """
    import sys

    import yaml

    from mixtura.platform.cli.output import print_json
    from mixtura.platform.orchestration.tasks import chosen
    from mixtura.platform.recipe_files import load_phases

    trees = {run.name: run.config.to_dict() for run in chosen(recipe, load_phases(recipe, overrides or []), phase)}
    values = {"phases": trees} if len(trees) > 1 else next(iter(trees.values()))
    if as_json:
        print_json(values)
    else:
        sys.stdout.write(yaml.safe_dump(values, sort_keys=False, width=120))
