"""A picture of a stream from which parts leave one after the other, until nothing is left: where everything went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

_TRUNK_SHARE = 0.27
_BEND = 8
_ROW = 44
_HEAD = 10
_THINNEST = 1.5


@dataclass(frozen=True)
class Branch:
    """What leaves the stream at one place."""

    name: str
    amount: int
    note: str
    kind: Literal["lost", "cut", "kept"]
    """Gives the color."""


def flow_svg(branches: Sequence[Branch], title: str, width: int) -> str:
    """The stream from top to bottom, as wide as what is left in it, each branch to the right as thick as its share.

    Colors are the page's. What is drawn for a wide page is too small on a phone: give that one of its own width.
    """
    whole = max(1, sum(branch.amount for branch in branches))
    scale = _TRUNK_SHARE * width / whole
    y, left = float(_HEAD), float(whole)
    edge = [f"M0 0 L{left * scale:.1f} 0 L{left * scale:.1f} {_HEAD}"]
    shapes: list[str] = []
    labels: list[str] = []
    for branch in branches:
        thick = branch.amount * scale
        row = max(_ROW, thick + 2 * _BEND, thick / 2 + _ROW)
        x, left = left * scale, left - branch.amount
        edge += [f"L{left * scale:.1f} {y:.1f}", f"L{left * scale:.1f} {y + row:.1f}"]
        end = _TRUNK_SHARE * width + 3 * _BEND
        shapes.append(_bent(branch.kind, x, y, max(thick, _THINNEST), end))
        labels += _label(branch, branch.amount / whole, end + _BEND, y + _BEND + thick / 2)
        y += row
    trunk = f'<path class="trunk" d="{" ".join([*edge, f"L0 {y:.1f}", "Z"])}"/>'
    size = f'width="{width}" height="{y:.0f}" viewBox="0 0 {width} {y:.0f}"'
    head = f'<svg class="flow" xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">'
    return "".join([head, trunk, *shapes, *labels, "</svg>"])


def _bent(kind: str, x: float, y: float, thick: float, end: float) -> str:
    """A band that comes from above with its right side at `x` and goes to the right until `end`."""
    inner, outer = _BEND, _BEND + thick
    turn = f"M{x - thick:.1f} {y:.1f} A{outer:.1f} {outer:.1f} 0 0 0 {x + inner:.1f} {y + outer:.1f}"
    back = f"L{x + inner:.1f} {y + inner:.1f} A{inner} {inner} 0 0 1 {x:.1f} {y:.1f}"
    return f'<path class="{kind}" d="{turn} L{end:.1f} {y + outer:.1f} L{end:.1f} {y + inner:.1f} {back} Z"/>'


def _label(branch: Branch, share: float, x: float, middle: float) -> Iterator[str]:
    yield f'<text class="name" x="{x:.1f}" y="{middle:.1f}">{escape(branch.name)}</text>'
    yield f'<text class="note" x="{x:.1f}" y="{middle + 16:.1f}">{share:.2%}: {escape(branch.note)}</text>'
