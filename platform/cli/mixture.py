"""`mixtura mixture`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mixtura.platform.cli.arguments import AsJson, Overrides, Recipe

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
    temperature: Annotated[float | None, typer.Option(help="Try this temperature instead.")] = None,
    maximum: Annotated[int | None, typer.Option(help="Try this cap K on the examples of a task instead.")] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Prepare the data, for shares of tokens and for epochs over the run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the rate and the share of each task; with --tokens, or where sizes must be counted, from the data itself.

    Example: mixtura mixture show quickstart --temperature 4
    """
    from mixtura.platform.cli.output import bar, print_json, print_table
    from mixtura.platform.orchestration.mixture import (
        benchmark_shares,
        declared_table,
        mixture_table,
        needs_data,
        readable,
        size_differences,
        stream_spec,
    )
    from mixtura.platform.orchestration.prepare import map_inline, prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.workspace import workspace

    given = list(overrides or [])
    given += [f"mixture.temperature={temperature}"] if temperature is not None else []
    given += [f"mixture.maximum={maximum}"] if maximum is not None else []
    tree = load_recipe(recipe, given)
    rows: list[dict[str, Any]]
    if tokens or needs_data(tree):
        prepared = prepare(tree, workspace(tree.run.root), map_inline, SilentReporter())
        rows = mixture_table(tree, stream_spec(tree, prepared))
        notes = size_differences(tree, rows)
    else:
        rows = declared_table(tree)
        notes = ["from declared sizes, without reading any data; --tokens prepares it for shares of tokens and epochs"]
    if as_json:
        print_json(rows)
        return
    shown = [{**row, "": bar(whole["share of examples"])} for row, whole in zip(readable(rows), rows, strict=True)]
    mixture = tree.mixture
    title = f"{mixture.rates} rates, temperature {mixture.temperature:g}, K {mixture.maximum}"
    notes = [*filter(None, [benchmark_shares(tree, rows)]), *notes]
    print_table(f"Mixture of {recipe} over {tree.training.steps} steps ({title})", shown, notes="\n".join(notes))


@app.command("overlap")
def overlap(
    recipe: Recipe,
    overrides: Overrides = None,
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
    from mixtura.platform.orchestration.prepare import prepare
    from mixtura.platform.orchestration.reporter import SilentReporter
    from mixtura.platform.orchestration.tasks import load_recipe
    from mixtura.platform.orchestration.train import executor_for
    from mixtura.platform.workspace import workspace

    tree = load_recipe(recipe, overrides or [])
    compared(tree)
    reporter = SilentReporter() if as_json else TerminalReporter()
    with executor_for(tree) as executor:
        prepared = prepare(tree, workspace(tree.run.root), executor.map_shards, reporter)
        report = check_overlap(tree, prepared, executor.map_shards, reporter, ngram)
    if as_json:
        print_json(as_plain(report))
        return
    title = f"Evaluation examples of {recipe} with {ngram} words in a row of its unsupervised text"
    print_table(title, readable_rows(report), notes="\n".join(readable_texts(report)))
    print_lines(*readable_samples(report))
