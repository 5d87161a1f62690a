"""From coefficients and prototypes to masks in the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from mtyolo.structures import Letterbox

THRESHOLD = 0.5


def compose_masks(
    coefficients: Tensor,
    prototypes: Tensor,
    boxes_xyxy: Tensor,
    *,
    size: tuple[int, int],
    letterbox: Letterbox | None = None,
) -> Tensor:
    """Masks of one image, cropped to their boxes: [N, height, width] bool.

    coefficients: [N, P]. prototypes: [P, h, w]. size: height and width of the network input.
    boxes_xyxy: [N, 4] pixels of the result: the original image where a letterbox is given, else the network input.
    Probabilities are interpolated bilinearly, straight from prototype pixels to the result's.
    """
    count, (height, width) = len(coefficients), size
    if letterbox is None:
        letterbox = Letterbox(1.0, 0, 0, height, width)
    small = torch.einsum("np,phw->nhw", coefficients.float(), prototypes.float()).sigmoid()
    rows = _sources(letterbox.height, letterbox.ratio, letterbox.top, small.shape[1] / height, small.shape[1], small)
    columns = _sources(letterbox.width, letterbox.ratio, letterbox.left, small.shape[2] / width, small.shape[2], small)
    masks = torch.zeros((count, letterbox.height, letterbox.width), dtype=torch.bool, device=small.device)
    limits = boxes_xyxy.new_tensor([letterbox.width, letterbox.height] * 2)
    edges = torch.minimum((boxes_xyxy - 0.5).ceil().clamp(min=0), limits).long().tolist()
    # One at a time: a box is a small part of the picture, and all pictures at full size would not fit into memory.
    for mask, probability, (left, top, right, bottom) in zip(masks, small, edges, strict=True):
        if right > left and bottom > top:
            patch = _between(probability, 0, *(part[top:bottom] for part in rows))
            mask[top:bottom, left:right] = _between(patch, 1, *(part[left:right] for part in columns)) > THRESHOLD
    return masks


def _sources(length: int, ratio: float, shift: int, scale: float, limit: int, like: Tensor) -> tuple[Tensor, ...]:
    """Along one axis, for each of `length` pixels of the result: the two prototype pixels to mix, and the share of
    the second."""
    centres = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    places = ((centres * ratio + shift) * scale - 0.5).clamp(0, limit - 1)
    first = places.long()
    return first, (first + 1).clamp(max=limit - 1), places - first


def _between(values: Tensor, axis: int, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    share = share[:, None] if axis == 0 else share
    return torch.lerp(values.index_select(axis, first), values.index_select(axis, second), share)
