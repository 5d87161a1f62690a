"""Labels that a person made by hand, before losses take them for what they are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mtyolo.config.reading import nearest
from mtyolo.errors import DataError
from mtyolo.structures import Outputs, Targets
from mtyolo.tasks import TASKS

WHOLE, FLOATS = (torch.int64, torch.int32), (torch.float32, torch.float16, torch.bfloat16)
ROUNDING = 1e-3
"""How far a box may reach beyond 0..1: arithmetic of single precision does."""
FAR = 2.0
"""A labelled point further out is no fraction of the input, but in pixels."""

Field = tuple[object, Sequence[torch.dtype], tuple[int, ...], str]
"""What was given; the types and the shape that are expected, and for what."""


def check_targets(targets: Targets, outputs: Outputs, *, classes: int, points: int | None) -> None:
    """Raises DataError for what torch would stumble over, or learn from in silence, as boxes in pixels.

    outputs: of the model, for the same images. classes: as many as the model has. points: of an object; None where
    keypoints do not count.
    """
    if not isinstance(targets, Targets):
        raise DataError(f"targets: expected mtyolo.Targets, as a batch's .targets are, got {type(targets).__name__}")
    images, device = outputs.detect[0].shape[0], outputs.detect[0].device
    masks = None if outputs.segment is None else targets.masks
    wrong = next(_kinds(targets, images, device, points), None) or next(
        _values(targets, masks, images, classes, points), None
    )
    if wrong is not None:
        raise DataError(f"targets: {wrong}")


def _kinds(targets: Targets, images: int, device: torch.device, points: int | None) -> Iterator[str]:
    """What is wrong with shapes, types and places."""
    objects = len(targets.boxes_cxcywh) if isinstance(targets.boxes_cxcywh, Tensor) else 0
    of = f"{objects} objects"
    expected: dict[str, Field] = {
        "image_index": (targets.image_index, WHOLE, (objects,), of),
        "classes": (targets.classes, WHOLE, (objects,), of),
        "boxes_cxcywh": (targets.boxes_cxcywh, FLOATS, (objects, 4), of),
    }
    if targets.keypoints is not None and points is not None:
        expected["keypoints"] = (targets.keypoints, FLOATS, (objects, points, 3), of)
    if not isinstance(targets.labelled, Mapping):
        yield f"labelled: expected a dictionary, task -> bool [{images}], got {type(targets.labelled).__name__}"
        return
    for task, flags in targets.labelled.items():
        if task not in TASKS:
            yield f"labelled: there is no task {task!r}; {nearest(task, TASKS)}"
        expected[f"labelled[{task!r}]"] = (flags, (torch.bool,), (images,), f"{images} images")
    for name, (given, kinds, shape, whose) in expected.items():
        if not isinstance(given, Tensor) or given.dtype not in kinds or tuple(given.shape) != shape:
            yield f"{name}: expected {_word(kinds[0])} {list(shape)} for {whose}, got {_described(given)}"
        elif given.device != device:
            yield f"{name} is on {given.device}, the outputs on {device}; targets.to(device) brings all along"
    masks: object = targets.masks
    if masks is not None and not (isinstance(masks, Tensor) and masks.ndim == 3 and len(masks) == objects):
        yield (
            f"masks: expected [{objects}, H/4, W/4] in 0 and 1 for {of} and an input of H x W, got {_described(masks)}"
        )


def _described(given: object) -> str:
    return f"{_word(given.dtype)} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__


def _word(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _values(targets: Targets, masks: Tensor | None, images: int, classes: int, points: int | None) -> Iterator[str]:
    """masks: None where no branch takes them."""
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
    if masks is not None and not bool(((masks >= 0) & (masks <= 1)).all()):
        yield f"masks: {float(masks.min()):.4g} to {float(masks.max()):.4g}; they are 0 and 1, as masks > 0 makes them"
    if targets.keypoints is not None and points is not None:
        seen = targets.keypoints[..., 2]
        odd = seen[(seen != 0) & (seen != 1) & (seen != 2)]
        if len(odd):
            yield f"keypoints: visibility {float(odd[0]):.4g} is not 0 (not labelled), 1 (hidden) or 2 (visible)"
        places = targets.keypoints[seen > 0][..., :2]
        if not bool((places.abs() <= FAR).all()):
            yield "keypoints: x and y are fractions of the network input, from 0 to 1, and finite"
