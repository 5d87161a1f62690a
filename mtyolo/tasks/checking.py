"""Labels that a person made by hand, before losses take them for what they are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mtyolo.errors import DataError
from mtyolo.structures import Outputs, Targets

WHOLE, FLOATS = (torch.int64, torch.int32), (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = 1e-3
"""How far a box may reach beyond 0..1: arithmetic of single precision does."""
FAR = 2.0
"""A labelled point further out is no fraction of the input, but in pixels."""

Field = tuple[Tensor, Sequence[torch.dtype], tuple[int, ...]]


def check_targets(targets: Targets, outputs: Outputs, *, classes: int, points: int | None) -> None:
    """Raises DataError for what torch would stumble over, or learn from in silence, as boxes in pixels.

    outputs: of the model, for the same images. classes: as many as the model has. points: of an object; None where
    keypoints do not count.
    """
    images, device = outputs.detect[0].shape[0], outputs.detect[0].device
    wrong = next(_kinds(targets, device, points), None) or next(_values(targets, images, classes, points), None)
    if wrong is not None:
        raise DataError(f"targets: {wrong}")


def _kinds(targets: Targets, device: torch.device, points: int | None) -> Iterator[str]:
    """What is wrong with shapes, types and places."""
    objects = len(targets.boxes_cxcywh) if isinstance(targets.boxes_cxcywh, Tensor) else 0
    expected: dict[str, Field] = {
        "image_index": (targets.image_index, WHOLE, (objects,)),
        "classes": (targets.classes, WHOLE, (objects,)),
        "boxes_cxcywh": (targets.boxes_cxcywh, FLOATS, (objects, 4)),
    }
    if targets.keypoints is not None and points is not None:
        expected["keypoints"] = (targets.keypoints, FLOATS, (objects, points, 3))
    for name, (tensor, kinds, shape) in expected.items():
        words = f"{name}: expected {_word(kinds[0])} {list(shape)} for {objects} objects"
        if not isinstance(tensor, Tensor):
            yield f"{words}, got {type(tensor).__name__}"
        elif tensor.dtype not in kinds or tuple(tensor.shape) != shape:
            yield f"{words}, got {_word(tensor.dtype)} {list(tensor.shape)}"
        elif tensor.device != device:
            yield f"{name} is on {tensor.device}, the outputs on {device}; targets.to(device) brings all along"
    if targets.masks is not None and (targets.masks.ndim != 3 or len(targets.masks) != objects):
        yield (
            f"masks: expected [{objects}, H/4, W/4] in 0 and 1 for {objects} objects and an input of H x W, got "
            f"{list(targets.masks.shape)}"
        )


def _word(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _values(targets: Targets, images: int, classes: int, points: int | None) -> Iterator[str]:
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
    if bool((boxes < -ROUNDING).any() | (boxes > 1 + ROUNDING).any()):
        yield (
            f"boxes_cxcywh: {float(boxes.min()):.4g} to {float(boxes.max()):.4g}; centres and sizes are fractions of "
            "the network input, from 0 to 1"
        )
    if targets.keypoints is not None and points is not None:
        places = targets.keypoints[targets.keypoints[..., 2] > 0][..., :2]
        if not bool((places.abs() <= FAR).all()):
            yield "keypoints: x and y are fractions of the network input, from 0 to 1, and finite"
