"""From raw maps to the classic rows of boxes and scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.tasks.anchors import anchor_rows


def decode(maps: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """[B, A, H, W, 5 + classes] a level to [B, sum(A*H*W), 5 + classes]: xywh in input pixels, then sigmoid scores.

    anchors: [L, A, 2] pixels. Rows run level by level, fine to coarse; within a level by anchor, y, x.
    """
    shapes = [(level.shape[2], level.shape[3]) for level in maps]
    centres, sizes = anchor_rows(shapes, anchors, strides)
    pixels = torch.cat(
        [
            sizes.new_full((level.shape[1] * level.shape[2] * level.shape[3], 1), stride)
            for level, stride in zip(maps, strides, strict=True)
        ]
    )
    scores = torch.cat([level.flatten(1, 3) for level in maps], 1).float().sigmoid()
    xy = (scores[..., :2] * 2 - 1) * pixels + centres
    wh = (scores[..., 2:4] * 2) ** 2 * sizes
    return torch.cat((xy, wh, scores[..., 4:]), -1)
