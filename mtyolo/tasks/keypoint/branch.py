"""The keypoint branch: K points with visibility for each anchor at each cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtyolo.graph.blocks import Conv, finish
from mtyolo.structures import KeypointOutputs, Level, Pyramid
from mtyolo.tasks.keypoint.heatmaps import Heatmaps

POINT_VALUES = 3
"""x, y, visibility."""

START_SCALE = 0.1
"""Of the last layer's usual random weights, with biases zero: all points start close to their box's centre."""
RAREST, COMMONEST = 0.01, 0.99
"""Visibility is never taken for certain."""


class KeypointBranch(nn.Module):
    """Two 3x3 convolutions and a 1x1 a level.

    levels: of the fused maps, fine to coarse. hidden: channels between them; by default as many as the finest level
    has, and no fewer than values of an anchor; 0 leaves the 3x3 out. They are there because a linear map of a frozen
    detector's features finds points badly. Measured as in `points_of`: mean OKS 0.135 with one, 0.151 with two.
    heatmaps: also say where in the picture each point is likely, from all levels at the finest one's stride?
    taken: levels that the neck takes in, fine to coarse, to look at for that.
    forward: stride -> [B, C, H, W] to KeypointOutputs.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        anchors_per_level: int,
        points: int,
        *,
        hidden: int | None = None,
        heatmaps: bool = True,
        taken: Sequence[Level] = (),
    ) -> None:
        super().__init__()
        values = POINT_VALUES * points
        width = max(levels[0].channels, values) if hidden is None else hidden
        self.strides = tuple(level.stride for level in levels)
        self.values = values
        self.hidden = nn.ModuleList(
            nn.Sequential(Conv(level.channels, width, 3), Conv(width, width, 3)) if width else nn.Identity()
            for level in levels
        )
        self.layers = nn.ModuleList(
            nn.Conv2d(width or level.channels, anchors_per_level * values, 1) for level in levels
        )
        self.heatmaps = Heatmaps([*levels, *taken], points, levels[0].channels) if heatmaps else None
        finish(self)
        self._start_at_the_centres()

    def forward(self, fused: Pyramid, taken: Pyramid | None = None) -> KeypointOutputs:
        points = [
            layer(hidden(fused[stride])).unflatten(1, (-1, self.values)).permute(0, 1, 3, 4, 2)
            for stride, hidden, layer in zip(self.strides, self.hidden, self.layers, strict=True)
        ]
        if self.heatmaps is None:
            return KeypointOutputs(points)
        return KeypointOutputs(points, self.heatmaps([*_in_order(fused), *_in_order(taken or {})]))

    @property
    def is_fresh(self) -> bool:
        """Has it neither learned nor been given a pose yet?"""
        return not any(layer.get_parameter("bias").any() for layer in self.layers)

    @torch.no_grad()
    def start_at(self, pose: Tensor, visible: Tensor) -> None:
        """Let every anchor say the same of every object. pose: [K, 2] in boxes from the box's centre. visible: [K],
        how often each point is labelled.

        As detectors start with the frequency of their classes: an optimiser that moves a bias by its rate needs
        hundreds of steps to the height of a head.
        """
        logits = visible.clamp(RAREST, COMMONEST).logit()
        for layer in self.layers:
            bias = layer.get_parameter("bias")
            bias.copy_(torch.cat((pose, logits[:, None]), 1).flatten().repeat(len(bias) // self.values))

    @torch.no_grad()
    def _start_at_the_centres(self) -> None:
        for layer in self.layers:
            layer.get_parameter("weight").mul_(START_SCALE)
            layer.get_parameter("bias").zero_()


def _in_order(pyramid: Pyramid) -> list[Tensor]:
    """Fine to coarse."""
    return [pyramid[stride] for stride in sorted(pyramid)]
