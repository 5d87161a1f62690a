"""`mtyolo demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtyolo.cli import options
from mtyolo.config.model import LARGEST_SEED

EXAMPLES = ("mtyolo demo", "mtyolo demo --out /tmp/demo --epochs 10")


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the drawn data, the training, and the pictures.",
            show_default="the next free of runs/demo, demo2, …",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="More is better, and longer.")] = 25,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the drawn data and the training.")] = 0,
    device: options.Device = "auto",
) -> None:
    from rich import print as show

    from mtyolo.demonstration import demonstrate

    left = demonstrate(out, epochs=epochs, seed=seed, device=device, say=typer.echo)
    show(left.metrics.table())
    typer.echo(f"labels of a training batch:  {left.labels}")
    typer.echo(f"truth beside prediction:     {left.comparison}")
    typer.echo(f"predictions:                 {left.predictions[0].parent}/")
    typer.echo(f"weights, for mtyolo predict: {left.weights}")
