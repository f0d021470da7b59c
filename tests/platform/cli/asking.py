"""How tests of the command line see a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Answer:
    """What a command printed, and its exit code."""

    code: int
    output: str
    message: str


Ask = Callable[..., Answer]
