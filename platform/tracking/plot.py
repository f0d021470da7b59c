"""Pictures of a run: its losses, one curve for each task, and other curves over its steps."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixtura.platform.tracking.records import Record, TrainPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[list[int], list[float]]
"""Steps and values."""

LOSS_AXIS = "cross entropy, nats per target token"
_PREFIX = "loss/"
_COLORS = 10
_STYLES = ("-", "--", ":")
_SMOOTHED = 0.02
"""Share of the run that a point of a curve is the mean of."""
_MOST_POINTS = 500
_FEW = 30
"""Points that are marked, since a curve of one or two could not be seen."""
_GREY = "#808890"
"""Read on a light and on a dark page."""


def loss_curves(records: Iterable[Record]) -> dict[str, Curve]:
    """Steps and losses by task; of a step that was repeated after a restart the last report counts."""
    points = {record.step: record for record in records if isinstance(record, TrainPoint)}
    curves: dict[str, Curve] = {}
    for step in sorted(points):
        for name, value in points[step].metrics.items():
            if name.startswith(_PREFIX):
                steps, losses = curves.setdefault(name.removeprefix(_PREFIX), ([], []))
                steps.append(step)
                losses.append(value)
    return curves


def curve_of(records: Iterable[Record], name: str) -> Curve:
    """Steps and values of one metric of the steps."""
    points = {record.step: record for record in records if isinstance(record, TrainPoint)}
    steps = [step for step in sorted(points) if name in points[step].metrics]
    return steps, [points[step].metrics[name] for step in steps]


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and of up to `width - 1` before it.

    >>> smoothed([4.0, 2.0, 0.0], width=2)
    [4.0, 3.0, 1.0]
    """
    starts = [max(0, at - width + 1) for at in range(len(values))]
    return [sum(values[start : at + 1]) / (at + 1 - start) for at, start in enumerate(starts)]


def thinned(curve: Curve, most: int = _MOST_POINTS) -> Curve:
    """The means of neighbouring points, where there are more than a picture can show.

    >>> thinned(([10, 20, 30, 40], [4.0, 2.0, 1.0, 3.0]), most=2)
    ([20, 40], [3.0, 2.0])
    """
    steps, values = curve
    width = -(-len(steps) // most)
    starts = range(0, len(steps), width)
    parts = [(steps[start : start + width], values[start : start + width]) for start in starts]
    return [part[-1] for part, _ in parts], [sum(part) / len(part) for _, part in parts]


def drawn(curves: Mapping[str, Curve], title: str, what: str, *, smooth: bool = False) -> Figure:
    """Curves over steps with their names; with `smooth` their running means, and pale what these are of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends: list[float] = []
    for number, (name, (steps, values)) in enumerate(sorted(curves.items())):
        color, style = f"C{number % _COLORS}", _STYLES[number // _COLORS % len(_STYLES)]
        shown = values
        if smooth:
            axes.plot(steps, values, color=color, alpha=0.15, linewidth=0.8)
            shown = smoothed(values, max(1, round(len(values) * _SMOOTHED)))
        marker = "o" if len(shown) <= _FEW else None
        axes.plot(steps, shown, color=color, linestyle=style, linewidth=1.8, label=name, marker=marker, markersize=4)
        ends.append(shown[-1])
    axes.set(title=title, xlabel="step", ylabel=what)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(ends) > 1 or smooth:
        # Beside the curves, in the order in which they end: with many tasks it would cover them.
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(ends)), key=lambda place: -ends[place])
        named = [handles[place] for place in order], [labels[place] for place in order]
        figure.legend(*named, loc="outside right upper", frameon=False)
    return figure


def plot_losses(records: Iterable[Record], title: str, path: Path) -> None:
    """Draw the losses of all tasks to a PNG file."""
    drawn(loss_curves(records), title, LOSS_AXIS, smooth=True).savefig(path, dpi=130)


def as_svg(curves: Mapping[str, Curve], title: str, what: str, *, smooth: bool = False) -> str:
    """The same as an element of a page, on whatever background that has."""
    from matplotlib import rc_context

    neutral = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _GREY)
    with rc_context({**neutral, "svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure = drawn({name: thinned(curve) for name, curve in curves.items()}, title, what, smooth=smooth)
        figure.set_size_inches(10, 4.4)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
