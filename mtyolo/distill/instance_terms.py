"""Losses between masks, and between keypoints, of the objects that a teacher is sure of. Zero, and flat, for equals.

Rows are [B, sum(A*H*W), values] logits, level by level, fine to coarse: 25,200 at 640 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.distill.layout import Geometry, boxes_at
from mtyolo.distill.row_terms import BOX, CLASSES, OBJECTNESS, bernoulli_divergence
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.structures import KeypointOutputs, MaskOutputs
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.keypoint.heatmaps import LABEL_SPREAD, divergence, place, windows
from mtyolo.tasks.keypoint.loss import oks_distance
from mtyolo.tasks.maps import joined_rows

CONFIDENT = 0.25
"""Masks and keypoints are learned where the teacher's objectness times its best class is above this."""
CONFIDENT_ROWS = 64
"""And at no more rows an image than this, best first: neighbours say the same, and masks cost memory."""


class Picks(NamedTuple):
    """Rows that a teacher is sure of; N over all images, those of an image together."""

    image: Tensor  # [N] int64
    row: Tensor  # [N] int64
    belief: Tensor  # [N]: objectness times best class
    boxes_cxcywh: Tensor  # [N, 4] pixels of the student's input: the teacher's


def mask_divergence(student: MaskOutputs, teacher: MaskOutputs, picks: Picks, size: tuple[int, int]) -> Tensor:
    """Divergence of composed masks inside the teacher's confident boxes: mean over pixels, then over boxes by belief.

    Bases of prototypes differ between models, so coefficients can not be compared one by one, masks can.
    size: height and width of the student's input. The teacher's logits are brought to the student's mask size.
    """
    total = student.prototypes.new_zeros((), dtype=torch.float32)
    own = _rows(student.coefficients)[picks.image, picks.row]
    wanted = _rows(teacher.coefficients)[picks.image, picks.row]
    height, width = student.prototypes.shape[-2:]
    scale = picks.boxes_cxcywh.new_tensor([width / size[1], height / size[0]] * 2)
    inside, areas = _pixels_inside(cxcywh_to_xyxy(picks.boxes_cxcywh * scale), height, width)
    for image in picks.image.unique().tolist():
        mine = picks.image == image
        found = _compose(own[mine], student.prototypes[image])
        target = _compose(wanted[mine], teacher.prototypes[image])
        if target.shape[-2:] != found.shape[-2:]:
            target = F.interpolate(target[None], found.shape[-2:], mode="bilinear")[0]
        errors = (bernoulli_divergence(found, target) * inside[mine]).sum((1, 2)) / areas[mine]
        total = total + (picks.belief[mine] * errors).sum()
    return total / picks.belief.sum().clamp(min=1.0)


def keypoint_divergence(
    student: KeypointOutputs, teacher: KeypointOutputs, picks: Picks, size: tuple[int, int], sigmas: Tensor
) -> Tensor:
    """Rows learn from rows, heat-maps from heat-maps in the windows of the teacher's boxes; from a teacher without them
    they learn a bump around each of its points. What the teacher does not see is not learned.

    size: height and width of the student's input; heat-maps may differ in size. sigmas: [K].
    """
    own, wanted = _rows(student.points), _rows(teacher.points)
    total = point_divergence(own, wanted, picks, sigmas)
    if student.heatmaps is None:
        return total
    points, visibility = points_of(wanted[picks.image, picks.row], picks.boxes_cxcywh)
    places = place(points, picks.boxes_cxcywh, sigmas, LABEL_SPREAD)
    seen = visibility.sigmoid()
    if teacher.heatmaps is None:
        target, seen = places.bumps(), seen * places.inside()
    else:
        target = windows(teacher.heatmaps, picks.image, picks.boxes_cxcywh, size).flatten(2).log_softmax(-1)
    found = windows(student.heatmaps, picks.image, picks.boxes_cxcywh, size)
    return total + _by_belief((divergence(found, target) * seen).mean(1), picks)


def point_divergence(student: Tensor, teacher: Tensor, picks: Picks, sigmas: Tensor) -> Tensor:
    """Distance of points on the scale of object keypoint similarity, where the teacher sees them, and divergence of
    visibility; means over points, then over rows by belief.

    student, teacher: [B, R, 3 * K] raw. sigmas: [K]. Both are placed in the teacher's box, whose area is the scale.
    """
    points, seen = points_of(student[picks.image, picks.row], picks.boxes_cxcywh)
    wanted, seen_by_teacher = points_of(teacher[picks.image, picks.row], picks.boxes_cxcywh)
    areas = picks.boxes_cxcywh[:, 2:].prod(1)
    missed = torch.log1p(oks_distance(points, wanted, areas, sigmas))  # as in the task's own loss
    location = (missed * seen_by_teacher.sigmoid()).mean(1)
    visibility = bernoulli_divergence(seen, seen_by_teacher).mean(1)
    return _by_belief(location + visibility, picks)


def _by_belief(values: Tensor, picks: Picks) -> Tensor:
    """Mean over rows [N]."""
    return (picks.belief * values).sum() / picks.belief.sum().clamp(min=1.0)


def confident(teacher: Sequence[Tensor], place: Geometry) -> Picks:
    """The rows of each image where the teacher sees an object. teacher: [B, A, H, W, 5 + classes] logits a level."""
    # Level by level: joined, all classes of all rows would be copied for one number a row.
    objectness, classes = ([level[..., part] for level in teacher] for part in (OBJECTNESS, CLASSES))
    best_class = [level.amax(-1) for level in classes]
    belief = _flat(objectness).sigmoid() * _flat(best_class).sigmoid()
    best = belief.topk(min(CONFIDENT_ROWS, belief.shape[1]), dim=1)
    image, rank = (best.values > CONFIDENT).nonzero(as_tuple=True)
    row = best.indices[image, rank]
    here = Geometry(*(part[row] for part in place))
    boxes = boxes_at(_rows([level[..., BOX] for level in teacher])[image, row], here)
    return Picks(image, row, best.values[image, rank], boxes)


def _rows(maps: Sequence[Tensor]) -> Tensor:
    return joined_rows(maps).float()


def _flat(maps: Sequence[Tensor]) -> Tensor:
    """[B, A, H, W] a level -> [B, R]."""
    return torch.cat([level.float().flatten(1) for level in maps], 1)


def _compose(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """[n, P] and [P, h, w] to mask logits [n, h, w]."""
    return torch.einsum("np,phw->nhw", coefficients, prototypes.float())


def _pixels_inside(boxes_xyxy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """[N, height, width]: does the pixel's centre lie in the box? And how many do, at least 1."""
    x = torch.arange(width, device=boxes_xyxy.device) + 0.5
    y = torch.arange(height, device=boxes_xyxy.device) + 0.5
    left, top, right, bottom = (edge[:, None] for edge in boxes_xyxy.unbind(1))
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
    return inside, inside.sum((1, 2)).clamp(min=1)
