"""What the detection loss asks of the features before the head: its derivative by them, itself differentiable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.config.training import LossGains
from mtyolo.distill.low_rank import LowRank
from mtyolo.model import Model
from mtyolo.structures import Matches, Targets
from mtyolo.tasks import official_gains
from mtyolo.tasks.anchors import assign, labelled_images
from mtyolo.tasks.detect.branch import OBJECTNESS, DetectBranch
from mtyolo.tasks.detect.loss import Judged, judge, level_balance
from mtyolo.tasks.maps import match_rows
from mtyolo.tasks.rows import rows_and_column, rows_at


class Side(NamedTuple):
    """A model, and what is there of its levels, which are numbered fine to coarse: what the head takes, [B, C, H, W],
    or, raw, what it made of that, [B, A, H, W, 5 + classes], in single precision."""

    model: Model
    levels: Mapping[int, Tensor]
    raw: bool = False


def detection_gradients(sides: Sequence[Side], targets: Targets) -> list[dict[int, LowRank]]:
    """For each side, by level: the derivative of the official loss, a mean over images, by what the head takes there.
    It can be differentiated by what is there, if that can, and by the head.

    sides: of the same classes, at one size of the input.
    The head is a 1x1 convolution, and the loss looks at objectness everywhere, at all else where an object matched. So
    nothing here is as large as the map of all classes, of which autograd makes several on its way back and forth.
    """
    with torch.autocast(targets.boxes_cxcywh.device.type, enabled=False):
        heads = [[_head(side, level) for level in side.levels] for side in sides]
        all_heads = [head for side in heads for head in side]
        matched = _matched(all_heads, targets)
        judged = [head.judged(one) for head, one in zip(all_heads, matched, strict=True)]
        slopes = _slopes(judged, targets, all_heads[0])
        gradients = iter([h.back(*two, m) for h, two, m in zip(all_heads, slopes, matched, strict=True)])
        found = [[next(gradients) for _ in side] for side in heads]
    return [dict(zip(side.levels, maps, strict=True)) for side, maps in zip(sides, found, strict=True)]


class _Matched(NamedTuple):
    """Where objects matched, and an order in which each anchor's matches lie together: a product for each anchor, where
    one for all would calculate what nobody looks at."""

    matches: Matches
    cells: Tensor  # [N] numbers of rows
    order: Tensor  # [N]
    counts: list[int]  # of each anchor
    places: Tensor  # [N] positions, in this order


class _Head(NamedTuple):
    """A level's convolution as the matrix that it is."""

    weight: Tensor  # [A, 5 + classes, C]
    bias: Tensor  # [A, 5 + classes]
    given: Tensor  # as the side has it
    raw: bool
    shape: tuple[int, int, int]  # B, H, W
    anchors: Tensor  # [A, 2] pixels
    stride: int
    balance: float
    gains: LossGains

    def matched(self, targets: Targets) -> _Matched:
        images, height, width = self.shape
        count = len(self.anchors)
        (matches,) = assign([self.anchors], [self.stride], [(height, width)], targets).levels
        cells = match_rows(matches, (images, count, height, width))
        order = matches.anchor.argsort()
        return _Matched(matches, cells, order, matches.anchor.bincount(minlength=count).tolist(), cells[order] // count)

    def matches_as(self, other: _Head) -> bool:
        return self.shape == other.shape and self.stride == other.stride and torch.equal(self.anchors, other.anchors)

    def judged(self, matched: _Matched) -> Judged:
        seen = self._found(matched) if self.raw else self._made(matched)
        return Judged(matched.matches, matched.cells, *seen, self.anchors / self.stride, self.balance)

    def _found(self, matched: _Matched) -> tuple[Tensor, Tensor]:
        """Rows and objectness."""
        return rows_and_column(self.given, matched.cells, OBJECTNESS)

    def _made(self, matched: _Matched) -> tuple[Tensor, Tensor]:
        positions = self.given.float().movedim(1, -1).flatten(0, 2)
        found = rows_at(positions, matched.places).split(matched.counts)
        rows = torch.cat([F.linear(*one) for one in zip(found, self.weight, self.bias, strict=True)])
        objectness = F.linear(positions, self.weight[:, OBJECTNESS], self.bias[:, OBJECTNESS]).flatten()
        return rows[matched.order.argsort()], objectness

    def back(self, by_rows: Tensor, by_objectness: Tensor, matched: _Matched) -> LowRank:
        """From the derivatives by the two."""
        slopes = by_rows[matched.order].split(matched.counts)
        rows = torch.cat([rows @ weight for rows, weight in zip(slopes, self.weight, strict=True)])
        amounts = by_objectness.view(self.shape[0], -1, len(self.bias))
        return LowRank(amounts, self.weight[:, OBJECTNESS], matched.places, rows)


def _head(side: Side, level: int) -> _Head:
    model, given = side.model, side.levels[level]
    branch = model.branches["detect"]
    assert isinstance(branch, DetectBranch)
    weight, bias = (branch.layers[level].get_parameter(name) for name in ("weight", "bias"))
    anchors, stride, levels = model.anchors[level], model.strides[level], len(model.strides)
    height, width = given.shape[2:4]
    return _Head(
        weight.flatten(1).unflatten(0, (len(anchors), -1)),
        bias.view(len(anchors), -1),
        given,
        side.raw,
        (len(given), height, width),
        anchors,
        stride,
        level_balance(level, levels),
        official_gains(LossGains(), classes=len(model.names), size=height * stride, levels=levels),
    )


def _matched(heads: Sequence[_Head], targets: Targets) -> list[_Matched]:
    """Of each; a teacher's anchors are its student's in most cases."""
    found: list[_Matched] = []
    for head in heads:
        earlier = (one for one, other in zip(found, heads, strict=False) if head.matches_as(other))
        found.append(next(earlier, None) or head.matched(targets))
    return found


def _slopes(levels: Sequence[Judged], targets: Targets, one: _Head) -> list[tuple[Tensor, Tensor]]:
    """Of each: the derivatives by rows and by objectness."""
    seen = [values for level in levels for values in (level.rows, level.objectness)]
    lead_on = [values.requires_grad for values in seen]
    for values in seen:
        values.requires_grad_()
    flags = labelled_images(targets, "detect", one.shape[0])
    loss = torch.stack(list(judge(levels, targets, flags, one.gains).values())).sum()
    slopes = torch.autograd.grad(loss, seen, create_graph=True)
    found = [slope if leads else slope.detach() for slope, leads in zip(slopes, lead_on, strict=True)]
    return list(zip(found[::2], found[1::2], strict=True))
