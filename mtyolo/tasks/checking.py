"""Labels that a person made by hand, before losses take them for what they are not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mtyolo.errors import DataError
from mtyolo.structures import Outputs, Targets


def check_targets(targets: Targets, outputs: Outputs, *, classes: int, points: int | None) -> None:
    """Raises DataError for what torch would stumble over, or learn from in silence, as boxes in pixels.

    outputs: of the model, for the same images. classes, points: as many as the model has; None without keypoints.
    """
    images, device = outputs.detect[0].shape[0], outputs.detect[0].device
    wrong = next(_kinds(targets, device, points), None) or next(_values(targets, images, classes), None)
    if wrong is not None:
        raise DataError(f"targets: {wrong}")


def _kinds(targets: Targets, device: torch.device, points: int | None) -> Iterator[str]:
    """What is wrong with shapes, types and places."""
    objects = len(targets.boxes_cxcywh) if isinstance(targets.boxes_cxcywh, Tensor) else 0
    expected = {
        "image_index": (targets.image_index, torch.int64, (objects,)),
        "classes": (targets.classes, torch.int64, (objects,)),
        "boxes_cxcywh": (targets.boxes_cxcywh, torch.float32, (objects, 4)),
    }
    if targets.keypoints is not None and points is not None:
        expected["keypoints"] = (targets.keypoints, torch.float32, (objects, points, 3))
    for name, (tensor, dtype, shape) in expected.items():
        words = f"{name}: expected {str(dtype).removeprefix('torch.')} {list(shape)} for {objects} objects"
        if not isinstance(tensor, Tensor):
            yield f"{words}, got {type(tensor).__name__}"
        elif tensor.dtype != dtype or tuple(tensor.shape) != shape:
            yield f"{words}, got {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        elif tensor.device != device:
            yield f"{name} is on {tensor.device}, the outputs on {device}; targets.to(device) brings all along"
    if targets.masks is not None and (targets.masks.ndim != 3 or len(targets.masks) != objects):
        yield (
            f"masks: expected [{objects}, H/4, W/4] in 0 and 1 for {objects} objects and an input of H x W, got "
            f"{list(targets.masks.shape)}"
        )


def _values(targets: Targets, images: int, classes: int) -> Iterator[str]:
    boxes = targets.boxes_cxcywh
    if not len(boxes):
        return
    for name, numbers, count in (("image_index", targets.image_index, images), ("classes", targets.classes, classes)):
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= count:
            what = "images in the batch" if name == "image_index" else "classes in the model"
            yield f"{name}: {low if low < 0 else high} is none of the {count} {what}, from 0 to {count - 1}"
    if not bool(boxes.isfinite().all()):
        yield "boxes_cxcywh: not all of them are finite"
    if bool((boxes < 0).any() | (boxes > 1).any()):
        yield (
            f"boxes_cxcywh: {float(boxes.min()):.4g} to {float(boxes.max()):.4g}; centres and sizes are fractions of "
            "the network input, from 0 to 1"
        )
