"""The detect branch: a 1x1 convolution per level, boxes on anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtyolo.structures import Level, Pyramid
from mtyolo.tasks.maps import split_anchors

BOX_ROWS = 5
"""x, y, w, h, objectness: what stands before the classes."""

PRIOR_OBJECTS = 8
"""Objects expected in a 640 px image, for the initial objectness (official)."""

PRIOR_SIZE = 640


class DetectBranch(nn.Module):
    """fused pyramid -> per level [B, A, H, W, 5 + classes], raw.

    anchors: [L][A][2] width and height in pixels, fine to coarse.
    """

    anchors: Tensor

    def __init__(self, levels: Sequence[Level], classes: int, anchors: Sequence[Sequence[Sequence[float]]]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.classes = classes
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32))
        outputs = len(anchors[0]) * (BOX_ROWS + classes)
        self.layers = nn.ModuleList(nn.Conv2d(level.channels, outputs, 1) for level in levels)
        self._expect_few_objects()

    def forward(self, fused: Pyramid) -> list[Tensor]:
        return [
            split_anchors(layer(fused[level.stride]), self.anchors.shape[1])
            for layer, level in zip(self.layers, self.levels, strict=True)
        ]

    @torch.no_grad()
    def _expect_few_objects(self) -> None:
        """Initial biases: without them the loss of millions of empty cells drowns everything for an epoch."""
        for layer, level in zip(self.layers, self.levels, strict=True):
            bias = layer.get_parameter("bias").view(self.anchors.shape[1], -1)
            bias[:, 4] += math.log(PRIOR_OBJECTS / (PRIOR_SIZE / level.stride) ** 2)
            bias[:, BOX_ROWS:] += math.log(0.6 / (self.classes - 0.99999))
