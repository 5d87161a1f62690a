"""Raw maps of a branch: as rows, and what they say of a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined_rows(maps: Sequence[Tensor]) -> Tensor:
    """Per level [B, A, H, W, values] -> [B, sum(A*H*W), values], in the order of the decoded output."""
    return torch.cat([level.reshape(level.shape[0], -1, level.shape[-1]) for level in maps], 1)


def box_of(raw: Tensor, anchors: Tensor) -> Tensor:
    """[..., 4] raw values to boxes: centre relative to the cell's corner, in cells, and size in the anchors' unit.

    A centre reaches half a cell beyond its cell, a size four times the anchor: as far as the assignment goes.
    """
    scaled = raw.sigmoid() * 2
    return torch.cat((scaled[..., :2] - 0.5, scaled[..., 2:] ** 2 * anchors), -1)
