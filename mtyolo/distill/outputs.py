"""Losses between raw outputs of student and teacher, in one layout of rows. All are zero, and flat, for equal outputs.

Independent sigmoids, not a softmax over classes: classes of YOLOv5 do not exclude each other.
Rows are [B, sum(A*H*W), 5 + classes] logits, level by level, fine to coarse: 25,200 at 640 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.distill.layout import Geometry, boxes_at
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.structures import MaskOutputs
from mtyolo.tasks.detect.branch import BOX_VALUES
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.keypoint.loss import oks_distance

BOX, OBJECTNESS, CLASSES = slice(0, BOX_VALUES - 1), BOX_VALUES - 1, slice(BOX_VALUES, None)

SMALLEST_BELIEF = 1e-3
"""Rows where the teacher's objectness is below this teach no box and no class: all together they would weigh less than
a hundredth of the rest, and they are most of the rows."""

CONFIDENT = 0.25
"""Masks and keypoints are learned where the teacher's objectness times its best class is above this."""
CONFIDENT_ROWS = 64
"""And at no more rows an image than this, best first: neighbours say the same, and masks cost memory."""


class Groups(NamedTuple):
    """Weights of what a row holds."""

    box: float = 1.0
    objectness: float = 1.0
    classes: float = 1.0


EQUAL = Groups()


class Picks(NamedTuple):
    """Rows that a teacher is sure of; N over all images, those of an image together."""

    image: Tensor  # [N] int64
    row: Tensor  # [N] int64
    belief: Tensor  # [N]: objectness times best class
    boxes_cxcywh: Tensor  # [N, 4] pixels of the student's input: the teacher's


def bernoulli_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(Bern(sigmoid(teacher)) || Bern(sigmoid(student))) of logits, elementwise, without overflow."""
    return F.softplus(student) - F.softplus(teacher) - teacher.sigmoid() * (student - teacher)


def logit_mse(student: Tensor, teacher: Tensor, groups: Groups = EQUAL) -> Tensor:
    """Mean squared difference of logits in each group of values, weighted and added. Ba and Caruana 2014,
    arXiv:1312.6184."""
    return _by_group((student - teacher).square(), groups)


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, groups: Groups = EQUAL) -> Tensor:
    """T^2 times the mean divergence of each sigmoid at temperature T; groups as in `logit_mse`.

    Hinton et al. 2015, arXiv:1503.02531, for T^2, which keeps the gradient's size; at large T it tends to an eighth of
    the squared difference of logits.
    """
    divergence = bernoulli_divergence(student / temperature, teacher / temperature)
    return temperature**2 * _by_group(divergence, groups)


def soft_bce(student: Tensor, teacher: Tensor, groups: Groups = EQUAL) -> Tensor:
    """Binary cross entropy with the teacher's probabilities as labels: `bernoulli_kl` at T = 1, plus the teacher's
    entropy, which has no gradient."""
    losses = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    return _by_group(losses, groups)


def objectness_scaled(student: Sequence[Tensor], teacher: Sequence[Tensor], groups: Groups = EQUAL) -> Tensor:
    """Objectness everywhere; box and classes in proportion to the teacher's objectness.

    student, teacher: maps [B, A, H, W, 5 + classes] a level, or rows [B, R, 5 + classes]. Divergences of a row's
    independent sigmoids add up; rows are divided by the sum of the teacher's objectness, not by their number, so that
    background does not dilute objects.
    Mehta and Ozturk 2018, arXiv:1805.06361 (with squared differences there).
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    objects = total.clone()
    for found, wanted in zip(student, teacher, strict=True):
        # In the order in which a convolution writes under channels_last: the student's rows are picked without a copy.
        found, wanted = found.movedim(1, -2), wanted.movedim(1, -2)
        rows, wanted_scores = found.reshape(-1, found.shape[-1]), wanted[..., OBJECTNESS].float()
        belief = wanted_scores.sigmoid()
        objects = objects + belief.sum()
        sure = belief > SMALLEST_BELIEF
        scores, picked = _Picked.apply(rows, sure.flatten().nonzero()[:, 0])
        objectness = bernoulli_divergence(scores.float(), wanted_scores.flatten()).sum()
        divergence = bernoulli_divergence(picked.float(), wanted[sure].float())
        parts = groups.box * divergence[:, BOX].sum(1) + groups.classes * divergence[:, CLASSES].sum(1)
        total = total + groups.objectness * objectness + (belief[sure] * parts).sum()
    return total / objects.clamp(min=1.0)


class _Picked(torch.autograd.Function):
    """Objectness of all rows [R, 5 + classes], and some rows whole. Differentiated together: each selection by itself
    would fill, and add, a gradient of the map's full size, which costs more than the loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(numbers)
        ctx.shape = rows.shape
        return rows[:, OBJECTNESS].clone(), rows.index_select(0, numbers)

    @staticmethod
    def backward(ctx: Any, to_scores: Tensor, to_picked: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (numbers,) = ctx.saved_tensors
        gradient = to_picked.new_zeros(ctx.shape)
        gradient[numbers] = to_picked
        gradient[:, OBJECTNESS] += to_scores
        return gradient, None


def mask_divergence(student: MaskOutputs, teacher: MaskOutputs, picks: Picks, size: tuple[int, int]) -> Tensor:
    """Divergence of composed masks inside the teacher's confident boxes: mean over pixels, then over boxes by belief.

    Bases of prototypes differ between models, so coefficients can not be compared one by one, masks can.
    size: height and width of the student's input. The teacher's logits are brought to the student's mask size.
    """
    total = student.prototypes.new_zeros((), dtype=torch.float32)
    own, wanted = _rows(student.coefficients), _rows(teacher.coefficients)
    height, width = student.prototypes.shape[-2:]
    scale = picks.boxes_cxcywh.new_tensor([width / size[1], height / size[0]] * 2)
    inside, areas = _pixels_inside(cxcywh_to_xyxy(picks.boxes_cxcywh * scale), height, width)
    for image in picks.image.unique().tolist():
        mine = picks.image == image
        found = _compose(own[image, picks.row[mine]], student.prototypes[image])
        target = _compose(wanted[image, picks.row[mine]], teacher.prototypes[image])
        if target.shape[-2:] != found.shape[-2:]:
            target = F.interpolate(target[None], found.shape[-2:], mode="bilinear")[0]
        errors = (bernoulli_divergence(found, target) * inside[mine]).sum((1, 2)) / areas[mine]
        total = total + (picks.belief[mine] * errors).sum()
    return total / picks.belief.sum().clamp(min=1.0)


def keypoint_divergence(student: Tensor, teacher: Tensor, picks: Picks, sigmas: Tensor) -> Tensor:
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
    return (picks.belief * (location + visibility)).sum() / picks.belief.sum().clamp(min=1.0)


def confident(teacher: Tensor, place: Geometry) -> Picks:
    """The rows of each image where the teacher sees an object. teacher: [B, R, 5 + classes] logits."""
    belief = teacher[..., OBJECTNESS].sigmoid() * teacher[..., CLASSES].amax(-1).sigmoid()
    best = belief.topk(min(CONFIDENT_ROWS, belief.shape[1]), dim=1)
    image, rank = (best.values > CONFIDENT).nonzero(as_tuple=True)
    row = best.indices[image, rank]
    here = Geometry(*(part[row] for part in place))
    boxes = boxes_at(teacher[image, row, BOX], here)
    return Picks(image, row, best.values[image, rank], boxes)


def _by_group(values: Tensor, groups: Groups) -> Tensor:
    """Mean of each group over all rows, weighted and added, in one pass: [B, R, 5 + classes] to a scalar."""
    columns = values.new_full((values.shape[-1],), groups.classes / max(1, values.shape[-1] - BOX_VALUES))
    columns[BOX], columns[OBJECTNESS] = groups.box / (BOX_VALUES - 1), groups.objectness
    return (values @ columns).mean()


def _rows(maps: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(1, 3).float() for level in maps], 1)


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
