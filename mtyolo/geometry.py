"""Box formats, the IoU family, and the letterbox with its inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import box_convert

from mtyolo.structures import Letterbox

PADDING_GREY = 114
"""The value that YOLOv5 was trained to see beyond the picture's edge."""


def fitting_side(size: int, stride: int) -> int:
    """The smallest side of a network input that is at least `size` pixels and a multiple of the largest stride."""
    return math.ceil(size / stride) * stride


def letterbox_of(height: int, width: int, size: tuple[int, int]) -> Letterbox:
    """How an image of height x width pixels fits, centred, into `size` (height, width), as YOLOv5 does it."""
    ratio = min(size[0] / height, size[1] / width)
    inner_height, inner_width = resized_shape(height, width, ratio)
    # round(x - 0.1): an odd leftover pixel goes to the bottom and the right, as in the official code.
    left = round((size[1] - inner_width) / 2 - 0.1)
    top = round((size[0] - inner_height) / 2 - 0.1)
    return Letterbox(ratio, left, top, height, width)


def resized_shape(height: int, width: int, ratio: float) -> tuple[int, int]:
    """Height and width after scaling, at least one pixel each."""
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def boxes_to_original(boxes_xyxy: Tensor, letterbox: Letterbox) -> Tensor:
    """[N, 4] pixels of the network input -> pixels of the original image, clipped to it."""
    shift = boxes_xyxy.new_tensor([letterbox.left, letterbox.top] * 2)
    limit = boxes_xyxy.new_tensor([letterbox.width, letterbox.height] * 2)
    return torch.minimum(((boxes_xyxy - shift) / letterbox.ratio).clamp(min=0), limit)


def points_to_original(points: Tensor, letterbox: Letterbox) -> Tensor:
    """[..., 2] pixels of the network input -> pixels of the original image, not clipped."""
    return (points - points.new_tensor([letterbox.left, letterbox.top])) / letterbox.ratio


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy")


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    return box_convert(boxes_xyxy, "xyxy", "cxcywh")


def complete_iou(predicted: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU of paired boxes, in (-1.5, 1].

    predicted, target: [N, 4] cxcywh in one unit. Returns [N].
    Zheng et al. 2020, arXiv:1911.08287; eps placed as in YOLOv5, so that losses agree to the last digits.
    """
    (x1, y1, w1, h1), (x2, y2, w2, h2) = predicted.unbind(-1), target.unbind(-1)
    left1, right1, top1, bottom1 = x1 - w1 / 2, x1 + w1 / 2, y1 - h1 / 2, y1 + h1 / 2
    left2, right2, top2, bottom2 = x2 - w2 / 2, x2 + w2 / 2, y2 - h2 / 2, y2 + h2 / 2
    overlap_width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    overlap_height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    intersection = overlap_width * overlap_height
    iou = intersection / (w1 * h1 + w2 * h2 - intersection + eps)
    hull_width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    diagonal = hull_width**2 + hull_height**2 + eps
    distance = ((left2 + right2 - left1 - right1) ** 2 + (top2 + bottom2 - top1 - bottom1) ** 2) / 4
    # Not atan(w / h): its derivatives overflow for boxes that have lost a side, and the second ones are used, too.
    angle = torch.atan2(w1.clamp(min=eps), h1.clamp(min=eps))
    aspect = (4 / math.pi**2) * (torch.atan2(w2, h2) - angle) ** 2
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + eps))
    return iou - (distance / diagonal + aspect * weight)


COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),  # nose, eyes, ears
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),  # shoulders, elbows, wrists
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),  # hips, knees, ankles
)
"""How far apart two people place a point, over the object's size: cocodataset.org/#keypoints-eval and pycocotools."""


AREA_OF_BOX = 0.53
"""A person's share of the box, in place of the mask's area where there is no mask; as CrowdPose and ultralytics do."""


def default_sigmas(points: int) -> list[float]:
    """OKS falloffs: COCO's for its 17 body points, else 1 / points for each."""
    return list(COCO_SIGMAS) if points == len(COCO_SIGMAS) else [1 / points] * points
