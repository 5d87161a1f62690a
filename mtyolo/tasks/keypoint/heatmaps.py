"""Where in the picture each kind of point is likely: a map a point, and the window of it that belongs to a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtyolo.geometry import AREA_OF_BOX
from mtyolo.graph.blocks import Conv, finish
from mtyolo.structures import Level

CELLS = 32
"""A window is so many cells wide and high, whatever the box's size."""
REACH = 1.2
"""And so many times as large as the box: predicted boxes are off, and a point may lie outside of them."""
START_SCALE = 0.1
"""Of the last layer's usual random weights."""
SMALLEST = 1e-30
"""In place of a sum of nothing."""
ROW_SPREAD = 2.0
"""Times sigma and the root of the box's area: what a branch's rows are trained with (`oks_distance`)."""
SIMILARITY_SPREAD = 2.0 * AREA_OF_BOX**0.5
"""Of the object keypoint similarity: cocodataset.org/#keypoints-eval, which takes a person's own area."""
LABEL_SPREAD = 1.0
"""Of the bump around a label that is learned: less than that of similarity."""


class Heatmaps(nn.Module):
    """A 1x1 convolution for each map that it sees, their sum at one size, a 3x3, and a 1x1 to the points.

    levels: of what forward is given, in its order. forward: list of [B, C, H, W] to [B, K, h, w], h and w of the first.
    The last layer starts small: all places are nearly alike until something has been learned.
    """

    def __init__(self, levels: Sequence[Level], points: int, width: int) -> None:
        super().__init__()
        self.sources = nn.ModuleList(Conv(level.channels, width, 1) for level in levels)
        self.mix = Conv(width, width, 3)
        self.layer = nn.Conv2d(width, points, 1)
        finish(self)
        with torch.no_grad():
            self.layer.weight.mul_(START_SCALE)
            self.layer.get_parameter("bias").zero_()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        seen = [source(level) for source, level in zip(self.sources, features, strict=True)]
        size = seen[0].shape[-2:]
        together = sum(level if level.shape[-2:] == size else _resized(level, size) for level in seen)
        return self.layer(self.mix(together))


def _resized(level: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(level, size, mode="bilinear", antialias=level.shape[-1] > size[-1])


class Places(NamedTuple):
    """Points in the windows of their boxes. In boxes, from the box's centre."""

    points: Tensor  # [N, K, 2]
    spreads: Tensor  # [N, K, 2]: standard deviation at which similarity falls off

    def inside(self) -> Tensor:
        """[N, K] bool: is the point in its window?"""
        return (self.points.abs() < REACH / 2).all(-1)

    def falloff(self) -> tuple[Tensor, Tensor]:
        """The exponent of the similarity between the points and each cell, along x and along y: two [N, K, CELLS]."""
        # A bump that fell between cells would be on none of them.
        spreads = self.spreads.clamp(min=REACH / CELLS / 2)
        away = (self.points[..., None] - cell_centres(self.points)) / spreads[..., None]
        across, down = (away.square() / 2).unbind(2)
        return across, down

    def bumps(self) -> Tensor:
        """[N, K, CELLS ** 2]: logarithm of a normal density around each point, of which a window has 1 in sum."""
        across, down = self.falloff()
        return (-(across[..., None, :] + down[..., :, None])).flatten(2).log_softmax(-1)


def place(points: Tensor, boxes_cxcywh: Tensor, sigmas: Tensor, spread: float) -> Places:
    """points: [N, K, 2], boxes_cxcywh: [N, 4], both in pixels. sigmas: [K]. spread: one of those above."""
    centres, sides = boxes_cxcywh[:, None].tensor_split(2, -1)
    sides = sides.clamp(min=1)
    root = sides.prod(-1, keepdim=True).sqrt()
    return Places((points - centres) / sides, spread * sigmas[:, None] * root / sides)


def cell_centres(like: Tensor) -> Tensor:
    """[CELLS]: of a window's cells along a side, in boxes from the box's centre."""
    return ((torch.arange(CELLS, device=like.device, dtype=like.dtype) + 0.5) / CELLS - 0.5) * REACH


def windows(heatmaps: Tensor, image: Tensor, boxes_cxcywh: Tensor, size: tuple[int, int]) -> Tensor:
    """What the maps say in and around boxes: [N, K, CELLS, CELLS] logits, rows from the top.

    heatmaps: [B, K, h, w]. image: [N], of each box. boxes_cxcywh: [N, 4] pixels. size: height, width of the input.
    """
    height, width = heatmaps.shape[-2:]
    places = boxes_cxcywh[:, :2, None] + boxes_cxcywh[:, 2:, None] * cell_centres(boxes_cxcywh)
    left, right, across = _neighbours(places[:, 0] * (width / size[1]) - 0.5, width)
    above, below, down = _neighbours(places[:, 1] * (height / size[0]) - 0.5, height)
    rows = heatmaps.float().movedim(1, -1).flatten(0, 2)  # a view under channels_last
    first = image[:, None, None] * (height * width)

    def at(y: Tensor, x: Tensor) -> Tensor:
        numbers = first + y[:, :, None] * width + x[:, None]
        return rows.index_select(0, numbers.flatten()).view(*numbers.shape, rows.shape[1])

    across, down = across[:, None, :, None], down[:, :, None, None]
    upper = torch.lerp(at(above, left), at(above, right), across)
    lower = torch.lerp(at(below, left), at(below, right), across)
    return torch.lerp(upper, lower, down).movedim(-1, 1)


def _neighbours(places: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, CELLS] places among `length` values: the two to mix, and the share of the second.

    Not torchvision's roi_align: gradients of gradients are needed, too.
    """
    places = places.clamp(0, length - 1)
    before = places.long()
    return before, (before + 1).clamp(max=length - 1), places - before


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """[N, K]: of the softmax of windows' logits from what is wanted there, [N, K, CELLS ** 2] logarithms.

    Only in the window: another person's elbow elsewhere is right, too.
    """
    return (wanted.exp() * (wanted - logits.flatten(2).log_softmax(-1))).sum(-1)


def refine(points: Tensor, boxes_cxcywh: Tensor, logits: Tensor, sigmas: Tensor) -> Tensor:
    """Points [N, K, 2] moved to where both the rows and the maps say that they are. Pixels.

    points: of the rows. logits: of `windows`. Rows are trained with the loss ln(1 + e), that of a density 1 / (1 + e),
    so what both believe is the softmax of logits - ln(1 + e). The answer is the place with the highest expected
    similarity: what a mean of it gives, between two places far apart, is of no use.
    """
    across, down = place(points, boxes_cxcywh, sigmas, ROW_SPREAD).falloff()
    prior = (across[..., None, :] + down[..., :, None]).add_(1).log_()
    believed = (logits - prior).flatten(2).softmax(-1).view_as(logits)
    similarity = _expected(believed, place(points, boxes_cxcywh, sigmas, SIMILARITY_SPREAD).spreads)
    places = ((_highest(similarity) + 0.5) / CELLS - 0.5) * REACH
    return places * boxes_cxcywh[:, None, 2:] + boxes_cxcywh[:, None, :2]


def _expected(believed: Tensor, spreads: Tensor) -> Tensor:
    """Logarithm of the similarity that each cell would have on average, if the point is where it is believed to be."""
    centres = cell_centres(believed)
    apart = (centres - centres[:, None]).square() / -2
    x_kernels, y_kernels = (apart / spreads[..., None, None].square()).exp().unbind(2)
    return (y_kernels @ believed @ x_kernels).clamp(min=SMALLEST).log()


def _highest(values: Tensor) -> Tensor:
    """[N, K, 2]: column and row of the highest of [N, K, CELLS, CELLS], to fractions of a cell."""
    best = values.flatten(2).argmax(-1)
    row, column = best // CELLS, best % CELLS
    in_row = values.gather(2, row[..., None, None].expand(-1, -1, 1, CELLS)).squeeze(2)
    in_column = values.gather(3, column[..., None, None].expand(-1, -1, CELLS, 1)).squeeze(3)
    return torch.stack((column + _beside(in_row, column), row + _beside(in_column, row)), -1)


def _beside(values: Tensor, best: Tensor) -> Tensor:
    """How far from the best of values [N, K, CELLS] a parabola through it and its neighbours is highest; in cells."""
    before, here, after = (
        values.gather(2, (best + step).clamp(0, CELLS - 1)[..., None]).squeeze(2) for step in (-1, 0, 1)
    )
    bend = (2 * here - before - after).clamp(min=SMALLEST)
    return ((after - before) / (2 * bend)).clamp(-0.5, 0.5).masked_fill((best == 0) | (best == CELLS - 1), 0.0)
