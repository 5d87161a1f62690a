"""The keypoint branch: K points with visibility for each anchor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtyolo.graph.blocks import Conv, finish
from mtyolo.structures import Level, Pyramid
from mtyolo.tasks.maps import cell_corners, split_anchors

VALUES = 3
"""x, y, visibility."""


class KeypointBranch(nn.Module):
    """fused pyramid -> per level [B, A, H, W, 3 * K], raw.

    hidden: channels of a 3x3 convolution before the last one. Points need more context than a frozen detector's
    features hold in one cell; 0 leaves it out.
    """

    def __init__(self, levels: Sequence[Level], anchors: int, points: int, hidden: int = 64) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.anchors_per_level = anchors
        self.layers = nn.ModuleList(self._layer(level.channels, anchors * points * VALUES, hidden) for level in levels)
        finish(self)

    @staticmethod
    def _layer(channels: int, outputs: int, hidden: int) -> nn.Module:
        if not hidden:
            return nn.Conv2d(channels, outputs, 1)
        return nn.Sequential(Conv(channels, hidden, 3), nn.Conv2d(hidden, outputs, 1))

    def forward(self, fused: Pyramid) -> list[Tensor]:
        return [
            split_anchors(layer(fused[level.stride]), self.anchors_per_level)
            for layer, level in zip(self.layers, self.levels, strict=True)
        ]


def decode_keypoints(maps: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """[B, sum(A*H*W), K, 3]: x, y in input pixels, visibility in 0..1; rows as in the classic decoded output."""
    return torch.cat(
        [
            _decode_level(level, anchors[index], stride)
            for index, (level, stride) in enumerate(zip(maps, strides, strict=True))
        ],
        1,
    )


def _decode_level(raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
    batch, count, height, width, _ = raw.shape
    values = raw.unflatten(-1, (-1, VALUES))
    centre = (cell_corners(height, width, raw)[None, None, :, :, None] + 0.5) * stride
    # In anchors, not cells: the same number then means the same pose at every size.
    points = centre + values[..., :2] * anchors.to(raw).view(1, count, 1, 1, 1, 2)
    decoded = torch.cat((points, values[..., 2:].sigmoid()), -1)
    return decoded.reshape(batch, count * height * width, -1, VALUES)
