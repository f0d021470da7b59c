"""Every example in a docstring is true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("platform", "tasks", "models")


def modules() -> list[str]:
    """Names of all our modules, by their files: `platform/` is a namespace package, which pkgutil does not enter."""
    files = [path for room in ROOMS for path in sorted((REPOSITORY / room).rglob("*.py"))]
    names = [path.relative_to(REPOSITORY).with_suffix("").parts for path in files]
    return [".".join(("mixtura", *parts)).removesuffix(".__init__") for parts in names]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_examples_are_found() -> None:
    finder = doctest.DocTestFinder()
    found = [
        test.name for test in finder.find(importlib.import_module("mixtura.platform.recipe_files")) if test.examples
    ]
    assert "mixtura.platform.recipe_files.merged" in found
