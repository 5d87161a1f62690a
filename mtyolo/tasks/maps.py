"""Raw maps of a branch: as rows, and what they say of a box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtyolo.structures import Matches


def joined_rows(maps: Sequence[Tensor]) -> Tensor:
    """Per level [B, A, H, W, values] -> [B, sum(A*H*W), values], in the order of the decoded output."""
    return torch.cat([level.reshape(level.shape[0], -1, level.shape[-1]) for level in maps], 1)


def rows_of(level: Tensor) -> Tensor:
    """[B*H*W*A, values] of a map [B, A, H, W, values], in the order in which a convolution writes under channels_last:
    a view then, otherwise a copy. Rows stay rows."""
    return level if level.ndim == 2 else level.movedim(1, -2).reshape(-1, level.shape[-1])


def empty_map(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uninitialised, of `like`'s kind, channels last, so that `rows_of` it is a view.

    For gradients: the convolution behind the map takes them without a copy, and torch adds to them in place, which it
    does not to a view; so it is made with these strides, not moved to them.
    """
    return like.new_empty_strided(shape, strides_of_rows(shape))


def strides_of_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a map whose rows lie one behind the other, in the order of `rows_of`."""
    if len(shape) == 2:
        return torch.empty(shape, device="meta").stride()
    in_order = torch.empty(shape, device="meta").movedim(1, -2).shape
    return torch.empty(in_order, device="meta").movedim(-2, 1).stride()


def match_rows(matches: Matches, shape: Sequence[int]) -> Tensor:
    """[N] numbers, in the order of `rows_of`, of the rows of a map [B, A, H, W, values] that matched."""
    anchors, height, width = shape[1:4]
    return ((matches.image * height + matches.row) * width + matches.column) * anchors + matches.anchor


def box_of(raw: Tensor, anchors: Tensor) -> Tensor:
    """[..., 4] raw values to boxes: centre relative to the cell's corner, in cells, and size in the anchors' unit.

    A centre reaches half a cell beyond its cell, a size four times the anchor: as far as the assignment goes.
    """
    scaled = raw.sigmoid() * 2
    return torch.cat((scaled[..., :2] - 0.5, scaled[..., 2:] ** 2 * anchors), -1)
