"""The one non-maximum suppression: which rows of the decoded output are objects."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.tasks.detect.branch import BOX_ROWS

MOST_CANDIDATES = 30_000
"""Boxes that enter suppression at most, best first (official)."""


class Selection(NamedTuple):
    """What one image keeps, best first."""

    rows: Tensor  # [N] int64: number of the row in the decoded output
    boxes_xyxy: Tensor  # [N, 4] input pixels
    scores: Tensor  # [N] objectness times class
    classes: Tensor  # [N] int64


def select(
    decoded: Tensor, confidence: float, iou: float, limit: int, multi_label: bool = False, agnostic: bool = False
) -> list[Selection]:
    """Non-maximum suppression of each image. decoded: [B, R, 5 + classes].

    multi_label: a box may carry several classes, as the official validation has it; else its best. agnostic: boxes of
    different classes suppress each other too.
    """
    return [_select_image(image, confidence, iou, limit, multi_label, agnostic) for image in decoded]


def _select_image(
    image: Tensor, confidence: float, iou: float, limit: int, multi_label: bool, agnostic: bool
) -> Selection:
    rows = (image[:, 4] > confidence).nonzero().flatten()
    found = image[rows]
    scores = found[:, BOX_ROWS:] * found[:, 4:5]
    if multi_label:
        index, classes = (scores > confidence).nonzero(as_tuple=True)
        scores = scores[index, classes]
    else:
        scores, classes = scores.max(1)
        index = (scores > confidence).nonzero().flatten()
        scores, classes = scores[index], classes[index]
    if len(scores) > MOST_CANDIDATES:
        scores, best = scores.topk(MOST_CANDIDATES)
        index, classes = index[best], classes[best]
    boxes = cxcywh_to_xyxy(found[index, :4])
    kept = batched_nms(boxes, scores, torch.zeros_like(classes) if agnostic else classes, iou)[:limit]
    return Selection(rows[index[kept]], boxes[kept], scores[kept], classes[kept])
