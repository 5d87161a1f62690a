"""`mtyolo show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtyolo.cli import options
from mtyolo.cli.output import say

if TYPE_CHECKING:
    from rich.table import Table

    from mtyolo.model import Model
    from mtyolo.summary import Summary

EXAMPLES = (
    "mtyolo show yolov5n.yaml",
    "mtyolo show yolov5n-lite0.yaml --data coco_mini.yaml --weights yolov5n.pt --plan align-freeze-unfreeze",
)

Trained = Mapping[str, Mapping[str, int]]
"""Column -> part -> parameters that train."""
LEAST_WIDTH = 80
"""Letters: in a narrower terminal the table is broken, but its words are there."""


def show(
    model: Annotated[
        Path,
        typer.Argument(
            callback=options.model_there, help="A model file (.yaml), an official checkpoint (.pt) or .safetensors."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            callback=options.data_there,
            help="A data file: the model is built for its classes and points.",
        ),
    ] = None,
    imgsz: options.ImageSize = None,
    plan: Annotated[
        str | None, typer.Option(help="A plan file, or one that ships with mtyolo: shows what trains in each stage.")
    ] = None,
    weights: options.Weights = None,
    trust: options.Trust = False,
) -> None:
    from rich.console import Console

    from mtyolo.opening import open_model
    from mtyolo.summary import summarise, trained_parameters

    opened = open_model(model, data=data, weights=weights, trust=trust)
    summary = summarise(opened, imgsz)
    trained = {"trained": trained_parameters(opened)} if plan is None else _by_stage(opened, plan)
    title = f"{model.name}: {len(summary.names)} classes, {summary.size}x{summary.size} pixels"
    console = Console(highlight=False)
    console.width = max(console.width, LEAST_WIDTH)
    console.print(_table(title, summary, trained))
    if summary.entries:
        console.print("Features enter here:")
    for entry in summary.entries:
        console.print(f"  {entry}")
    if summary.pruned:
        console.print(f"Not built, because nothing needs them: layers {', '.join(map(str, summary.pruned))}")


def _by_stage(model: Model, plan: str) -> Trained:
    from mtyolo.config.plan import read_plan
    from mtyolo.config.training import TrainConfig
    from mtyolo.summary import trained_parameters
    from mtyolo.training.plan_checks import check_stage, missing_teacher
    from mtyolo.training.stages import freeze, plan_stages

    chosen, columns = read_plan(plan), {}
    for learner in (*chosen.assistants, chosen):
        if weights := missing_teacher(learner, chosen):
            say(f"warning: plan: teacher {weights}: no such file, and training would ask for it")
    for stage in plan_stages(chosen, TrainConfig(), model):
        freeze(model, stage)
        check_stage(stage, model)
        columns[f"in {stage.name!r}"] = trained_parameters(model)
    return columns


def _table(title: str, summary: Summary, trained: Trained) -> Table:
    from rich.table import Table

    table = Table(title=title, show_footer=True)
    table.add_column("part", "all")
    table.add_column("output", no_wrap=True)
    table.add_column("parameters", f"{sum(part.parameters for part in summary.parts):,}", justify="right")
    for column, counts in trained.items():
        table.add_column(column, f"{sum(counts.values()):,}", justify="right")
    table.add_column("GFLOPs", f"{sum(part.flops for part in summary.parts) / 1e9:.2f}", justify="right")
    for part in summary.parts:
        shapes = "\n".join("x".join(map(str, shape)) for shape in part.shapes)
        shares = [_trained(column[part.name], part.parameters) for column in trained.values()]
        table.add_row(part.name, shapes, f"{part.parameters:,}", *shares, f"{part.flops / 1e9:.2f}")
    return table


def _trained(count: int, of: int) -> str:
    if of == 0:
        return "-"
    return "all" if count == of else f"{count:,}" if count else "frozen"
