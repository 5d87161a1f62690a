"""Raw outputs of any teacher in the student's layout: its strides, anchors and classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mtyolo.distill.layout import (
    Cells,
    Layout,
    Shape,
    cells_of,
    choose_classes,
    from_scores,
    points_in_pixels,
    to_layout,
)
from mtyolo.graph.families import BOX_VALUES, FamilyModel, FamilyOutputs
from mtyolo.model import Model
from mtyolo.structures import KeypointOutputs, MaskOutputs, Outputs
from mtyolo.tasks.keypoint.branch import POINT_VALUES

Source = Model | FamilyModel


def layout_of(model: Model) -> Layout:
    return Layout(tuple(model.strides), model.anchors)


def in_layout(
    raw: Outputs | FamilyOutputs, source: Source, layout: Layout, columns: Sequence[int | None], own: Shape, size: Shape
) -> Outputs:
    """What `source` says of pictures of the size `own`, as a student of this layout would say it of the same in `size`.

    columns: for each class of the student, the source's; None where it knows none.
    """
    layout = layout._replace(anchors=layout.anchors.to(_device(raw)))
    if isinstance(raw, Outputs):
        assert isinstance(source, Model)
        same = own == size and layout.equals(layout_of(source))
        if same and set(columns) == set(range(len(source.names))):
            return _reordered(raw, columns)
        cells = _model_cells(raw, layout_of(source), own)
        prototypes = None if raw.segment is None else raw.segment.prototypes
    else:
        assert isinstance(source, FamilyModel)
        cells, prototypes = _family_cells(raw, source, own), raw.prototypes
    chosen = {stride: choose_classes(level, columns) for stride, level in cells.items()}
    outputs = to_layout(chosen, layout, size, size[0] / own[0])
    if outputs.keypoint is not None and isinstance(raw, Outputs) and raw.keypoint is not None:
        outputs = outputs._replace(keypoint=outputs.keypoint._replace(heatmaps=raw.keypoint.heatmaps))
    if outputs.segment is None or prototypes is None:
        return outputs._replace(segment=None)
    return outputs._replace(segment=MaskOutputs(outputs.segment.coefficients, prototypes.float()))


def _reordered(raw: Outputs, columns: Sequence[int | None]) -> Outputs:
    """The same maps with classes in the student's order."""
    order = [*range(5), *(5 + (column or 0) for column in columns)]
    straight = order == list(range(len(order)))
    maps = [level.float() if straight else level.float()[..., order] for level in raw.detect]
    segment = raw.segment and MaskOutputs([c.float() for c in raw.segment.coefficients], raw.segment.prototypes.float())
    keypoint = raw.keypoint and KeypointOutputs([level.float() for level in raw.keypoint.points], raw.keypoint.heatmaps)
    return Outputs({}, {}, maps, segment, keypoint)


def _model_cells(raw: Outputs, layout: Layout, size: Shape) -> dict[int, Cells]:
    cells = dict(zip(layout.strides, cells_of(raw.detect, layout, size), strict=True))
    if raw.segment is not None:
        for stride, level in zip(layout.strides, raw.segment.coefficients, strict=True):
            cells[stride] = cells[stride]._replace(coefficients=level.float())
    if raw.keypoint is not None:
        boxes = [cells[stride].boxes for stride in layout.strides]
        for stride, points in zip(layout.strides, points_in_pixels(raw.keypoint.points, boxes), strict=True):
            cells[stride] = cells[stride]._replace(points=points)
    return cells


def _family_cells(raw: FamilyOutputs, source: FamilyModel, size: Shape) -> dict[int, Cells]:
    """One row a cell, so one anchor: [B, 1, H, W, …]."""
    classes, cells, start = len(source.names), {}, 0
    for stride in source.strides:
        height, width = size[0] // stride, size[1] // stride
        rows = raw.rows[:, start : start + height * width].unflatten(1, (1, height, width))
        start += height * width
        boxes, scores, extra = rows.tensor_split((BOX_VALUES, BOX_VALUES + classes), -1)
        # Heads that give distances as they are may give some below zero: boxes that no anchor can express.
        boxes = torch.cat((boxes[..., :2], boxes[..., 2:].clamp(min=0)), -1)
        level = from_scores(boxes, scores)
        if source.has_masks:
            level = level._replace(coefficients=extra)
        if source.points is not None:
            points = extra.unflatten(-1, (source.points, -1))
            seen = (
                points[..., 2:3].logit(eps=1e-6)
                if points.shape[-1] == POINT_VALUES
                else torch.full_like(points[..., :1], 9.0)
            )
            level = level._replace(points=torch.cat((points[..., :2], seen), -1).flatten(-2))
        cells[stride] = level
    return cells


def _device(raw: Outputs | FamilyOutputs) -> torch.device:
    return raw.detect[0].device if isinstance(raw, Outputs) else raw.rows.device
