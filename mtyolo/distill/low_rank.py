"""Maps that are a few directions everywhere and more at few places, compared by these, never written out.

A detection loss's derivative by what the head takes is one: objectness is judged everywhere, all else where an object
matched.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.tasks.rows import add_at

SMALLEST_SQUARE = 1e-24
"""Of a length: what is shorter has no direction."""


class LowRank(NamedTuple):
    """Maps [B, C, H, W]: `amounts` of `directions`, and `rows` on top of that at `places`."""

    amounts: Tensor  # [B, H*W, A]
    directions: Tensor  # [A, C]
    places: Tensor  # [N] positions, counted through the batch; one may come several times, its rows add up
    rows: Tensor  # [N, C]

    def projected(self, weight: Tensor | None) -> LowRank:
        """weight: [C', C], of a 1x1 convolution."""
        if weight is None:
            return self
        return self._replace(directions=F.linear(self.directions, weight), rows=F.linear(self.rows, weight))


class _Parted(NamedTuple):
    """The same with all that there is at some places there, and nothing of it elsewhere."""

    amounts: Tensor  # [B, H*W, A]
    directions: Tensor  # [A, C]
    rows: Tensor  # [N, C] a place each

    def product(self, other: _Parted, images: Tensor) -> Tensor:
        """[B], of each image's maps as one vector with the other's. images: [N] of each place."""
        among = self.directions @ other.directions.t()
        everywhere = ((self.amounts.mT @ other.amounts) * among).sum((1, 2))
        return add_at(everywhere, images, torch.linalg.vecdot(self.rows, other.rows))


def angle(student: LowRank, teacher: LowRank) -> Tensor:
    """1 - cosine of each image's maps as one vector, a mean over images; what has no length has no direction, is told
    none and does not count. Both of one shape."""
    places = torch.cat((student.places, teacher.places)).unique()
    images = places // student.amounts.shape[1]
    own, other = _parted(student, places), _parted(teacher, places)
    squares, others = own.product(own, images), other.product(other, images)
    there = (squares > SMALLEST_SQUARE) & (others > SMALLEST_SQUARE)
    # Each by itself: the product of what is small twice would be nothing.
    lengths = torch.where(there, squares, 1).sqrt() * torch.where(there, others, 1).sqrt()
    cosines = torch.where(there, own.product(other, images), 0) / lengths
    return (there.sum() - cosines.sum()) / there.sum().clamp(min=1)


def _parted(maps: LowRank, places: Tensor) -> _Parted:
    """places: in order, each once, the maps' own among them."""
    amounts = maps.amounts.flatten(0, 1)
    rows = add_at(amounts[places] @ maps.directions, torch.searchsorted(places, maps.places), maps.rows)
    return _Parted(amounts.index_fill(0, places, 0).view_as(maps.amounts), maps.directions, rows)
