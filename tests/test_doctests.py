"""Every example in a docstring is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import mixtura

MODULES = [
    module.name
    for module in pkgutil.walk_packages(mixtura.__path__, "mixtura.")
    if not module.name.endswith("__main__") and not module.ispkg
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
