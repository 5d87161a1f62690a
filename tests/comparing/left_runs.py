"""What a run leaves, as far as a comparison looks at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mtyolo.training.records.rows import Row, write_csv

Leave = Callable[..., Path]
"""The fixture `leave`."""


def leave_run(folder: Path, metrics: tuple[dict[str, float], ...], losses: tuple[str, ...]) -> Path:
    """metrics: of each epoch, from number 0 on; its fitness is the mean of what ends in AP."""
    rows: list[Row] = []
    for number, found in enumerate(metrics):
        judged = [value for key, value in found.items() if key.endswith("/AP")]
        fitness = {"fitness": sum(judged) / len(judged)} if judged else {}
        learned = {f"loss/{loss}": 1.0 for loss in losses}
        rows.append({"epoch": number, "stage": "joint", **found, **fitness, **learned})
    folder.mkdir(parents=True)
    write_csv(rows, folder / "results.csv")
    return folder
