"""Non-maximum suppression: from decoded rows to the few that are kept."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torchvision.ops import batched_nms

from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.tasks.detect.branch import BOX_VALUES, OBJECTNESS

CANDIDATES = 30_000
"""At most so many boxes an image enter the suppression, best first (official max_nms)."""


class Selection(NamedTuple):
    """What was kept of one image, best first."""

    rows: Tensor  # [N] int64: row of the decoded output
    boxes_xyxy: Tensor  # [N, 4] input pixels
    scores: Tensor  # [N]: objectness times class
    classes: Tensor  # [N] int64


def select(
    decoded: Tensor,
    confidence: float = 0.25,
    iou: float = 0.45,
    limit: int = 300,
    multi_label: bool = False,
) -> list[Selection]:
    """Keep, of boxes of one class that overlap by more than `iou`, the best.

    decoded: [B, R, 5 + classes]. limit: boxes an image. multi_label: a row may give several boxes, one for each class
    above `confidence`; else its best class only.
    """
    return [_select_one(rows, confidence, iou, limit, multi_label) for rows in decoded]


def _select_one(decoded: Tensor, confidence: float, iou: float, limit: int, multi_label: bool) -> Selection:
    objectness = decoded[:, OBJECTNESS]
    # Objectness bounds the score: most rows leave here, before anything is computed on their classes.
    rows = (objectness > confidence).nonzero().flatten()
    products = decoded[rows, BOX_VALUES:] * objectness[rows, None]
    if multi_label:
        picked, classes = (products > confidence).nonzero(as_tuple=True)
        scores = products[picked, classes]
    else:
        best, classes = products.max(1)
        picked = (best > confidence).nonzero().flatten()
        scores, classes = best[picked], classes[picked]
    rows = rows[picked]
    if len(rows) > CANDIDATES:
        top = scores.topk(CANDIDATES).indices
        rows, scores, classes = rows[top], scores[top], classes[top]
    boxes = cxcywh_to_xyxy(decoded[rows, :4])
    # torchvision moves the classes apart by the largest coordinate, and takes the smallest for zero.
    low = boxes.min() if len(boxes) else 0.0
    kept = batched_nms(boxes - low, scores, classes, iou)[:limit]
    return Selection(rows[kept], boxes[kept], scores[kept], classes[kept])
