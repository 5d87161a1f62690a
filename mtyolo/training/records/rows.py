"""What a run leaves to read: results.csv and results.png."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mtyolo.files import replacing, write_whole

Row = dict[str, float | int | str | None]
"""One epoch: "epoch", "stage", "loss/…", "weight/…", "detect/AP", …"""


PREFIXES = ("loss/", "weight/", "val/")


class Means:
    """Means of named values over the steps in which they occur."""

    def __init__(self, sums: Mapping[str, tuple[float, int]] | None = None) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        for name, (total, count) in (sums or {}).items():
            self.sums[name], self.counts[name] = total, count

    def add(self, values: Mapping[str, Tensor | float], prefix: str = "") -> None:
        for name, value in values.items():
            self.sums[prefix + name] += float(value.detach() if isinstance(value, Tensor) else value)
            self.counts[prefix + name] += 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def as_dict(self) -> dict[str, tuple[float, int]]:
        return {name: (total, self.counts[name]) for name, total in self.sums.items()}


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows, with the columns of all of them; by way of a temporary name."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _rounded(value) for name, value in row.items()} for row in rows)
    write_whole(path, text.getvalue().encode())


def plot_results(rows: Sequence[Row], path: Path) -> None:
    """Losses, weights and metrics over the epochs, with the stages' boundaries."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = {
        "loss of each task": [name for name in _columns(rows) if name.startswith("loss/") and "." not in name],
        "loss components": [name for name in _columns(rows) if name.startswith("loss/") and "." in name],
        "alignment of validation pictures": [name for name in _columns(rows) if name.startswith("val/")],
        "weight in the balance": [name for name in _columns(rows) if name.startswith("weight/")],
        "average precision, mean OKS": [name for name in _columns(rows) if name.endswith(("/AP", "/OKS"))],
    }
    shown = {title: names for title, names in groups.items() if names}
    if not shown:
        return
    figure = Figure(figsize=(6 * len(shown), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, names) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(1, len(shown), number)
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
            label = name.split("/", 1)[1] if name.startswith(PREFIXES) else name
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
        for epoch, stage in _boundaries(rows):
            axes.axvline(epoch, color="0.6", linestyle="--", linewidth=1)
            axes.text(epoch, 1.0, f" {stage}", transform=axes.get_xaxis_transform(), va="top", fontsize=8, color="0.4")
        axes.set(title=title, xlabel="epoch")
        axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))


def _columns(rows: Sequence[Row]) -> list[str]:
    """Those with a number in some row: where validation has nothing to find, a metric has none."""
    found = (column for row in rows for column, value in row.items() if isinstance(value, (int, float)))
    return list(dict.fromkeys(found))


def _boundaries(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Where each stage begins, between two epochs, and its name."""
    named = [row for row in rows if row.get("stage")]
    firsts = [row for number, row in enumerate(named) if number == 0 or row["stage"] != named[number - 1]["stage"]]
    return [(float(row["epoch"] or 0) - 0.5, str(row["stage"])) for row in firsts]


def _rounded(value: float | int | str | None) -> float | int | str | None:
    if isinstance(value, float):
        return "" if math.isnan(value) else float(f"{value:.6g}")
    return value


__all__ = ["Means", "Row", "plot_results", "write_csv"]
