"""Maps of a branch: the values of A anchors in each cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.structures import Matches


def split_anchors(maps: Tensor, anchors: int) -> Tensor:
    """[B, A * values, H, W] -> [B, A, H, W, values]."""
    batch, channels, height, width = maps.shape
    return maps.view(batch, anchors, channels // anchors, height, width).permute(0, 1, 3, 4, 2)


def joined_rows(maps: Sequence[Tensor]) -> Tensor:
    """Per level [B, A, H, W, values] -> [B, sum(A*H*W), values], in the order of the decoded output."""
    return torch.cat([level.reshape(level.shape[0], -1, level.shape[-1]) for level in maps], 1)


def cell_corners(height: int, width: int, like: Tensor) -> Tensor:
    """[H, W, 2]: column and row of each cell."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((grid[1], grid[0]), -1)


def of_matches(raw: Tensor, matches: Matches) -> Tensor:
    """[N, values]: what one level says at its matched anchors."""
    return raw[matches.image, matches.anchor, matches.row, matches.column]


def of_labelled(matches: Matches, labelled: Tensor) -> Matches:
    """The matches in images that are labelled for a task. labelled: [B] bool."""
    keep = labelled[matches.image]
    return matches if bool(keep.all()) else Matches(*(values[keep] for values in matches))
