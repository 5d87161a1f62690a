"""The detect branch: boxes, objectness and classes for each anchor at each cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtyolo.structures import Level, Pyramid

BOX_VALUES, OBJECTNESS = 5, 4
"""x, y, width, height, objectness; then the classes. And the place of objectness among them."""

OBJECTS_PER_IMAGE = 8
PRIOR_SIZE = 640
"""The official prior of objectness: so many objects in an image of this many pixels a side."""

CLASS_PRIOR = 0.6
"""The official prior of a class: this much shared among the other classes."""

SINGLE_CLASS_GUARD = 0.99999
"""Subtracted from the number of classes: a single class, which is not trained, starts and stays certain."""


class DetectBranch(nn.Module):
    """One 1x1 convolution a level.

    levels: of the fused maps, fine to coarse. anchors: [L][A][2] width and height in pixels.
    forward: stride -> [B, C, H, W] to a list of [B, A, H, W, 5 + classes].
    """

    anchors: Tensor

    def __init__(self, levels: Sequence[Level], classes: int, anchors: Sequence[Sequence[Sequence[float]]]) -> None:
        super().__init__()
        self.strides = tuple(level.stride for level in levels)
        self.register_buffer("anchors", torch.tensor(anchors, dtype=torch.float32))
        count = self.anchors.shape[1]
        self.layers = nn.ModuleList(nn.Conv2d(level.channels, count * (BOX_VALUES + classes), 1) for level in levels)
        self._start_from_priors(count, classes)

    def forward(self, fused: Pyramid, taken: Pyramid | None = None) -> list[Tensor]:
        count = self.anchors.shape[1]
        return [
            # A view: with channels_last convolutions the values of an anchor already lie side by side.
            layer(fused[stride]).unflatten(1, (count, -1)).permute(0, 1, 3, 4, 2)
            for stride, layer in zip(self.strides, self.layers, strict=True)
        ]

    @torch.no_grad()
    def _start_from_priors(self, count: int, classes: int) -> None:
        """Without it a fresh branch sees an object everywhere, and the first steps go into unlearning that."""
        for stride, layer in zip(self.strides, self.layers, strict=True):
            bias = layer.get_parameter("bias").view(count, -1)
            bias[:, OBJECTNESS] += math.log(OBJECTS_PER_IMAGE / (PRIOR_SIZE / stride) ** 2)
            bias[:, BOX_VALUES:] += math.log(CLASS_PRIOR / (classes - SINGLE_CLASS_GUARD))
