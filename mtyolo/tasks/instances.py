"""From raw outputs to what is in each image: boxes are selected once, masks and keypoints follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.geometry import boxes_to_original, default_sigmas, points_to_original, xyxy_to_cxcywh
from mtyolo.structures import Detections, KeypointOutputs, Letterbox, Outputs
from mtyolo.tasks.detect.decode import decode
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.keypoint.heatmaps import refine, windows
from mtyolo.tasks.segment.decode import compose_masks
from mtyolo.tasks.select import Selection, select


def instances(
    outputs: Outputs,
    anchors: Tensor,
    strides: Sequence[int],
    *,
    size: tuple[int, int],
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    multi_label: bool = False,
    letterboxes: Sequence[Letterbox] | None = None,
    keypoint_classes: Sequence[int] | None = None,
) -> list[Detections]:
    """Boxes, masks and keypoints of each image of a batch, best first.

    anchors: [L, A, 2] pixels. size: height and width of the network input. letterboxes: how each image was fitted into
    it; with them all results are in original pixels, else in those of the input. confidence, iou, limit, multi_label:
    as in `select`. keypoint_classes: whose points can be visible; by default all classes'.
    """
    kept = select(decode(outputs.detect, anchors, strides), confidence, iou, limit, multi_label)
    found = [
        image_instances(
            outputs, number, selection, anchors, strides, size, letterboxes[number] if letterboxes else None
        )
        for number, selection in enumerate(kept)
    ]
    if keypoint_classes is not None:
        for image in found:
            if image.keypoints is not None:
                image.keypoints[..., 2] *= torch.isin(image.classes, image.classes.new_tensor(keypoint_classes))[
                    :, None
                ]
    return found


def image_instances(
    outputs: Outputs,
    number: int,
    kept: Selection,
    anchors: Tensor,
    strides: Sequence[int],
    size: tuple[int, int],
    letterbox: Letterbox | None,
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
        found.keypoints = _keypoints(outputs.keypoint, number, kept, size, letterbox)
    return found


def _keypoints(
    outputs: KeypointOutputs, number: int, kept: Selection, size: tuple[int, int], letterbox: Letterbox | None
) -> Tensor:
    """[N, K, 3]: x, y in pixels of the result, visibility."""
    boxes = xyxy_to_cxcywh(kept.boxes_xyxy)
    points, visibility = points_of(_at_rows(outputs.points, number, kept.rows), boxes)
    if outputs.heatmaps is not None:
        sigmas = points.new_tensor(default_sigmas(points.shape[1]))
        logits = windows(outputs.heatmaps[number : number + 1], torch.zeros_like(kept.rows), boxes, size)
        points = refine(points, boxes, logits, sigmas)
    points = points if letterbox is None else points_to_original(points, letterbox)
    return torch.cat((points, visibility.sigmoid()[..., None]), -1)


def _at_rows(maps: Sequence[Tensor], number: int, rows: Tensor) -> Tensor:
    """Values of one image at rows of the decoded output: [N, C]."""
    return torch.cat([level[number].flatten(0, 2) for level in maps])[rows]
