"""`mtyolo bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtyolo.cli import options
from mtyolo.cli.output import progress_bar, show_table, spare, write_json
from mtyolo.config.model import LARGEST_SIDE, USUAL_SIDE
from mtyolo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from rich.table import Table

    from mtyolo.exported import ExportedModel
    from mtyolo.model import Model

EXAMPLES = (
    "mtyolo bench yolov5n.yaml yolov5n-lite0.yaml --imgsz 320",
    "mtyolo bench runs/train/best.safetensors runs/train/best.onnx --images photos --batch 8 --json speed.json",
)


def models_there(paths: list[Path]) -> list[Path]:
    for path in paths:
        options.model_there(path)
    return paths


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            callback=models_there,
            help="Model files (.yaml), official checkpoints (.pt), .safetensors, or what export wrote (.onnx).",
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Pictures to look at, a file or a folder: what is found costs time, too. Default: drawn."),
    ] = None,
    imgsz: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST_SIDE,
            show_default=f"an exported network's, else that of the first model's training, else {USUAL_SIDE}",
            help="Side of the square network input of all, in pixels; made a multiple of the largest stride.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 1,
    rounds: Annotated[int, typer.Option(min=2, help="How often each is timed, all by turns.")] = 20,
    device: options.Device = "auto",
    trust: options.Trust = False,
    json: options.Json = None,
) -> None:
    from mtyolo.device import find_device
    from mtyolo.opening import open_to_find
    from mtyolo.prediction.sources import find_sources
    from mtyolo.timing.entrants import entrants_of
    from mtyolo.timing.pictures import pictures
    from mtyolo.timing.turns import by_turns

    photos = [] if images is None else find_sources(images)
    spare([*models, *(photo.path for photo in photos if photo.path is not None)], json)
    place = find_device(device)
    opened = [open_to_find(path, trust=trust).to(place).eval() for path in models]
    size = _size(models, opened, imgsz)
    seen = pictures(photos, batch, size).to(place)
    names = [path.name if [one.name for one in models].count(path.name) == 1 else str(path) for path in models]
    entrants = [one for name, model in zip(names, opened, strict=True) for one in entrants_of(name, model, seen)]
    with progress_bar("bench") as progress:
        timings = by_turns(entrants, batch, place, rounds, progress)
    rows = [timing.as_dict(timings[0]) for timing in timings]
    setting = {"imgsz": size, "batch": batch, "rounds": rounds, "device": _called(place)}
    if json is not None:
        write_json(setting | {"rows": rows}, json)
    if str(json) != "-":
        show_table(_table(setting, rows))


def _size(paths: Sequence[Path], models: Sequence[Model | ExportedModel], asked: int | None) -> int:
    """One side for all, in pixels. Raises ConfigError where exported networks are for others."""
    from mtyolo.exported import ExportedModel
    from mtyolo.geometry import fitting_side

    fixed = {
        model.usual_size: path for path, model in zip(paths, models, strict=True) if isinstance(model, ExportedModel)
    }
    wanted = asked or next(iter(fixed), models[0].usual_size)
    size = fitting_side(wanted, max(model.largest_stride for model in models))
    other = next((side for side in fixed if side != size), None)
    if other is not None:
        remedy = f"--imgsz {other}" if asked and len(fixed) == 1 else f"export it again with --imgsz {size}"
        raise ConfigError(f"{fixed[other]}: was exported for {other} pixels, and all are timed at {size}; {remedy}")
    return size


def _called(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'}" if device.type == "cpu" else str(device)


def _table(setting: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="{imgsz}x{imgsz} pixels, {batch} at once, on {device}".format_map(setting),
        caption=f"milliseconds an image: medians, in brackets quartiles, over {setting['rounds']} rounds by turns",
    )
    table.add_column("model")
    table.add_column("takes")
    for name in ("parameters", "network", "detections", "both", "images/s", "over the first"):
        table.add_column(name, justify="right")
    for row in rows:
        low, high = row["ms_quartiles"]
        count = "-" if row["parameters"] is None else f"{row['parameters']:,}"
        parts = [f"{row[name]:.1f}" for name in ("network_ms", "detections_ms")]
        both = f"{row['ms']:.1f} ({low:.1f}-{high:.1f})"
        speed = f"{row['images_per_second']:.1f}", f"{row['over_first']:.2f}"
        table.add_row(escape(row["model"]), row["takes"], count, *parts, both, *speed)
    return table
