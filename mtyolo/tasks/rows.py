"""Rows of raw maps, with a gradient that costs little: losses look at few rows, and the gradient is a whole map.

It is written as the convolution behind it wrote the map: indexing makes one in another layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtyolo.tasks.maps import empty_map, rows_of, strides_of_rows

Wanted = tuple[Tensor, int | None]
"""Numbers [N] of rows, and a column of all rows."""
Slopes = tuple[Tensor, Tensor | None]
"""Derivatives by rows [N, values], and by a column [B*H*W*A]."""


def rows_at(level: Tensor, numbers: Tensor) -> Tensor:
    """Rows [N, values] of a map at these numbers, which may repeat: what indexing gives, at less cost."""
    return _picked(level, numbers, None)[0]


def rows_and_column(level: Tensor, numbers: Tensor, column: int) -> tuple[Tensor, Tensor]:
    """The same, and one column of all rows, [B*H*W*A], differentiated together: selected one after the other, each is a
    full map of gradient to fill and to add. A training step of a small network on one core took a fifth longer so."""
    picked, whole = _picked(level, numbers, column)
    assert whole is not None
    return picked, whole


def add_at(rows: Tensor, numbers: Tensor, added: Tensor) -> Tensor:
    """The rows, to which others are added in place at these numbers, which may repeat."""
    if rows.device.type == "cpu":
        return rows.index_add_(0, numbers, added)
    # In a fixed order; on a CPU the other's is fixed, too, in a fifth of the time.
    return rows.index_put_((numbers,), added, accumulate=True)


def gathered(level: Tensor) -> Tensor:
    """The same map, for several losses: one map of gradient for all rows that they take from what is returned.

    Otherwise each makes one of its own, and these are added. Nothing else may ask for the gradient by what is returned:
    rows do not count towards it, but towards the gradient by `level`.
    """
    shared: Tensor = _Gathered.apply(level)
    return shared


def _picked(level: Tensor, numbers: Tensor, column: int | None) -> tuple[Tensor, Tensor | None]:
    waiting = getattr(level.grad_fn, "waiting", None)
    found: tuple[Tensor, Tensor | None] = _Picked.apply(level, numbers, column, waiting)
    return found


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, level: Tensor, numbers: Tensor, column: int | None, waiting: list[tuple[Wanted, Slopes]] | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(numbers)
        ctx.shape, ctx.column, ctx.waiting = level.shape, column, waiting
        rows = rows_of(level)
        return rows.index_select(0, numbers), None if column is None else rows[:, column].clone()

    @staticmethod
    def backward(ctx: Any, to_picked: Tensor, to_column: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        (numbers,) = ctx.saved_tensors
        # Who differentiates again needs to see where the gradient came from.
        if ctx.waiting is None or torch.is_grad_enabled():
            return _Spread.apply(to_picked, to_column, numbers, ctx.shape, ctx.column), None, None, None
        ctx.waiting.append(((numbers, ctx.column), (to_picked, to_column)))
        return None, None, None, None


class _Spread(torch.autograd.Function):
    """Back to a map that is zero elsewhere; by itself, so that who differentiates again can differentiate it, too."""

    @staticmethod
    def forward(
        ctx: Any, picked: Tensor, whole: Tensor | None, numbers: Tensor, shape: torch.Size, column: int | None
    ) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.column = column
        spread = empty_map(shape, picked).zero_()
        _add(spread, (numbers, column), (picked, whole))
        return spread

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        picked, whole = _picked(gradient, ctx.saved_tensors[0], ctx.column)
        return picked, whole, None, None, None


class _Gathered(torch.autograd.Function):
    """Where rows' derivatives wait: torch comes here when all losses were asked, with what else they say of the map."""

    @staticmethod
    def forward(ctx: Any, level: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.waiting = level.shape, []
        return level.view_as(level)

    @staticmethod
    def backward(ctx: Any, others: Tensor | None) -> Tensor | None:
        waiting = list(ctx.waiting)
        ctx.waiting.clear()  # a second backward pass, as balancers make, begins anew
        if not waiting:
            return others
        gradient = _laid_out(others) if others is not None else empty_map(ctx.shape, waiting[0][1][0]).zero_()
        for wanted, slopes in waiting:
            _add(gradient, wanted, slopes)
        return gradient


def _laid_out(gradient: Tensor) -> Tensor:
    """To be written to: itself where its rows can be, as those of losses that make it for this map."""
    if gradient.stride() == strides_of_rows(gradient.shape):
        return gradient
    return empty_map(gradient.shape, gradient).copy_(gradient)


def _add(spread: Tensor, wanted: Wanted, slopes: Slopes) -> None:
    """To a map, in place."""
    (numbers, column), (picked, whole) = wanted, slopes
    rows = add_at(rows_of(spread), numbers, picked)
    if whole is not None:
        rows[:, column] += whole
