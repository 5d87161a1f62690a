"""`mtyolo export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtyolo.cli import options
from mtyolo.cli.output import say
from mtyolo.files import EXPORTED, WEIGHT_SUFFIXES, exported_name

if TYPE_CHECKING:
    from rich.table import Table

    from mtyolo.exporting.export import Export

EXAMPLES = (
    "mtyolo export --model runs/train/best.safetensors",
    "mtyolo export --model runs/train/best.safetensors --out head.onnx --inputs features --imgsz 320 --batch 1",
    "mtyolo val --model runs/train/best.onnx --data coco_mini.yaml",
)


def out_named(path: Path | None) -> Path | None:
    return None if path is None else exported_name(path)


def export(
    model: options.Model,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            callback=out_named,
            show_default="beside the weights, as .onnx; here for a model file",
            help="The file to write.",
        ),
    ] = None,
    imgsz: options.ImageSize = None,
    batch: Annotated[
        int | None, typer.Option(min=1, show_default="any number", help="Images at once, the same number always.")
    ] = None,
    inputs: Annotated[
        Literal["images", "features"] | None,
        typer.Option(
            show_default="images, where the model takes them",
            help="What goes in: images, or features, for what comes behind the extractor.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(min=1, show_default="torch's", help="Version of ONNX's operators, for older runtimes."),
    ] = None,
    weights: options.Weights = None,
    features: Annotated[
        Path | None,
        typer.Option(help="A store of the extractor's features, which then need not be there: features go in."),
    ] = None,
    trust: options.Trust = False,
) -> None:
    from rich import print as show

    from mtyolo.exporting.export import export as write
    from mtyolo.opening import open_model

    path = out or Path(model if model.suffix in WEIGHT_SUFFIXES else model.name).with_suffix(EXPORTED)
    opened = open_model(model, weights=weights, features=features, trust=trust)
    if model.suffix not in WEIGHT_SUFFIXES and weights is None and opened.config.detector.weights is None:
        say(f"note: {model} names no weights of its detector: what is exported has learned nothing")
    say(f"{path}: following the network; this takes some seconds")
    written = write(opened, path, size=imgsz, batch=batch, inputs=inputs, opset=opset)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB, agrees with the model")
    show(_table(written))


def _table(written: Export) -> Table:
    from rich.table import Table

    count = str(written.description.batch or "B")
    table = Table()
    for title in ("", "name", "shape", "largest difference to the model"):
        table.add_column(title)
    for name, shape in written.description.inputs.items():
        table.add_row("in", name, _shape(count, shape), "")
    for name, shape in written.outputs.items():
        table.add_row("out", name, _shape(count, shape), f"{written.differences[name]:.0e} of its largest value")
    return table


def _shape(count: str, shape: list[int]) -> str:
    return " x ".join([count, *map(str, shape)])
