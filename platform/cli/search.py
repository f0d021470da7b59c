"""`mixtura search`."""

from __future__ import annotations


def search() -> None:
    """Search."""
