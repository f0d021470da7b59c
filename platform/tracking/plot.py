"""A picture of a run's losses, one curve for each task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mixtura.platform.tracking.records import Record, TrainPoint

_PREFIX = "loss/"
_COLORS = 10
_STYLES = ("-", "--", ":")
_SMOOTHED = 0.02
"""Share of the run that a point of a curve is the mean of."""


def loss_curves(records: Iterable[Record]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and losses by task; of a step that was repeated after a restart the last report counts."""
    points = {record.step: record for record in records if isinstance(record, TrainPoint)}
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for step in sorted(points):
        for name, value in points[step].metrics.items():
            if name.startswith(_PREFIX):
                steps, losses = curves.setdefault(name.removeprefix(_PREFIX), ([], []))
                steps.append(step)
                losses.append(value)
    return curves


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and of up to `width - 1` before it.

    >>> smoothed([4.0, 2.0, 0.0], width=2)
    [4.0, 3.0, 1.0]
    """
    starts = [max(0, at - width + 1) for at in range(len(values))]
    return [sum(values[start : at + 1]) / (at + 1 - start) for at, start in enumerate(starts)]


def plot_losses(records: Iterable[Record], title: str, path: Path) -> None:
    """Draw the curves of all tasks to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends: list[float] = []
    for number, (task, (steps, losses)) in enumerate(sorted(loss_curves(records).items())):
        color, style = f"C{number % _COLORS}", _STYLES[number // _COLORS % len(_STYLES)]
        axes.plot(steps, losses, color=color, alpha=0.15, linewidth=0.8)
        mean = smoothed(losses, max(1, round(len(losses) * _SMOOTHED)))
        axes.plot(steps, mean, color=color, linestyle=style, linewidth=1.8, label=task)
        ends.append(mean[-1])
    axes.set(title=title, xlabel="step", ylabel="cross entropy, nats per target token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if ends:
        # Beside the curves, in the order in which they end: with many tasks it would cover them.
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(ends)), key=lambda place: -ends[place])
        named = [handles[place] for place in order], [labels[place] for place in order]
        figure.legend(*named, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)
