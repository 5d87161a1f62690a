"""Options that several commands take, so that they are called and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtyolo.config.model import LARGEST_SIDE, USUAL_SIDE

Model = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        help="A model file (.yaml, your own or one that ships with mtyolo), an official YOLOv5 checkpoint (.pt), "
        "or weights that mtyolo wrote (.safetensors).",
    ),
]
Data = Annotated[Path, typer.Option("--data", "-d", help="A data file (.yaml): images, labels, class names.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="For a model file: an official YOLOv5 checkpoint (.pt) of its detector, or weights that mtyolo wrote "
        "(.safetensors), to which it may add branches and classes. [dim]Default: its own.[/]",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Also import package.module:Class that the model file, or a teacher's, names: it runs that code.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--imgsz",
        min=1,
        max=LARGEST_SIDE,
        show_default=f"the size it was trained at, else {USUAL_SIDE}",
        help="Side of the square network input, in pixels; made a multiple of the largest stride.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, … auto: an accelerator if any.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write the result to this file; - is the standard output, then without tables."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Stop at the first image or label that can not be used, in place of skipping it."),
]
