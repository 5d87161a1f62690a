"""`mtyolo val`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtyolo.cli import options
from mtyolo.cli.output import progress_bar, say, spare, write_json

EXAMPLES = (
    "mtyolo val --model yolov5n.pt --data coco_mini.yaml --imgsz 320",
    "mtyolo val --model runs/train/best.safetensors --data shapes.yaml --json - | jq",
)


def val(
    model: options.Model,
    data: options.Data,
    split: Annotated[str, typer.Option(help="Which split of the data file: train, val or test.")] = "val",
    imgsz: options.ImageSize = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 8,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.001,
    iou: Annotated[float, typer.Option(min=0, max=1, help="Overlap above which the weaker box goes.")] = 0.6,
    device: options.Device = "auto",
    weights: options.Weights = None,
    features: Annotated[
        Path | None, typer.Option(help="Take features from this store, at its image size, in place of images.")
    ] = None,
    trust: options.Trust = False,
    strict: options.Strict = False,
    json: options.Json = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Write a picture of truth beside prediction, for a few images, to this file.")
    ] = None,
) -> None:
    from mtyolo.api import open_to_judge, stored_batches
    from mtyolo.data.split import load_split
    from mtyolo.device import find_device
    from mtyolo.evaluation.validate import validate

    found = find_device(device)
    opened = open_to_judge(model, data, weights=weights, features=features, trust=trust)
    images = load_split(data, split, strict=strict)
    spare([model, data, *(record.path for record in images.records)], json, pictures)
    if found_wrong := images.problems.summary():
        say(found_wrong)
    loader = None if features is None else stored_batches(opened, images, features, batch)
    with progress_bar("val") as progress:
        metrics = validate(
            opened,
            images,
            size=imgsz,
            batch=batch,
            device=found,
            confidence=confidence,
            iou=iou,
            loader=loader,
            progress=progress,
        )
    if json is not None:
        write_json(metrics.as_dict() | {"per_class": metrics.per_class()}, json)
    if str(json) != "-":
        from rich import print as show

        show(metrics.table())
        classes = metrics.class_table()
        if classes is not None:
            show(classes)
        elif json is None and any(metrics.per_class().values()):
            say("AP of each class: --json FILE writes it, per_class")
    if pictures is not None:
        from mtyolo.drawing import save_image
        from mtyolo.evaluation.pictures import comparison

        sheet = comparison(opened, images, size=imgsz, features=features)
        say(f"truth beside prediction: {save_image(sheet, pictures)}")
