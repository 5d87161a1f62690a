"""From raw outputs to what is in each image: boxes are selected once, masks and keypoints follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.config.model import KeypointConfig
from mtyolo.errors import DataError
from mtyolo.geometry import boxes_to_original, default_sigmas, points_to_original, xyxy_to_cxcywh
from mtyolo.structures import Detections, KeypointOutputs, Letterbox, Outputs
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.keypoint.heatmaps import refine, windows
from mtyolo.tasks.segment.decode import compose_masks
from mtyolo.tasks.select import Selection, select


def instances(
    outputs: Outputs,
    decoded: Tensor,
    *,
    size: tuple[int, int],
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    multi_label: bool = False,
    letterboxes: Sequence[Letterbox] | None = None,
    keypoint: KeypointConfig | None = None,
) -> list[Detections]:
    """Boxes, masks and keypoints of each image of a batch, best first.

    decoded: [B, R, 5 + classes], of the same outputs. size: height and width of the network input. letterboxes: how
    each image was fitted into it; with them all results are in original pixels, else in those of the input.
    confidence, iou, limit, multi_label: as in `select`. keypoint: what the model knows of its points.
    Raises DataError where images and letterboxes differ in number.
    """
    images = len(decoded)
    if letterboxes is not None and len(letterboxes) != images:
        raise DataError(
            f"letterboxes: expected one for each image of the batch, {images}, got {len(letterboxes)}; without "
            "letterboxes=, all is in pixels of the network input"
        )
    places: Sequence[Letterbox | None] = [None] * images if letterboxes is None else letterboxes
    kept = select(decoded, confidence, iou, limit, multi_label)
    return [
        image_instances(outputs, number, selection, size, letterbox, keypoint)
        for number, (selection, letterbox) in enumerate(zip(kept, places, strict=True))
    ]


def image_instances(
    outputs: Outputs,
    number: int,
    kept: Selection,
    size: tuple[int, int],
    letterbox: Letterbox | None,
    keypoint: KeypointConfig | None = None,
) -> Detections:
    """What `select` kept of one image of the batch. Masks cost time and memory: select fewer where fewer will do."""
    boxes = kept.boxes_xyxy if letterbox is None else boxes_to_original(kept.boxes_xyxy, letterbox)
    found = Detections(boxes, kept.scores, kept.classes)
    found.size = size if letterbox is None else (letterbox.height, letterbox.width)
    if outputs.segment is not None:
        coefficients = _at_rows(outputs.segment.coefficients, number, kept.rows)
        prototypes = outputs.segment.prototypes[number]
        found.masks = compose_masks(coefficients, prototypes, boxes, size=size, letterbox=letterbox)
    if outputs.keypoint is not None:
        found.keypoints = _keypoints(outputs.keypoint, number, kept, size, letterbox, keypoint or KeypointConfig())
    return found


def _keypoints(
    outputs: KeypointOutputs,
    number: int,
    kept: Selection,
    size: tuple[int, int],
    letterbox: Letterbox | None,
    known: KeypointConfig,
) -> Tensor:
    """[N, K, 3]: x, y in pixels of the result, visibility."""
    boxes = xyxy_to_cxcywh(kept.boxes_xyxy)
    points, logits = points_of(_at_rows(outputs.points, number, kept.rows), boxes)
    visibility = logits.sigmoid()
    if known.classes is not None:
        visibility = visibility * torch.isin(kept.classes, kept.classes.new_tensor(known.classes))[:, None]
    if outputs.heatmaps is not None:
        sigmas = points.new_tensor(known.sigmas or default_sigmas(points.shape[1]))
        seen = windows(outputs.heatmaps[number : number + 1], torch.zeros_like(kept.rows), boxes, size)
        points = refine(points, boxes, seen, sigmas)
    points = points if letterbox is None else points_to_original(points, letterbox)
    return torch.cat((points, visibility[..., None]), -1)


def _at_rows(maps: Sequence[Tensor], number: int, rows: Tensor) -> Tensor:
    """Values of one image at rows of the decoded output: [N, C]."""
    return torch.cat([level[number].flatten(0, 2) for level in maps])[rows]
