"""What the detection loss asks of the features before the head: its derivative by them, itself differentiable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.config.training import LossGains
from mtyolo.model import Model
from mtyolo.structures import Targets
from mtyolo.tasks import official_gains
from mtyolo.tasks.anchors import assign, labelled_images
from mtyolo.tasks.detect.branch import OBJECTNESS, DetectBranch
from mtyolo.tasks.detect.loss import Judged, judge, level_balance
from mtyolo.tasks.maps import match_rows
from mtyolo.tasks.rows import add_rows, rows_at


class Side(NamedTuple):
    """A model, and what its head takes: number of a level, fine to coarse -> [B, C, H, W]."""

    model: Model
    features: Mapping[int, Tensor]


def detection_gradients(sides: Sequence[Side], targets: Targets) -> list[dict[int, Tensor]]:
    """For each side, by level: [B, C, H, W], the derivative of the official loss, a mean over images, by what the head
    takes there. It can be differentiated by these features, if they can, and by the head.

    sides: of the same classes, at one size of the input.
    The head is a 1x1 convolution, and the loss looks at objectness everywhere, at all else where an object matched. So
    nothing here is as large as the map of all classes, of which autograd makes several on its way back and forth.
    """
    with torch.autocast(targets.boxes_cxcywh.device.type, enabled=False):
        heads = [[_head(side.model, level, maps) for level, maps in side.features.items()] for side in sides]
        judged = [head.judged(targets) for side in heads for head in side]
        slopes = iter(_slopes(judged, targets, heads[0][0]))
        found = [[head.back(*next(slopes)) for head in side] for side in heads]
    return [dict(zip(side.features, maps, strict=True)) for side, maps in zip(sides, found, strict=True)]


class _Head(NamedTuple):
    """A level's convolution as the matrix that it is, and what goes in."""

    weight: Tensor  # [A, 5 + classes, C]
    bias: Tensor  # [A, 5 + classes]
    features: Tensor  # [B, H, W, C]
    anchors: Tensor  # [A, 2] pixels
    stride: int
    balance: float
    gains: LossGains

    @property
    def positions(self) -> Tensor:
        """[B*H*W, C]."""
        return self.features.flatten(0, 2)

    def judged(self, targets: Targets) -> Judged:
        images, height, width, _ = self.features.shape
        (matches,) = assign([self.anchors], [self.stride], [(height, width)], targets).levels
        cells = match_rows(matches, (images, len(self.anchors), height, width))
        anchors = self.anchors / self.stride
        return Judged(matches, cells, self._rows(cells), self._objectness(), anchors, self.balance)

    def _rows(self, cells: Tensor) -> Tensor:
        order, counts = self._by_anchor(cells)
        found = rows_at(self.positions, cells[order] // len(self.bias)).split(counts)
        rows = torch.cat([F.linear(*one) for one in zip(found, self.weight, self.bias, strict=True)])
        return rows[order.argsort()]

    def _objectness(self) -> Tensor:
        return F.linear(self.positions, self.weight[:, OBJECTNESS], self.bias[:, OBJECTNESS]).flatten()

    def back(self, cells: Tensor, by_rows: Tensor, by_objectness: Tensor) -> Tensor:
        """[B, C, H, W], from the derivatives by the two."""
        order, counts = self._by_anchor(cells)
        slopes = by_rows[order].split(counts)
        found = torch.cat([rows @ weight for rows, weight in zip(slopes, self.weight, strict=True)])
        everywhere = by_objectness.view(-1, len(self.bias)) @ self.weight[:, OBJECTNESS]
        gradient = add_rows(everywhere, found, cells[order] // len(self.bias))
        return gradient.view_as(self.features).movedim(-1, 1)

    def _by_anchor(self, cells: Tensor) -> tuple[Tensor, list[int]]:
        """An order in which each anchor's rows lie together, and how many these are: a product for each anchor, where
        one for all would calculate what nobody looks at."""
        anchor = cells % len(self.bias)
        return anchor.argsort(), anchor.bincount(minlength=len(self.bias)).tolist()


def _head(model: Model, level: int, maps: Tensor) -> _Head:
    branch = model.branches["detect"]
    assert isinstance(branch, DetectBranch)
    weight, bias = (branch.layers[level].get_parameter(name) for name in ("weight", "bias"))
    anchors, stride, levels = model.anchors[level], model.strides[level], len(model.strides)
    gains = official_gains(LossGains(), classes=len(model.names), size=maps.shape[2] * stride, levels=levels)
    return _Head(
        weight.flatten(1).unflatten(0, (len(anchors), -1)),
        bias.view(len(anchors), -1),
        maps.float().movedim(1, -1),
        anchors,
        stride,
        level_balance(level, levels),
        gains,
    )


def _slopes(levels: Sequence[Judged], targets: Targets, one: _Head) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each: where it matched, and the derivatives by rows and by objectness."""
    seen = [values for level in levels for values in (level.rows, level.objectness)]
    lead_on = [values.requires_grad for values in seen]
    for values in seen:
        values.requires_grad_()
    flags = labelled_images(targets, "detect", len(one.features))
    loss = torch.stack(list(judge(levels, targets, flags, one.gains).values())).sum()
    slopes = torch.autograd.grad(loss, seen, create_graph=True)
    found = [slope if leads else slope.detach() for slope, leads in zip(slopes, lead_on, strict=True)]
    return list(zip([level.cells for level in levels], found[::2], found[1::2], strict=True))
