"""The one assignment: which anchor at which cell answers for which object. Once a step, shared by all tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.structures import Assignment, Matches, Targets
from mtyolo.tasks.maps import match_rows
from mtyolo.tasks.rows import rows_at

MATCH_RATIO = 4.0
"""An anchor answers for objects up to this many times wider or narrower, taller or flatter (official anchor_t)."""

NEIGHBOUR_REACH = 0.5
"""A cell also answers for objects whose centre lies within this many cells of its edge (official g)."""

STEPS = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))
"""From the centre's own cell to its neighbours, as x and y to subtract: none, left, up, right, down."""


def assign(
    anchors: Sequence[Tensor] | Tensor,
    strides: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    targets: Targets,
) -> Assignment:
    """Match objects to anchors by shape, and to the cell of their centre with its two nearest neighbours.

    anchors: [L][A, 2] pixels. strides: [L] pixels. shapes: [L] rows and columns of each level's map.
    Order within a level: step, then anchor, then object; it decides which object a doubly claimed cell reports.
    The rule of YOLOv5 (ultralytics/yolov5, v7.0): no IoU, and one object may match at several levels.
    """
    return Assignment(
        [
            _match_level(level / stride, shape, targets)
            for level, stride, shape in zip(anchors, strides, shapes, strict=True)
        ]
    )


def _match_level(anchors: Tensor, shape: tuple[int, int], targets: Targets) -> Matches:
    """anchors: [A, 2] in cells."""
    height, width = shape
    cells = targets.boxes_cxcywh.new_tensor([width, height])
    centres, sizes = targets.boxes_cxcywh[:, :2] * cells, targets.boxes_cxcywh[:, 2:] * cells
    ratios = sizes / anchors[:, None]
    fits = torch.maximum(ratios, 1 / ratios).amax(-1) < MATCH_RATIO
    anchor, chosen = fits.nonzero(as_tuple=True)
    step, pair = _takes(centres[chosen], cells).nonzero(as_tuple=True)
    anchor, chosen = anchor[pair], chosen[pair]
    steps = centres.new_tensor(STEPS) * NEIGHBOUR_REACH
    column, row = (centres[chosen] - steps[step]).long().unbind(1)
    # A centre on the far edge of the image belongs to the last cell.
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    corner = torch.stack((column, row), 1)
    box = torch.cat((centres[chosen] - corner, sizes[chosen]), 1)
    return Matches(targets.image_index[chosen], anchor, row, column, chosen, box)


def _takes(centres: Tensor, cells: Tensor) -> Tensor:
    """[N, 2] centres in cells -> [5, N] bool: which of STEPS leads to a cell that answers. Neighbours exist inside."""
    from_end = cells - centres
    left, up = ((centres % 1 < NEIGHBOUR_REACH) & (centres > 1)).unbind(1)
    right, down = ((from_end % 1 < NEIGHBOUR_REACH) & (from_end > 1)).unbind(1)
    return torch.stack((torch.ones_like(left), left, up, right, down))


def select_matches(matches: Matches, keep: Tensor) -> Matches:
    """keep: [N] bool."""
    kept = keep.nonzero().squeeze(1)  # once, as a GPU has to be waited for
    return Matches(*(field[kept] for field in matches))


def at_matches(level: Tensor, matches: Matches) -> Tensor:
    """What a map [B, A, H, W, C] says where it matched: [N, C] float32, whatever the map's precision."""
    return rows_at(level, match_rows(matches, level.shape)).float()


def labelled_images(targets: Targets, task: str, images: int) -> Tensor:
    """[B] bool: may the image be judged on the task? Without a word about the task all may."""
    flags = targets.labelled.get(task)
    if flags is None:
        return torch.ones(images, dtype=torch.bool, device=targets.image_index.device)
    return flags


def anchor_rows(
    shapes: Sequence[tuple[int, int]], anchors: Sequence[Tensor] | Tensor, strides: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """For each row of decoded output: its cell's centre and its anchor, both [sum(A*H*W), 2] in pixels.

    Rows run level by level, fine to coarse; within a level by anchor, y, x.
    """
    centres, sizes = [], []
    for (height, width), level, stride in zip(shapes, anchors, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=level.device), torch.arange(width, device=level.device), indexing="ij"
        )
        cells = (torch.stack((x, y), -1).to(level.dtype) + 0.5) * stride
        count = level.shape[0]
        centres.append(cells.expand(count, height, width, 2).reshape(-1, 2))
        sizes.append(level[:, None, None].expand(count, height, width, 2).reshape(-1, 2))
    return torch.cat(centres), torch.cat(sizes)
