"""From raw maps to the classic rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.tasks.maps import cell_corners


def decode(maps: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """[B, sum(A*H*W), 5 + classes]: cx, cy, w, h in input pixels, then sigmoid scores.

    maps: per level [B, A, H, W, 5 + classes]. anchors: [L, A, 2] pixels. Rows run over levels fine to coarse, then
    anchors, rows, columns.
    """
    return torch.cat(
        [
            _decode_level(level, anchors[index], stride)
            for index, (level, stride) in enumerate(zip(maps, strides, strict=True))
        ],
        1,
    )


def _decode_level(raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
    batch, count, height, width, values = raw.shape
    scores = raw.sigmoid()
    cells = cell_corners(height, width, raw)
    centre = (2 * scores[..., :2] - 0.5 + cells) * stride
    size = (2 * scores[..., 2:4]) ** 2 * anchors.view(1, count, 1, 1, 2).to(raw)
    return torch.cat((centre, size, scores[..., 4:]), -1).reshape(batch, count * height * width, values)
