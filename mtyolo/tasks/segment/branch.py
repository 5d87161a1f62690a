"""The segment branch: prototypes for the image, coefficients for each anchor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtyolo.graph.blocks import Prototypes, finish
from mtyolo.structures import Level, MaskOutputs, Pyramid
from mtyolo.tasks.maps import split_anchors


class SegmentBranch(nn.Module):
    """fused pyramid -> MaskOutputs. Prototypes come from the finest level, at twice its size.

    An instance's mask is sigmoid(coefficients . prototypes), inside its box. Bolya et al. 2019, arXiv:1904.02689.
    """

    def __init__(self, levels: Sequence[Level], anchors: int, prototypes: int = 32, channels: int = 256) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.anchors_per_level = anchors
        self.layers = nn.ModuleList(nn.Conv2d(level.channels, anchors * prototypes, 1) for level in levels)
        self.prototypes = Prototypes(levels[0].channels, channels, prototypes)
        finish(self)

    def forward(self, fused: Pyramid) -> MaskOutputs:
        coefficients = [
            split_anchors(layer(fused[level.stride]), self.anchors_per_level)
            for layer, level in zip(self.layers, self.levels, strict=True)
        ]
        return MaskOutputs(coefficients, self.prototypes(fused[self.levels[0].stride]))
