"""The winner of a search as a recipe: a YAML file that extends the recipe that was searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mixtura.platform.config import Config
from mixtura.platform.files import write_bytes_atomically
from mixtura.platform.recipe_files import is_file, load, merged, override_values, recipe_name
from mixtura.platform.search.space import Candidate
from mixtura.platform.workspace import in_submitted_job


def winner_file(folder: Path, recipe: str) -> Path:
    """Where the winner's recipe is written; named so that its runs get a name of their own."""
    return folder / f"{recipe_name(recipe)}-winner.yaml"


def write_winner(
    path: Path, recipe: str, overrides: Sequence[str], config: Config, winner: Candidate, said: str
) -> None:
    """Write the winner's mixture as a recipe. `said` is what is known of it, for a comment.

    The file extends the recipe, with the overrides of the search. Where that would not give the very settings that
    were searched (the recipe names whole mixtures, of which the winner weighs the single tasks), and where the recipe
    will not be there later (a submitted job's folder is a copy), all settings are written.
    """
    wanted = winner.applied(config)
    values = extending(recipe, overrides, winner)
    _write(path, values, said)
    is_copy = is_file(recipe) and in_submitted_job()
    if is_copy or load(str(path)).identity() != wanted.identity():
        values = wanted.to_dict()
        values["run"].pop("name")
        _write(path, values, said)
    if load(str(path)).run.name is not None:
        # The recipe names its run; the winner's must not go on in that one's folder.
        _write(path, merged(values, {"run": {"name": path.stem}}), said)


def extending(recipe: str, overrides: Sequence[str], winner: Candidate) -> dict[str, Any]:
    """A variant of the recipe: what the command line changed, except the search itself, and the winner's mixture."""
    given = override_values(overrides)
    given.pop("search", None)
    run = given.pop("run", {})
    run = {key: value for key, value in run.items() if key != "name"} if isinstance(run, Mapping) else {}
    parent = str(Path(recipe).resolve()) if is_file(recipe) else recipe
    return merged({"extends": parent, **({"run": run} if run else {}), **given}, {"mixture": winner.mixture()})


def _write(path: Path, values: Mapping[str, Any], said: str) -> None:
    comment = "".join(f"# {line}\n" for line in said.splitlines())
    text = yaml.safe_dump(dict(values), sort_keys=False, width=120)
    write_bytes_atomically(path, (comment + text).encode())
