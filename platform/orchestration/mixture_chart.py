"""A mixture as a chart: what was requested of each task, and what is drawn, on a terminal or as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixtura.platform.orchestration.mixture import SHARES


def plot_mixture(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the shares of all tasks side by side to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = {column: name for column, name in SHARES.items() if any(row.get(column) is not None for row in rows)}
    figure = Figure(figsize=(9, 1.2 + len(rows) * (0.16 + 0.14 * len(series))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = 0.8 / len(series)
    for place, (column, name) in enumerate(series.items()):
        at = [number - 0.4 + height * (place + 0.5) for number in range(len(rows))]
        shares = [100 * (row[column] or 0.0) for row in rows]
        bars = axes.barh(at, shares, height * 0.9, label=name, color=f"C{place}")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), [row["task"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="percent")
    figure.suptitle(title, fontsize="medium")
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(series), frameon=False)
    figure.savefig(path, dpi=130)


def trained_shares(rows: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table with what a run has stepped on, from the state of a checkpoint: shares of examples, and epochs."""
    examples: Mapping[str, int] = state["trained"]["examples"]
    total = max(1, sum(examples.values()))
    return [
        {
            **row,
            "trained": examples.get(row["task"], 0) / total,
            "epochs trained": state["epochs"].get(row["task"]),
        }
        for row in rows
    ]
