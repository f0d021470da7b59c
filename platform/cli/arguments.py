"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Recipe = Annotated[str, typer.Argument(help="A packaged recipe's name, or a YAML file (with a slash or .yaml).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides, for example training.steps=500.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Root = Annotated[str, typer.Option("--root", help="The folder that holds the runs.")]
