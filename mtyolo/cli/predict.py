"""`mtyolo predict`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtyolo.cli import options
from mtyolo.cli.output import progress_bar, say, spare, write_json

if TYPE_CHECKING:
    from mtyolo.data.records import Problems
    from mtyolo.prediction.results import Result

EXAMPLES = (
    "mtyolo predict --model yolov5n.pt --source bus.jpg",
    "mtyolo predict --model runs/train/best.safetensors --source photos/ --source 'more/*.png' --json found.json",
    "mtyolo predict --model runs/train/best.safetensors --source coco/images/val --features features/",
)
STEM_BYTES = 240
"""Of a picture's name, most: file systems take 255, with number and suffix."""
NOT_DRAWN = "picture not drawn"


def predict(
    model: options.Model,
    source: Annotated[list[str], typer.Option("--source", "-s", help="An image, a folder or a glob; may be repeated.")],
    imgsz: options.ImageSize = None,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Least score of what is kept.")] = 0.25,
    iou: Annotated[float, typer.Option(min=0, max=1, help="Overlap above which the weaker box goes.")] = 0.45,
    limit: Annotated[int, typer.Option(min=1, help="Most detections in one image.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 1,
    device: options.Device = "auto",
    weights: options.Weights = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Take the images' features from this store, at its image size, and draw on the images."),
    ] = None,
    trust: options.Trust = False,
    out: Annotated[Path, typer.Option(help="Folder of the drawn pictures.")] = Path("runs/predict"),
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw what was found.")] = True,
    json: options.Json = None,
) -> None:
    from mtyolo.data.images import IMAGE_SUFFIXES
    from mtyolo.data.records import Problems
    from mtyolo.device import find_device
    from mtyolo.errors import DataError
    from mtyolo.memory import kept_memory
    from mtyolo.opening import open_to_find
    from mtyolo.prediction.predict import stream

    # No result is a picture: who names one that is there has slipped.
    slipped = json is not None and json.suffix.lower() in IMAGE_SUFFIXES and json.exists()
    spare([model, json] if slipped and json else [model], json)
    found = find_device(device)
    opened = open_to_find(model, weights=weights, features=features, trust=trust)
    problems, described, lines = Problems(), [], []
    with progress_bar("predict") as progress, kept_memory():
        results = stream(
            opened,
            source,
            size=imgsz,
            confidence=confidence,
            iou=iou,
            limit=limit,
            device=found,
            batch=batch,
            problems=problems,
            progress=progress,
            features=features,
        )
        for number, result in enumerate(results):
            described.append(result.to_dict())
            if pictures and (drawn := _drawn(result, out, number, problems)):
                described[-1]["picture"] = str(drawn)
            lines.append(f"{result.path}: {result.counted()} -> {described[-1].get('picture', 'not drawn')}")
    if len(problems):
        say(problems.summary())
    if json is not None:
        write_json(described, json)
    if str(json) != "-":
        for line in lines:
            typer.echo(line)
    if described and problems.counts[NOT_DRAWN] == len(described):
        raise DataError(f"none of {len(described)} pictures can be drawn; the first: {problems.examples[NOT_DRAWN][0]}")


def _drawn(result: Result, out: Path, number: int, problems: Problems) -> Path | None:
    """The picture's file; None where it became a problem, so that the others are still drawn."""
    from mtyolo.errors import MtyoloError

    # The number keeps images of one name, from several folders, apart.
    name = result.path.stem if result.path else "image"
    while len(os.fsencode(name)) > STEM_BYTES:
        name = name[:-1]
    try:
        return result.save(out / f"{number:04d}_{name}.jpg")
    except MtyoloError as error:
        problems.add(NOT_DRAWN, result.path, str(error))
        return None
