"""The segment branch: prototypes shared by an image's instances, and coefficients for each anchor that mix them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtyolo.graph.blocks import Prototypes, finish
from mtyolo.structures import Level, MaskOutputs, Pyramid


class SegmentBranch(nn.Module):
    """One 1x1 convolution a level for the coefficients; a small network on the finest level for the prototypes.

    levels: of the fused maps, fine to coarse. channels: width inside the prototype network.
    forward: stride -> [B, C, H, W] to MaskOutputs, prototypes at twice the finest level's size.
    Bolya et al. 2019, arXiv:1904.02689; without tanh, as YOLOv5 has it.
    """

    def __init__(
        self, levels: Sequence[Level], anchors_per_level: int, prototypes: int = 32, channels: int = 256
    ) -> None:
        super().__init__()
        self.strides = tuple(level.stride for level in levels)
        self.count = prototypes
        self.layers = nn.ModuleList(nn.Conv2d(level.channels, anchors_per_level * prototypes, 1) for level in levels)
        self.prototypes = Prototypes(levels[0].channels, channels, prototypes)
        finish(self)

    def forward(self, fused: Pyramid, taken: Pyramid | None = None) -> MaskOutputs:
        coefficients = [
            layer(fused[stride]).unflatten(1, (-1, self.count)).permute(0, 1, 3, 4, 2)
            for stride, layer in zip(self.strides, self.layers, strict=True)
        ]
        return MaskOutputs(coefficients, self.prototypes(fused[self.strides[0]]))
