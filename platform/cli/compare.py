"""`mixtura compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixtura.platform.cli.arguments import AsJson, Root


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Two runs or more, each by its best checkpoint; or RUN@STEP, RUN@last, ...")
    ],
    output: Annotated[Path | None, typer.Option(help="Write an HTML page that opens offline as well.")] = None,
    root: Root = "runs",
    as_json: AsJson = False,
) -> None:
    """Compare runs with the first of them: settings, mixtures, results, and which differences are larger than noise.

    Example: mixtura compare base other --output compared.html
    """
    from mixtura.platform.cli.output import print_json, print_lines, print_table
    from mixtura.platform.orchestration import compare as comparing
    from mixtura.platform.workspace import workspace

    found = comparing.compare(workspace(root), runs)
    if output is not None:
        comparing.write_comparison(found, output)
    if as_json:
        print_json({"results": found.results, "settings": found.settings, "mixture": found.mixture})
        return
    if found.settings:
        print_table("Settings that differ", found.settings)
    if found.mixture:
        print_table("Shares of the examples that were trained on", found.mixture)
    print_table("Results", found.results, notes="\n".join(found.notes()))
    if output is not None:
        print_lines(str(output))
