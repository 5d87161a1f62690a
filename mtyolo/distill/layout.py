"""From the rows of any head to the student's: the same cell, the same level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.structures import KeypointOutputs, MaskOutputs, Outputs
from mtyolo.tasks.anchors import MATCH_RATIO, anchor_rows
from mtyolo.tasks.keypoint.branch import POINT_VALUES
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.maps import box_of

EDGE = 1e-4
"""Probabilities of converted rows keep this distance from 0 and 1, so that their logits stay within about ±9."""

Shape = tuple[int, int]


class Layout(NamedTuple):
    """What a row of a head means."""

    strides: tuple[int, ...]
    anchors: Tensor  # [L, A, 2] pixels

    def shapes(self, size: Shape) -> list[Shape]:
        return [(size[0] // stride, size[1] // stride) for stride in self.strides]

    def equals(self, other: Layout) -> bool:
        return (
            self.strides == other.strides
            and self.anchors.shape == other.anchors.shape
            and bool(torch.equal(self.anchors.cpu(), other.anchors.cpu()))
        )


class Geometry(NamedTuple):
    """Of each of R rows: its cell's centre, its anchor, its stride. Pixels."""

    centres: Tensor  # [R, 2]
    anchors: Tensor  # [R, 2]
    strides: Tensor  # [R, 1]


class Cells(NamedTuple):
    """What a head says at one level, in plain terms. Boxes and points in pixels of the input that the head saw."""

    boxes: Tensor  # [B, A, H, W, 4] cxcywh
    objectness: Tensor  # [B, A, H, W] probability
    classes: Tensor  # [B, A, H, W, nc] probability, given an object
    coefficients: Tensor | None = None  # [B, A, H, W, P]
    points: Tensor | None = None  # [B, A, H, W, 3 * K] x, y, visibility logit


def geometry(layout: Layout, size: Shape) -> Geometry:
    shapes = layout.shapes(size)
    centres, anchors = anchor_rows(shapes, layout.anchors, layout.strides)
    count = layout.anchors.shape[1]
    rows = [
        stride for (h, w), stride in zip(shapes, layout.strides, strict=True) for stride in [stride] * (count * h * w)
    ]
    return Geometry(centres, anchors, centres.new_tensor(rows)[:, None])


def boxes_at(raw: Tensor, place: Geometry) -> Tensor:
    """[N, 4] raw values of N rows to cxcywh in pixels. place: of these rows."""
    relative = box_of(raw, place.anchors)
    return torch.cat(((relative[:, :2] - 0.5) * place.strides + place.centres, relative[:, 2:]), 1)


def cells_of(maps: Sequence[Tensor], layout: Layout, size: Shape) -> list[Cells]:
    """Of a classic head: [B, A, H, W, 5 + classes] a level."""
    place = geometry(layout, size)
    cells, start = [], 0
    for level in maps:
        raw, count = level.float().flatten(0, 3), level[0, ..., 0].numel()
        rows = Geometry(*(part[start : start + count].repeat(level.shape[0], 1) for part in place))
        boxes = boxes_at(raw[:, :4], rows).unflatten(0, level.shape[:-1])
        scores = raw[:, 4:].sigmoid().unflatten(0, level.shape[:-1])
        cells.append(Cells(boxes, scores[..., 0], scores[..., 1:]))
        start += count
    return cells


def points_in_pixels(maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
    """[B, A, H, W, 3 * K] raw a level to the same with x, y in pixels; visibility stays a logit.

    boxes: [B, A, H, W, 4] cxcywh a level, of the same rows.
    """
    found = []
    for level, places in zip(maps, boxes, strict=True):
        points, seen = points_of(level.flatten(0, 3), places.flatten(0, 3))
        found.append(torch.cat((points, seen[..., None]), -1).flatten(1).unflatten(0, level.shape[:-1]))
    return found


def from_scores(boxes: Tensor, scores: Tensor) -> Cells:
    """Where a head knows no objectness: the best class's score is it, and classes are relative to the best.

    boxes: [B, A, H, W, 4] pixels. scores: [B, A, H, W, nc] probabilities.
    """
    best = scores.amax(-1)
    return Cells(boxes, best, scores / best[..., None].clamp(min=EDGE))


def choose_classes(cells: Cells, columns: Sequence[int | None]) -> Cells:
    """The student's classes among the teacher's: for each its column; None where the teacher does not know it.

    Objects of other classes are background to the student: where the teacher knows more, an object is one of those that
    are left.
    """
    known = [column for column in columns if column is not None]
    classes = cells.classes[..., [0 if column is None else column for column in columns]]
    unknown = torch.tensor([column is None for column in columns], device=classes.device)
    classes = classes.masked_fill(unknown, 0.0)
    if len(set(known)) == cells.classes.shape[-1]:
        return cells._replace(classes=classes)
    left = from_scores(cells.boxes, classes * cells.objectness[..., None])
    return cells._replace(objectness=left.objectness, classes=left.classes)


def to_layout(cells: dict[int, Cells], target: Layout, size: Shape, scale: float) -> Outputs:
    """Raw outputs in the student's layout, for each row the teacher's prediction at the same cell and level.

    cells: by stride. size: of the student's input. scale: from the teacher's pixels to the student's. Where several
    cells of the teacher fall into one of the student's, the surest counts. A head with another number of anchors gives
    every row of a cell its surest. Rows that can not express the box, by reach or by anchor, are background.
    """
    maps, coefficients, keypoints = [], [], []
    shapes = target.shapes(size)
    for anchors, stride, shape in zip(target.anchors, target.strides, shapes, strict=True):
        level = _resampled(cells[stride], len(anchors), shape)
        place = geometry(Layout((stride,), anchors[None]), (shape[0] * stride, shape[1] * stride))
        here = Geometry(*(part.unflatten(0, (len(anchors), *shape)) for part in place))
        maps.append(_encode(level, here, scale))
        if level.coefficients is not None:
            coefficients.append(level.coefficients)
        if level.points is not None:
            keypoints.append(_encode_points(level.points, level.boxes))
    # Prototypes are the whole picture's; the caller has them.
    empty = maps[0].new_zeros(0)
    return Outputs(
        {},
        {},
        maps,
        MaskOutputs(coefficients, empty) if coefficients else None,
        KeypointOutputs(keypoints) if keypoints else None,
    )


def _resampled(cells: Cells, anchors: int, shape: Shape) -> Cells:
    """To [B, anchors, *shape, …]: of the cells that fall together the one with the highest objectness."""
    if cells.objectness.shape[1] != anchors:
        best = cells.objectness.argmax(1, keepdim=True)
        cells = _each(cells, lambda part: _take(part, best, 1))
    if cells.objectness.shape[2:] != shape:
        index = F.adaptive_max_pool2d(cells.objectness, shape, return_indices=True)[1].flatten(2)
        cells = _each(cells, lambda part: _take(part.flatten(2, 3), index, 2).unflatten(2, shape))
    return _each(cells, lambda part: part.expand(-1, anchors, *part.shape[2:]))


def _each(cells: Cells, change: Callable[[Tensor], Tensor]) -> Cells:
    coefficients, points = (None if part is None else change(part) for part in (cells.coefficients, cells.points))
    return Cells(change(cells.boxes), change(cells.objectness), change(cells.classes), coefficients, points)


def _take(values: Tensor, index: Tensor, dimension: int) -> Tensor:
    """`gather` along a dimension; index has the dimensions of values up to what a cell holds."""
    if values.ndim == index.ndim:
        return values.gather(dimension, index)
    return values.gather(dimension, index[..., None].expand(*index.shape, values.shape[-1]))


def _encode(cells: Cells, place: Geometry, scale: float) -> Tensor:
    """[B, A, H, W, 5 + classes] logits. place: [A, H, W, …]."""
    boxes = cells.boxes * scale
    shift = (boxes[..., :2] - place.centres) / place.strides
    ratio = boxes[..., 2:] / place.anchors
    reached = (shift.abs() < 1).all(-1) & (torch.maximum(ratio, 1 / ratio) < MATCH_RATIO).all(-1)
    values = ((shift + 1) / 2, ratio.sqrt() / 2, (cells.objectness * reached)[..., None], cells.classes)
    return torch.logit(torch.cat(values, -1), eps=EDGE)


def _encode_points(points: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of `points_of`; exact."""
    values, places = points.unflatten(-1, (-1, POINT_VALUES)), boxes[..., None, :]
    xy = (values[..., :2] - places[..., :2]) / places[..., 2:].clamp(min=EDGE)
    return torch.cat((xy, values[..., 2:]), -1).flatten(-2)
