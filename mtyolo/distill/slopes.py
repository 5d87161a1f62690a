"""Losses that know their derivatives: these are made on the way to the value, of what that needs anyway.

Maps of all classes and of features are millions of values a batch, and what a loss of them costs is its passes over
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Sloped(NamedTuple):
    """A loss and its derivatives, which are `slope * scale`: not rounded to the inputs' kind before they meet, as a
    weight by itself may be too small for half precision."""

    value: Tensor  # scalar
    slopes: tuple[Tensor, ...]  # by each input, new, in its shape and kind
    scale: Tensor | float


def with_slopes(calculate: Callable[..., Sloped], *inputs: Tensor) -> Tensor:
    """`calculate(*inputs)`, without autocast, differentiable once by the inputs, one gradient at a time; what else it
    looks at gets none."""
    loss: Tensor = _WithSlopes.apply(calculate, *inputs)
    return loss


class _WithSlopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, calculate: Callable[..., Sloped], *inputs: Tensor) -> Tensor:
        ctx.calculate = calculate
        ctx.save_for_backward(*inputs)
        # Without the value: it leads back here, and a loss that is dropped would stay until cycles are looked for.
        value, *ctx.found = _exactly(calculate, inputs)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Given away: a copy of a map of all classes costs half of what the loss does. Who differentiates again, as
        # some balancers, gets it calculated again.
        found, ctx.found = ctx.found, None
        slopes, scale = found or _exactly(ctx.calculate, ctx.saved_tensors)[1:]
        # A scalar would be rounded to the slope's kind first.
        factor = torch.atleast_1d(scale * gradient)
        return None, *(slope.mul_(factor) for slope in slopes)


def _exactly(calculate: Callable[..., Sloped], inputs: Sequence[Tensor]) -> Sloped:
    with torch.autocast(inputs[0].device.type, enabled=False):
        return calculate(*inputs)


def precision_of(values: Tensor) -> torch.dtype:
    """Single, or better where the values are."""
    return torch.promote_types(values.dtype, torch.float32)


def parts(batch: Tensor, most: int) -> Iterator[slice]:
    """Of the first dimension: on a CPU so many a thread that what is in between stays in its cache, elsewhere all."""
    whole = len(batch)
    step = most * torch.get_num_threads() if batch.device.type == "cpu" else whole
    for start in range(0, whole, max(1, step)):
        yield slice(start, min(start + step, whole))
