"""From raw outputs to detections: one suppression; masks and keypoints follow the rows that it keeps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtyolo.geometry import boxes_to_original, points_to_original
from mtyolo.structures import Detections, Letterbox, Outputs
from mtyolo.tasks.detect.decode import decode
from mtyolo.tasks.keypoint.branch import decode_keypoints
from mtyolo.tasks.maps import joined_rows
from mtyolo.tasks.segment.decode import compose_masks
from mtyolo.tasks.select import Selection, select

Size = tuple[int, int]


def instances(
    outputs: Outputs,
    anchors: Tensor,
    strides: Sequence[int],
    *,
    size: Size,
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    multi_label: bool = False,
    letterboxes: Sequence[Letterbox] | None = None,
) -> list[Detections]:
    """What each image shows, in pixels: of the original images with `letterboxes`, else of the input of `size`."""
    decoded = decode([level.float() for level in outputs.detect], anchors, strides)
    kept = select(decoded, confidence, iou, limit, multi_label)
    coefficients = joined_rows(outputs.segment.coefficients) if outputs.segment else None
    points = decode_keypoints(outputs.keypoint, anchors, strides) if outputs.keypoint else None
    found = []
    for image, selection in enumerate(kept):
        letterbox = letterboxes[image] if letterboxes is not None else None
        masks = None
        if outputs.segment is not None and coefficients is not None:
            chosen = coefficients[image, selection.rows]
            masks = compose_masks(chosen, outputs.segment.prototypes[image], selection.boxes_xyxy, size, letterbox)
        chosen_points = None if points is None else points[image, selection.rows].float()
        found.append(_detections(selection, masks, chosen_points, letterbox, size))
    return found


def _detections(
    selection: Selection, masks: Tensor | None, points: Tensor | None, letterbox: Letterbox | None, size: Size
) -> Detections:
    boxes = selection.boxes_xyxy
    if letterbox is not None:
        boxes = boxes_to_original(boxes, letterbox)
        size = (letterbox.height, letterbox.width)
        if points is not None:
            points = points.clone()
            points[..., :2] = points_to_original(points[..., :2], letterbox)
    return Detections(boxes, selection.scores, selection.classes, masks, points, size)
