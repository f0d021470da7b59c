"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Recipe = Annotated[
    str,
    typer.Argument(
        help="A packaged recipe's name (`mixtura recipes list`), or a YAML file: a name with a slash or .yaml is a "
        "file's, unless there is no such file and a packaged recipe is called so, as paper/baseline is."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides, for example training.steps=500.", show_default=False)
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        help="RUN@STEP, RUN@best, RUN@best-TASK, RUN@last, models:/NAME@ALIAS, OWNER/NAME of the hub, or a folder."
    ),
]
Phase = Annotated[str | None, typer.Option("--phase", help="One phase of a recipe that has several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Root = Annotated[str, typer.Option("--root", help="The folder that holds the runs.")]
