"""Options that several commands take, so that they are called and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtyolo.config.model import LARGEST_SIDE, USUAL_SIDE
from mtyolo.errors import ConfigError
from mtyolo.files import WEIGHT_SUFFIXES, existing, model_file


# Files that are not there are named at once, and not after seconds in which libraries are imported.
def model_there(path: Path | None) -> Path | None:
    if path is not None:
        (existing if path.suffix in WEIGHT_SUFFIXES else model_file)(path)
    return path


def weights_there(path: Path | None) -> Path | None:
    return None if path is None else existing(path)


def data_there(path: Path | None) -> Path | None:
    if path is not None and not path.exists():
        raise ConfigError(f"{path}: no such file (looked at {path.absolute()})")
    return path


Model = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        callback=model_there,
        help="A model file (.yaml, your own or one that ships with mtyolo), an official YOLOv5 checkpoint (.pt), "
        "or weights that mtyolo wrote (.safetensors); for val and predict also what export wrote (.onnx).",
    ),
]
Data = Annotated[
    Path, typer.Option("--data", "-d", callback=data_there, help="A data file (.yaml): images, labels, class names.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        callback=weights_there,
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
