"""`mixtura mixture`."""

from __future__ import annotations

from typing import Annotated

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Recipe

app = typer.Typer(help="What a mixture means.", no_args_is_help=True)


@app.command("show")
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    temperature: Annotated[float | None, typer.Option(help="Try this temperature instead.")] = None,
    maximum: Annotated[int | None, typer.Option(help="Try this cap K on the examples of a task instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show rates, shares of examples and tokens, and epochs of each task over the run.

    Example: mixtura mixture show quickstart --temperature 4
    """
    from mixtura.platform import config
    from mixtura.platform.cli.output import bar, print_json, print_table
    from mixtura.platform.orchestration.mixture import mixture_table, readable, stream_spec
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.workspace import workspace

    given = list(overrides or [])
    given += [f"mixture.temperature={temperature}"] if temperature is not None else []
    given += [f"mixture.maximum={maximum}"] if maximum is not None else []
    tree = config.load(recipe, given)
    prepared = prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
    rows = mixture_table(tree, stream_spec(tree, prepared))
    if as_json:
        print_json(rows)
        return
    shown = [{**row, "": bar(whole["share of examples"])} for row, whole in zip(readable(rows), rows, strict=True)]
    mixture = tree.mixture
    title = f"{mixture.rates} rates, temperature {mixture.temperature:g}, K {mixture.maximum}"
    print_table(f"Mixture of {recipe} over {tree.training.steps} steps ({title})", shown)
