"""Runs side by side as a picture: each metric over the epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtyolo.comparing.gains import Comparison, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
DOTS_PER_INCH = 120


def draw_curves(comparison: Comparison) -> NDArray[np.uint8]:
    """[H, W, 3] RGB: a panel a metric, a colour a line of the table; seeds of one have the same. Dotted: what gains are
    over."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(COLUMNS, len(comparison.metrics))
    rows = math.ceil(len(comparison.metrics) / columns)
    beneath = math.ceil(len(comparison.lines) / columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows + 0.25 * beneath), layout="constrained")
    canvas, handles = FigureCanvasAgg(figure), dict[str, Any]()
    for number, metric in enumerate(comparison.metrics, 1):
        axes = figure.add_subplot(rows, columns, number)
        for place, line in enumerate(comparison.lines):
            dotted = line in comparison.against.values()
            handles |= _curves(axes, line, metric, f"C{place % 10}", ":" if dotted else "-")
        axes.set(title=_plain(metric), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = [_plain(name) for name in handles]
    figure.legend(handles.values(), names, loc="outside lower center", ncols=columns, fontsize=9)
    figure.set_dpi(DOTS_PER_INCH)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plain(name: str) -> str:
    """Not a formula, where it has dollars; and with a mark for what is no letter."""
    return name.encode("utf-8", "replace").decode().replace("$", r"\$")


def _curves(axes: Axes, line: Line, metric: str, colour: str, style: str) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for run, chosen in zip(line.runs, line.chosen, strict=True):
        points = [(epoch["epoch"], epoch[metric]) for epoch in run.epochs if metric in epoch]
        if not points:
            continue
        (drawn[line.name],) = axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=1.2)
        if metric in chosen:
            axes.plot(chosen["epoch"], chosen[metric], "o", color=colour, markersize=5)
    return drawn
