"""Reading YAML that people write: recipes and task files. Mistakes that YAML would pass over are answered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mixtura.platform.errors import ConfigError, UnknownNameError

SPLITS = ("train", "validation", "test")
"""Splits that files may be named for."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_yaml(data: bytes | str, what: str) -> Any:
    """The value of a YAML text; ConfigError with the place where it is none."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} cannot be read: {error}") from None


def read_task_file(path: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """A task file as its definition and the files it reads, by split; paths in it count from its folder."""
    if not path.is_file():
        raise ConfigError(f"task file {path} is not there; a task without a slash or .yaml in it is a registered one")
    values = read_yaml(path.read_bytes(), f"task file {path}")
    if not isinstance(values, dict) or "name" not in values:
        raise ConfigError(f"task file {path} must be a mapping with a name, a source, inputs and targets")
    source = values.pop("source", None)
    if not isinstance(source, Mapping) or not source:
        raise ConfigError(
            f"task file {path}: source must name files by split, for example source: {{train: train.csv}}"
        )
    files = files_by_split(source, f"task file {path}: source")
    return values, {split: [_beside(one, path.parent) for one in names] for split, names in files.items()}


def _beside(name: str, folder: Path) -> str:
    return name if "://" in name else str((folder / Path(name).expanduser()).absolute())


def files_by_split(given: Mapping[Any, Any], where: str) -> dict[str, list[str]]:
    """Files named for splits, each a string or a list of them; another split or something else is refused.

    >>> files_by_split({"train": "a.csv", "test": ["b.csv", "c.csv"]}, "source")
    {'train': ['a.csv'], 'test': ['b.csv', 'c.csv']}
    """
    files = {}
    for split, names in given.items():
        if split not in SPLITS:
            raise UnknownNameError("split", str(split), SPLITS, f" ({where})")
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) and name for name in listed):
            raise ConfigError(f"{where}.{split} is {names!r}: name a file, or a list of files")
        files[str(split)] = listed
    return files
