"""What commands print: tables that are JSON on request, and messages for people on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixtura.platform.visible import visible

_PLAIN_WIDTH = 160

console = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


def formatted(value: Any, *, grouped: bool = False) -> str:
    """A cell's text: four significant digits for numbers that are not whole, `-` for nothing.

    >>> [formatted(value) for value in (None, 3, 0.123456, 12.0, "x")], formatted(123456, grouped=True)
    (['-', '3', '0.1235', '12', 'x'], '123,456')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if grouped and isinstance(value, int) else visible(str(value))


def print_table(
    title: str, rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, notes: str = "", grouped: bool = False
) -> None:
    """Rows of named cells as a table, or as one JSON list; `grouped` parts the digits of large whole numbers."""
    if as_json:
        print_json(list(rows))
        return
    table = Table(
        title=Text(title) if title else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    names = list(rows[0]) if rows else []
    for name in names:
        number = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(formatted(row[name], grouped=grouped)) for name in names))
    console.print(table)
    if notes:
        console.print(Text(notes, style="dim"))


def print_json(value: Any) -> None:
    """One JSON value on standard output; a number that JSON has no word for is null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_lines(*lines: str) -> None:
    """Plain lines on standard output, unwrapped, so that commands in them can be copied."""
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def bar(share: float, width: int = 30) -> str:
    """A share as a bar of blocks.

    >>> bar(0.5, width=4)
    '██'
    """
    eighths = round(share * width * 8)
    parts: list[str] = ["", *"▏▎▍▌▋▊▉"]
    return "█" * (eighths // 8) + parts[eighths % 8]
