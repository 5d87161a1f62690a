"""Prediction: sources through the model, one result an image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtyolo.assembly import Registry
from mtyolo.checkpoint import load
from mtyolo.config.arguments import check_arguments, check_paths
from mtyolo.data.cache import resize
from mtyolo.data.records import Problems
from mtyolo.device import find_device
from mtyolo.errors import DataError
from mtyolo.exported import ExportedModel
from mtyolo.features.finite import check_extracted
from mtyolo.features.standin import stand_in
from mtyolo.files import EXPORTED
from mtyolo.geometry import PADDING_GREY, fitting_side, letterbox_of, resized_shape
from mtyolo.model import Model
from mtyolo.modes import evaluating
from mtyolo.opening import not_exported, open_to_find
from mtyolo.prediction.results import Result
from mtyolo.prediction.sources import Inputs, Picture, Source, Sources, find_sources
from mtyolo.prediction.stored import StoredInputs
from mtyolo.structures import Detections, Letterbox

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called after each batch with the number of images done, and of all."""


def predict(
    model: Model | ExportedModel | str | Path,
    sources: Sources,
    *,
    size: int | None = None,
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    device: torch.device | str | None = None,
    batch: int = 1,
    problems: Problems | None = None,
    progress: Progress | None = None,
    features: str | Path | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
) -> list[Result]:
    """What the model finds in each image, in the order of the sources.

    model: a model, or the path of a checkpoint or of an exported network. sources: image files, folders, globs, uint8
    RGB arrays, PIL images, or a list of these. size: square network input in pixels, rounded up to a multiple of the
    model's largest stride; by default the one that the model was trained at, 640 where it does not know. confidence,
    iou, limit: least score, non-maximum suppression within a class, most detections of an image; the first two defaults
    are those of the official predict, which keeps up to 1000. device: the model is moved there, `auto` is the machine's
    accelerator; by default it stays. problems: takes note of images that can not be used; by default they are logged.
    features: a store that holds the features of these image files, for a model whose extractor is not there; then
    `size` is the store's. extractors, adapters: your own classes by name, for a checkpoint that has them. trust: import
    `package.module:Class`
    that it names. Masks of thousands of images fill the memory: use `stream` for those. Raises DataError if there is
    nothing to read, or nothing can be used; ConfigError naming an argument that can not be meant.
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
            features=features,
            extractors=extractors,
            adapters=adapters,
            trust=trust,
        )
    )


def stream(
    model: Model | ExportedModel | str | Path,
    sources: Sources,
    *,
    size: int | None = None,
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    device: torch.device | str | None = None,
    batch: int = 1,
    problems: Problems | None = None,
    progress: Progress | None = None,
    features: str | Path | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
) -> Iterator[Result]:
    """As `predict`, one result after the other: no more than a batch is in memory."""
    check_arguments(size=size, batch=batch, confidence=confidence, iou=iou, limit=limit)
    place = None if device is None else find_device(device)
    found = find_sources(sources)
    check_paths(features=features)
    if not isinstance(model, Model | ExportedModel):
        check_paths("model", model=model)
        own: dict[str, Any] = {"extractors": extractors, "adapters": adapters, "trust": trust}
        model = _opened(Path(model), features, **own)
    if place is not None:
        model.to(place)
    noted = Problems() if problems is None else problems
    side = fitting_side(model.usual_size if size is None else size, model.largest_stride)
    inputs_of = partial(_fitted, side=side) if features is None else StoredInputs(features, not_exported(model))
    read = 0
    for start in range(0, len(found), batch):
        inputs = inputs_of(found[start : start + batch], noted)
        read += len(inputs.sources)
        for source, seen in zip(inputs.sources, _detect(model, inputs, confidence, iou, limit), strict=True):
            skeleton = model.keypoint.skeleton if model.keypoint else None
            yield Result(seen, model.names, source.path, source.pixels, skeleton)
        if progress is not None:
            progress(min(start + batch, len(found)), len(found))
    if not read:
        raise DataError(f"none of {len(found)} images can be used; the first: {_first(noted)}")
    if problems is None and len(noted):
        logger.warning("%s", noted.summary())


def _opened(path: Path, features: str | Path | None, **own: Any) -> Model | ExportedModel:
    if path.suffix == EXPORTED:
        return open_to_find(path, features=features)
    return load(path, stand_in=None if features is None else stand_in(features), **own)


def _fitted(sources: Sequence[Source], problems: Problems, *, side: int) -> Inputs:
    """The pixels of those that can be read; the others become problems."""
    read, fitted = [], []
    for source in sources:
        try:
            fitted.append(letterboxed(source.read(), side))
            read.append(source)
        except DataError as error:
            problems.add("unreadable image", source.path, str(error).removeprefix(f"{source.path}: "))
    images = torch.from_numpy(np.stack([pixels for pixels, _ in fitted])).permute(0, 3, 1, 2) if fitted else None
    return Inputs(read, [letterbox for _, letterbox in fitted], images)


def _first(problems: Problems) -> str:
    return str(next(iter(problems.examples.values()))[0])


def _detect(
    model: Model | ExportedModel, inputs: Inputs, confidence: float, iou: float, limit: int
) -> list[Detections]:
    """Detections on the CPU, in pixels of each picture."""
    if not inputs.sources:
        return []
    device = next(model.parameters()).device
    with evaluating(model):
        if inputs.pyramid is not None:
            outputs = model(pyramid={stride: level.to(device) for stride, level in inputs.pyramid.items()})
        else:
            assert inputs.images is not None, "one of the two is there"
            images = inputs.images.to(device)
            outputs = model(images.float().div_(255))
            if isinstance(model, Model):
                check_extracted(model, images, outputs, [source.path or "an array" for source in inputs.sources])
        found = model.detections(outputs, inputs.letterboxes, confidence=confidence, iou=iou, limit=limit)
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
