"""Which checkpoints of a run have a name in the registry, written down beside them.

    runs/NAME/aliases.json      {"NAME@champion": 1200, "answers@production": 900}

Whoever gives a checkpoint a name writes it here first, and the tracker brings the file up to date with what people did
on MLflow's pages. Retention reads the file, so that it needs no registry to know what must stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mixtura.platform.files import exclusive_lock, write_json_atomically

_FILE = "aliases.json"


def read_aliases(run_path: Path) -> dict[str, int]:
    """The run's named checkpoints: "MODEL@ALIAS" to step."""
    path = run_path / _FILE
    return {name: int(step) for name, step in json.loads(path.read_text()).items()} if path.is_file() else {}


def set_alias(run_path: Path, model: str, alias: str, step: int | None) -> None:
    """Write down that an alias of a registered model names the checkpoint of a step, or with None, none of this run.

    Call it before the registry is told: a checkpoint that is deleted in between is one too few, one that is kept
    without need is none too many.
    """
    known = {name: step for name, step in _of_model(read_aliases(run_path), model).items() if name != alias}
    set_aliases(run_path, model, known if step is None else {**known, alias: step})


def set_aliases(run_path: Path, model: str, aliases: Mapping[str, int]) -> None:
    """Replace all that is known of one registered model's aliases; those of other models stay."""
    with exclusive_lock(run_path / ".aliases.lock", "the aliases are being written", wait=True):
        known = read_aliases(run_path)
        others = {name: step for name, step in known.items() if name.rpartition("@")[0] != model}
        now = {**others, **{f"{model}@{alias}": step for alias, step in aliases.items()}}
        if now != known:
            write_json_atomically(run_path / _FILE, now)


def _of_model(aliases: Mapping[str, int], model: str) -> dict[str, int]:
    split = {name: name.rpartition("@") for name in aliases}
    return {split[name][2]: step for name, step in aliases.items() if split[name][0] == model}
