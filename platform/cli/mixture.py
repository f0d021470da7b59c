"""`mixtura mixture`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Phase, Recipe

app = typer.Typer(help="What a mixture means.", no_args_is_help=True)


@app.command("list")
def list_mixtures(as_json: AsJson = False) -> None:
    """List the named mixtures, which a recipe may name among its tasks.

    Example: mixtura mixture list
    """
    from mixtura.platform.cli.output import print_table
    from mixtura.tasks import named_mixtures

    rows = [
        {
            "mixture": one.name,
            "parts": ", ".join(name for name, weight in one.parts.items() if weight),
            "description": one.description,
        }
        for one in named_mixtures().values()
    ]
    print_table("Mixtures", rows, as_json=as_json)


@app.command("show")
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    phase: Phase = None,
    temperature: Annotated[float | None, typer.Option(help="Try this temperature instead.")] = None,
    maximum: Annotated[int | None, typer.Option(help="Try this cap K on the examples of a task instead.")] = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Prepare the data, for what is drawn, shares of tokens and epochs of the run."),
    ] = False,
    run: Annotated[
        str | None, typer.Option(help="Beside it, what this run has trained on so far, by its newest checkpoint.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw the shares to this PNG file, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the rate and the share of each task; with --tokens, or where sizes must be counted, from the data itself.

    Example: mixtura mixture show quickstart --tokens --chart mixture.png
    """
    from mixtura.platform.cli.output import bar, print_json, print_lines, print_table
    from mixtura.platform.orchestration.mixture import SHARES, benchmark_shares, mixture_of
    from mixtura.platform.orchestration.mixture_chart import plot_mixture, trained_shares
    from mixtura.platform.orchestration.phases import single
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.select import newest_state
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.workspace import workspace

    given = list(overrides or [])
    given += [f"mixture.temperature={temperature}"] if temperature is not None else []
    given += [f"mixture.maximum={maximum}"] if maximum is not None else []
    read_data = tokens or run is not None
    tree = single(recipe, given, phase, SilentReporter()) if read_data else load_recipe(recipe, given, phase)
    space = workspace(tree.run.root)
    state = None if run is None else newest_state(space.existing_run(run))
    rows, notes = mixture_of(tree, space, read_data=read_data)
    if state is not None:
        rows = trained_shares(rows, state)
    title = (
        f"Mixture of {recipe} over {tree.training.steps} steps "
        f"({tree.mixture.rates} rates, temperature {tree.mixture.temperature:g}, K {tree.mixture.maximum})"
    )
    if chart is not None:
        plot_mixture(rows, title, chart)
    if as_json:
        print_json(rows)
        return
    widest = max(row["share of examples"] for row in rows)
    barred = ("share of examples", "drawn", "trained")

    def cell(name: str, value: Any) -> Any:
        if name not in SHARES or value is None:
            return value
        return f"{value:6.1%} {bar(value / widest, 12)}" if name in barred else f"{value:.1%}"

    shown = [{_HEADS.get(name, name): cell(name, value) for name, value in row.items()} for row in rows]
    print_table(title, shown, notes="\n".join(filter(None, [benchmark_shares(tree, rows), *notes])))
    if chart is not None:
        print_lines(f"chart: {chart}")


_HEADS = {"share of examples": "requested"}


@app.command("overlap")
def overlap(
    recipe: Recipe,
    overrides: Overrides = None,
    phase: Phase = None,
    ngram: Annotated[int, typer.Option(help="Words in a row that must be the same.", min=1)] = 13,
    as_json: AsJson = False,
) -> None:
    """Show which evaluation examples occur in the mixture's unsupervised text.

    Example: mixtura mixture overlap quickstart --ngram 13
    """
    from mixtura.platform.cli.output import print_json, print_lines, print_table
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.orchestration.overlap import (
        as_plain,
        check_overlap,
        compared,
        readable_rows,
        readable_samples,
        readable_texts,
    )
    from mixtura.platform.orchestration.phases import single
    from mixtura.platform.orchestration.prepare import prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.train import executor_for
    from mixtura.platform.workspace import workspace

    reporter = SilentReporter() if as_json else TerminalReporter()
    tree = single(recipe, overrides or [], phase, reporter)
    compared(tree)
    with executor_for(tree) as executor:
        prepared = prepare(tree, workspace(tree.run.root), executor.map_shards, reporter)
        report = check_overlap(tree, prepared, executor.map_shards, reporter, ngram)
    if as_json:
        print_json(as_plain(report))
        return
    title = f"Evaluation examples of {recipe} with {ngram} words in a row of its unsupervised text"
    print_table(title, readable_rows(report), notes="\n".join(readable_texts(report)))
    print_lines(*readable_samples(report))
