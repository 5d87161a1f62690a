"""From coefficients and prototypes to instance masks at the size of the picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mtyolo.geometry import resized_shape
from mtyolo.structures import Letterbox

PIXELS_AT_ONCE = 32_000_000
"""Mask pixels in float32 held at one time (128 MB)."""


def compose_masks(
    coefficients: Tensor, prototypes: Tensor, boxes_xyxy: Tensor, size: tuple[int, int], letterbox: Letterbox | None
) -> Tensor:
    """[N, height, width] bool: of the original image with a letterbox, else of the network input.

    coefficients: [N, P]. prototypes: [P, h, w]. boxes_xyxy: [N, 4] pixels of the network input; size: its (H, W).
    Masks end at their boxes.
    """
    shape = (letterbox.height, letterbox.width) if letterbox else size
    masks = torch.zeros(len(coefficients), *shape, dtype=torch.bool, device=prototypes.device)
    step = max(1, PIXELS_AT_ONCE // (shape[0] * shape[1]))
    for start in range(0, len(coefficients), step):
        chunk = slice(start, start + step)
        logits = (coefficients[chunk] @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:]).float()
        logits = _cropped(logits, boxes_xyxy[chunk], size)
        masks[chunk] = _resized(logits, size, letterbox, shape) > 0  # a probability above one half
    return masks


def _cropped(logits: Tensor, boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Outside of its box a mask is surely off."""
    height, width = logits.shape[-2:]
    scale = boxes_xyxy.new_tensor([width / size[1], height / size[0]] * 2)
    left, top, right, bottom = (boxes_xyxy * scale)[:, :, None].unbind(1)
    columns = torch.arange(width, device=logits.device)[None]
    rows = torch.arange(height, device=logits.device)[None]
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    return logits.masked_fill(~inside, -8.0)


def _resized(logits: Tensor, size: tuple[int, int], letterbox: Letterbox | None, shape: tuple[int, int]) -> Tensor:
    if letterbox is not None:
        scale = logits.shape[-1] / size[1]
        height, width = resized_shape(letterbox.height, letterbox.width, letterbox.ratio)
        top, left = round(letterbox.top * scale), round(letterbox.left * scale)
        bottom, right = round((letterbox.top + height) * scale), round((letterbox.left + width) * scale)
        logits = logits[:, top : max(bottom, top + 1), left : max(right, left + 1)]
    return interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
