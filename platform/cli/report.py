"""`mixtura report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixtura.platform.cli.arguments import Root


def report(
    run: Annotated[str, typer.Argument(help="A training run, whether or not it is done.")],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file; report.html in the run's folder if not given.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of one worker for an hour, in any currency.", min=0)] = None,
    root: Root = "runs",
) -> None:
    """Write one HTML file about a run, which opens offline: results, losses, mixture, answers, cost.

    Example: mixtura report quickstart
    """
    from mixtura.platform.cli.output import print_lines
    from mixtura.platform.orchestration.report import write_report
    from mixtura.platform.workspace import workspace

    print_lines(str(write_report(workspace(root), run, output, price)))
