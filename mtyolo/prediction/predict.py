"""Prediction: sources through the model, one result an image."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from mtyolo.checkpoint import load
from mtyolo.data.cache import resize
from mtyolo.data.records import Problems
from mtyolo.errors import DataError
from mtyolo.geometry import PADDING_GREY, letterbox_of, resized_shape
from mtyolo.model import Model, evaluating
from mtyolo.prediction.results import Result
from mtyolo.prediction.sources import Picture, Source, Sources, find_sources
from mtyolo.structures import Detections, Letterbox

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called after each batch with the number of images done, and of all."""


def predict(
    model: Model | str | Path,
    sources: Sources,
    *,
    size: int = 640,
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    device: torch.device | str | None = None,
    batch: int = 1,
    problems: Problems | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> list[Result]:
    """What the model finds in each image, in the order of the sources.

    model: a model, or a checkpoint's path. sources: image files, folders, globs, uint8 RGB arrays, PIL images, or a
    list of these. size: square network input in pixels, rounded up to a multiple of the model's largest stride.
    confidence, iou, limit: least score, non-maximum suppression within a class, most detections of an image; the
    defaults are those of the official predict. device: the model is moved there; by default it stays.
    problems: takes note of images that can not be read; by default they are logged. trust: import
    `package.module:Class` that the checkpoint names. Masks of thousands of images fill the memory: use `stream` for
    those. Raises DataError if there is nothing to read, or nothing can be read.
    """
    return list(
        stream(
            model,
            sources,
            size=size,
            confidence=confidence,
            iou=iou,
            limit=limit,
            device=device,
            batch=batch,
            problems=problems,
            progress=progress,
            trust=trust,
        )
    )


def stream(
    model: Model | str | Path,
    sources: Sources,
    *,
    size: int = 640,
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    device: torch.device | str | None = None,
    batch: int = 1,
    problems: Problems | None = None,
    progress: Progress | None = None,
    trust: bool = False,
) -> Iterator[Result]:
    """As `predict`, one result after the other: no more than a batch is in memory."""
    found = find_sources(sources)
    model = model if isinstance(model, Model) else load(model, trust=trust)
    if device is not None:
        model.to(device)
    noted = Problems() if problems is None else problems
    read = 0
    for start in range(0, len(found), batch):
        readable = _read(found[start : start + batch], noted)
        read += len(readable)
        detections = _detect(model, [pixels for _, pixels in readable], size, confidence, iou, limit)
        for (source, pixels), seen in zip(readable, detections, strict=True):
            yield Result(seen, model.names, source.path, pixels if source.path is None else None)
        if progress is not None:
            progress(min(start + batch, len(found)), len(found))
    if not read:
        raise DataError(f"none of {len(found)} images can be read; the first: {_first(noted)}")
    if problems is None and len(noted):
        logger.warning("%s", noted.summary())


def _read(sources: Sequence[Source], problems: Problems) -> list[tuple[Source, Picture]]:
    readable = []
    for source in sources:
        try:
            readable.append((source, source.read()))
        except DataError as error:
            problems.add("unreadable image", source.path, str(error).removeprefix(f"{source.path}: "))
    return readable


def _first(problems: Problems) -> str:
    return str(next(iter(problems.examples.values()))[0])


def _detect(
    model: Model, pictures: Sequence[Picture], size: int, confidence: float, iou: float, limit: int
) -> list[Detections]:
    """Detections on the CPU, in pixels of each picture."""
    if not pictures:
        return []
    side = math.ceil(size / model.largest_stride) * model.largest_stride
    fitted = [letterboxed(picture, side) for picture in pictures]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in fitted])).permute(0, 3, 1, 2)
    with evaluating(model):
        outputs = model(images.to(next(model.parameters()).device).float().div_(255))
        found = model.detections(
            outputs, [letterbox for _, letterbox in fitted], confidence=confidence, iou=iou, limit=limit
        )
    return [detections.to("cpu") for detections in found]


def letterboxed(picture: Picture, size: int) -> tuple[Picture, Letterbox]:
    """A picture fitted into [size, size, 3], grey around it, as the network was trained to see it."""
    letterbox = letterbox_of(picture.shape[0], picture.shape[1], (size, size))
    height, width = resized_shape(letterbox.height, letterbox.width, letterbox.ratio)
    canvas = np.full((size, size, 3), PADDING_GREY, np.uint8)
    canvas[letterbox.top : letterbox.top + height, letterbox.left : letterbox.left + width] = resize(
        picture, height, width
    )
    return canvas, letterbox
