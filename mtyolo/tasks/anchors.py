"""The one assignment of anchors to objects, shared by all branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.structures import Assignment, Matches, Targets

MATCH_RATIO = 4.0
"""An anchor answers for an object whose width and height differ from its own by less than this factor (official)."""

NEIGHBOUR = 0.5
"""An object also takes the cells beside its own whose edge its centre is nearer to than half a cell (official)."""


def assign(
    anchors: Sequence[Tensor] | Tensor,
    strides: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    targets: Targets,
    threshold: float = MATCH_RATIO,
) -> Assignment:
    """Which anchors answer for which objects, as the official YOLOv5 does it.

    anchors: per level [A, 2] in pixels. shapes: (H, W) of each level's map. Reads only shapes and labels.
    """
    return Assignment(
        [
            _match_level(level / stride, shape, targets, threshold)
            for level, stride, shape in zip(anchors, strides, shapes, strict=True)
        ]
    )


def _match_level(anchors: Tensor, shape: tuple[int, int], targets: Targets, threshold: float) -> Matches:
    """anchors: [A, 2] in cells of this level."""
    height, width = shape
    cells = targets.boxes_cxcywh.new_tensor([width, height, width, height])
    boxes = targets.boxes_cxcywh * cells
    ratio = boxes[None, :, 2:] / anchors[:, None]
    fits = torch.maximum(ratio, 1 / ratio).amax(-1) < threshold  # [A, M]
    anchor, number = fits.nonzero(as_tuple=True)
    centre = boxes[number, :2]
    steps = _neighbours(centre, cells[:2])  # [5, N]: itself, left, up, right, down
    kind, row_of = steps.nonzero(as_tuple=True)
    anchor, number, centre = anchor[row_of], number[row_of], centre[row_of]
    cell = (centre - _OFFSETS.to(centre)[kind] * NEIGHBOUR).long()
    column = cell[:, 0].clamp(0, width - 1)
    row = cell[:, 1].clamp(0, height - 1)
    corner = torch.stack((column, row), 1)
    box = torch.cat((centre - corner, boxes[number, 2:]), 1)
    return Matches(targets.image_index[number], anchor, row, column, number, box)


_OFFSETS = torch.tensor([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float32)


def _neighbours(centre: Tensor, cells: Tensor) -> Tensor:
    """Which of the five cells (own, left, up, right, down) each centre takes: [5, N] bool."""
    from_end = cells - centre
    left, up = ((centre % 1 < NEIGHBOUR) & (centre > 1)).T
    right, down = ((from_end % 1 < NEIGHBOUR) & (from_end > 1)).T
    return torch.stack((torch.ones_like(left), left, up, right, down))
