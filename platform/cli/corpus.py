"""`mixtura corpus build` and `corpus report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mixtura.platform.cli.arguments import AsJson

app = typer.Typer(help="Raw web text to clean documents, the way C4 was made.", no_args_is_help=True)

_LARGE_BYTES, _MANY = 64_000_000, 1000
"""From which an estimate is made before the work begins."""

Output = Annotated[str, typer.Option("--output", help="Folder or bucket for the corpus.")]


@app.command()
def build(
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", help="A file, a quoted pattern, or a crawl's list of paths; may be repeated."),
    ],
    output: Output,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, for example rules.fewest_words=3.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Which corpus: see docs/how-to/corpus.md.")] = "c4",
    bad_words: Annotated[
        list[str] | None, typer.Option(help="LANGUAGE=FILE: a list of bad words; may be repeated.")
    ] = None,
    root: Annotated[
        str, typer.Option(help="Where the paths of a list are: a web server, a bucket or a folder.")
    ] = "https://data.commoncrawl.org",
    price: Annotated[float | None, typer.Option(help="Of an hour of a core, in any currency.", min=0)] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it will take, and end.")] = False,
) -> None:
    """Make a corpus of raw web text: WET, WARC, JSON lines, Parquet or text. The same command goes on where it stopped.

    Example: mixtura corpus build --input 'crawl/*.wet.gz' --output corpus --bad-words en=words.txt
    """
    from mixtura.platform.cli.output import print_lines
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.corpus.inputs import input_files
    from mixtura.platform.corpus.settings import corpus_settings
    from mixtura.platform.errors import RequestError
    from mixtura.platform.filesystems import absolute
    from mixtura.platform.orchestration.corpus import Build, build_corpus, check_request, described, read_manifest
    from mixtura.platform.orchestration.corpus_estimate import estimate as estimate_of
    from mixtura.platform.orchestration.corpus_tasks import corpus_tasks
    from mixtura.platform.recipe_files import merged, override_values

    values = merged(override_values(settings or []), {"bad_words": {"files": _lists(bad_words)}} if bad_words else {})
    chosen = corpus_settings(preset, values)
    files, reporter = input_files(inputs, root), TerminalReporter()
    check_request(files, chosen, output)
    if estimate:
        if (expected := estimate_of(files, chosen)) is None:
            raise RequestError("nothing can be read of the files that an estimate looks at: there is none")
        print_lines(*expected.lines(os.cpu_count() or 1, price))
        return
    large = len(files) >= _MANY or sum(file.size for file in files) >= _LARGE_BYTES
    expected = estimate_of(files, chosen) if large and read_manifest(output) is None else None
    with corpus_tasks(chosen.executor) as (map_jobs, cpus):
        print_lines(*(expected.lines(cpus, price) if expected else ()))
        seconds = expected.core_seconds if expected else {}
        manifest = build_corpus(Build(files, chosen, absolute(output), map_jobs, cpus, reporter, price, seconds))
    print_lines(*described(manifest, output))


@app.command()
def report(
    corpus: Annotated[str, typer.Argument(help="Folder or bucket of a corpus that is made.")],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file; report.html in the corpus's folder if not given.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Of an hour of a core, in any currency; the build's if not given.", min=0)
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and check its digest.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what became of the raw text: what was left out under which reason. Writes a page that opens offline, too.

    Example: mixtura corpus report corpus --price 0.04
    """
    from mixtura.platform.cli.output import print_json, print_lines, print_table
    from mixtura.platform.cli.progress import TerminalReporter
    from mixtura.platform.orchestration import corpus_report as reporting
    from mixtura.platform.orchestration.corpus_made import corpus_at, verify_shards
    from mixtura.platform.orchestration.reporter import SilentReporter

    page = reporting.page_place(corpus, output)
    made = corpus_at(corpus, reporting.FILES_SHOWN)
    price = made.price if price is None else price
    if verify:
        verify_shards(made, SilentReporter() if as_json else TerminalReporter())
    reporting.write_corpus_report(made, page, price, verified=verify)
    if as_json:
        print_json({**reporting.plain_report(made, price), "page": str(page)})
        return
    for title, rows in reporting.tables(made, price).items():
        print_table(title, rows, grouped=True)
    print_lines(*reporting.notes(made, verified=verify), str(page))


def _lists(given: list[str]) -> dict[str, str]:
    from mixtura.platform.errors import ConfigError

    for one in given:
        if not all(one.partition("=")):
            raise ConfigError(f"--bad-words {one!r} names no language: write LANGUAGE=FILE, for example en=words.txt")
    return {language: file for language, _, file in (one.partition("=") for one in given)}
