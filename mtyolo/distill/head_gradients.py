"""What the detection loss asks of the features before the head: its derivative by them, itself differentiable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.config.training import LossGains
from mtyolo.model import Model
from mtyolo.structures import Matches, Targets
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
        all_heads = [head for side in heads for head in side]
        matched = [head.matched(targets) for head in all_heads]
        judged = [head.judged(one) for head, one in zip(all_heads, matched, strict=True)]
        slopes = _slopes(judged, targets, all_heads[0])
        gradients = iter([h.back(*two, m) for h, two, m in zip(all_heads, slopes, matched, strict=True)])
        found = [[next(gradients) for _ in side] for side in heads]
    return [dict(zip(side.features, maps, strict=True)) for side, maps in zip(sides, found, strict=True)]


class _Matched(NamedTuple):
    """Where objects matched, and an order in which each anchor's matches lie together: a product for each anchor, where
    one for all would calculate what nobody looks at."""

    matches: Matches
    cells: Tensor  # [N] numbers of rows
    order: Tensor  # [N]
    counts: list[int]  # of each anchor
    places: Tensor  # [N] positions, in this order


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

    def matched(self, targets: Targets) -> _Matched:
        images, height, width, _ = self.features.shape
        count = len(self.anchors)
        (matches,) = assign([self.anchors], [self.stride], [(height, width)], targets).levels
        cells = match_rows(matches, (images, count, height, width))
        order = matches.anchor.argsort()
        return _Matched(matches, cells, order, matches.anchor.bincount(minlength=count).tolist(), cells[order] // count)

    def judged(self, matched: _Matched) -> Judged:
        found = rows_at(self.positions, matched.places).split(matched.counts)
        rows = torch.cat([F.linear(*one) for one in zip(found, self.weight, self.bias, strict=True)])
        objectness = F.linear(self.positions, self.weight[:, OBJECTNESS], self.bias[:, OBJECTNESS]).flatten()
        seen = rows[matched.order.argsort()], objectness
        return Judged(matched.matches, matched.cells, *seen, self.anchors / self.stride, self.balance)

    def back(self, by_rows: Tensor, by_objectness: Tensor, matched: _Matched) -> Tensor:
        """[B, C, H, W], from the derivatives by the two."""
        slopes = by_rows[matched.order].split(matched.counts)
        found = torch.cat([rows @ weight for rows, weight in zip(slopes, self.weight, strict=True)])
        everywhere = by_objectness.view(-1, len(self.bias)) @ self.weight[:, OBJECTNESS]
        return add_rows(everywhere, found, matched.places).view_as(self.features).movedim(-1, 1)


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


def _slopes(levels: Sequence[Judged], targets: Targets, one: _Head) -> list[tuple[Tensor, Tensor]]:
    """Of each: the derivatives by rows and by objectness."""
    seen = [values for level in levels for values in (level.rows, level.objectness)]
    lead_on = [values.requires_grad for values in seen]
    for values in seen:
        values.requires_grad_()
    flags = labelled_images(targets, "detect", len(one.features))
    loss = torch.stack(list(judge(levels, targets, flags, one.gains).values())).sum()
    slopes = torch.autograd.grad(loss, seen, create_graph=True)
    found = [slope if leads else slope.detach() for slope, leads in zip(slopes, lead_on, strict=True)]
    return list(zip(found[::2], found[1::2], strict=True))
