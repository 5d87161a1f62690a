"""Raw maps of a branch: as rows, some of these rows with a gradient that costs little, and what they say of a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    if len(shape) == 2:
        return like.new_empty(shape)
    in_order = torch.empty(shape, device="meta").movedim(1, -2).shape
    return like.new_empty_strided(shape, torch.empty(in_order, device="meta").movedim(-2, 1).stride())


def match_rows(matches: Matches, shape: Sequence[int]) -> Tensor:
    """[N] numbers, in the order of `rows_of`, of the rows of a map [B, A, H, W, values] that matched."""
    anchors, height, width = shape[1:4]
    return ((matches.image * height + matches.row) * width + matches.column) * anchors + matches.anchor


def rows_at(level: Tensor, numbers: Tensor) -> Tensor:
    """Rows [N, values] of a map at these numbers, which may repeat; what indexing gives, but for the gradient's price.

    The gradient is written into a map as the convolution wrote it. Indexing makes a map in another layout of it.
    """
    return _Picked.apply(level, numbers, None)[0]


def rows_and_column(level: Tensor, numbers: Tensor, column: int) -> tuple[Tensor, Tensor]:
    """The same, and one column of all rows, [B*H*W*A], differentiated together: selected one after the other, each is a
    full map of gradient to fill and to add. A training step of a small network on one core took a fifth longer so."""
    picked, whole = _Picked.apply(level, numbers, column)
    return picked, whole


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, level: Tensor, numbers: Tensor, column: int | None) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(numbers)
        ctx.shape, ctx.column = level.shape, column
        rows = rows_of(level)
        return rows.index_select(0, numbers), None if column is None else rows[:, column].clone()

    @staticmethod
    def backward(ctx: Any, to_picked: Tensor, to_column: Tensor | None) -> tuple[Tensor, None, None]:
        return _Spread.apply(to_picked, to_column, ctx.saved_tensors[0], ctx.shape, ctx.column), None, None


class _Spread(torch.autograd.Function):
    """Back to a map that is zero elsewhere; by itself, as teachers' gradient similarity differentiates it, too."""

    @staticmethod
    def forward(
        ctx: Any, picked: Tensor, whole: Tensor | None, numbers: Tensor, shape: torch.Size, column: int | None
    ) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.column = column
        spread = empty_map(shape, picked).zero_()
        rows = rows_of(spread)
        rows.index_put_((numbers,), picked, accumulate=True)
        if whole is not None:
            rows[:, column] += whole
        return spread

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        picked, whole = _Picked.apply(gradient, ctx.saved_tensors[0], ctx.column)
        return picked, whole, None, None, None


def box_of(raw: Tensor, anchors: Tensor) -> Tensor:
    """[..., 4] raw values to boxes: centre relative to the cell's corner, in cells, and size in the anchors' unit.

    A centre reaches half a cell beyond its cell, a size four times the anchor: as far as the assignment goes.
    """
    scaled = raw.sigmoid() * 2
    return torch.cat((scaled[..., :2] - 0.5, scaled[..., 2:] ** 2 * anchors), -1)
