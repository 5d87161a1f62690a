"""Losses between the raw rows of student and teacher: zero, and flat, for equal outputs; `soft_bce` only flat.

Independent sigmoids, not a softmax over classes: classes of YOLOv5 do not exclude each other.
student, teacher: logits [B, A, H, W, 5 + classes] a level, fine to coarse: 25,200 rows at 640 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.distill.slopes import Sloped, parts, precision_of, with_slopes
from mtyolo.tasks.detect.branch import BOX_VALUES, OBJECTNESS
from mtyolo.tasks.maps import empty_map, rows_of
from mtyolo.tasks.rows import rows_and_column

BOX, CLASSES = slice(0, OBJECTNESS), slice(BOX_VALUES, None)

SMALLEST_BELIEF = 1e-3
"""Rows where the teacher's objectness is below this teach no box and no class: all together they would weigh less than
a hundredth of the rest, and they are most of the rows."""

SATURATED = 80.0
"""Logits beyond it count as this, or a sigmoid could underflow to 0, by which is divided. Distances end there, slopes
do not change."""

BLOCK = 512
"""Rows that a CPU's thread works on at once, so that what is in between stays in its cache."""

Maps = Sequence[Tensor]
Room = Sequence[Tensor]
"""To calculate in: three tensors of a block's shape, in single precision or better."""
Distance = Callable[[Tensor, Tensor, Tensor, Room], Tensor]
"""Of student and teacher, elementwise; it lies somewhere in the room. The derivative by the student's values is written
to the third tensor."""


class Groups(NamedTuple):
    """Weights of what a row holds."""

    box: float = 1.0
    objectness: float = 1.0
    classes: float = 1.0


EQUAL = Groups()


def bernoulli_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(Bern(sigmoid(teacher)) || Bern(sigmoid(student))) of logits, elementwise, without overflow."""
    return F.softplus(student) - F.softplus(teacher) - teacher.sigmoid() * (student - teacher)


def logit_mse(student: Maps, teacher: Maps, groups: Groups = EQUAL) -> Tensor:
    """Mean squared difference of logits in each group of values, weighted and added. Ba and Caruana 2014,
    arXiv:1312.6184."""
    return _by_group(student, teacher, groups, _square)


def bernoulli_kl(student: Maps, teacher: Maps, temperature: float = 1.0, groups: Groups = EQUAL) -> Tensor:
    """T^2 times the mean divergence of each sigmoid at temperature T; groups as in `logit_mse`.

    Hinton et al. 2015, arXiv:1503.02531, for T^2, which keeps the gradient's size; at large T it tends to an eighth of
    the squared difference of logits.
    """
    distance = _divergence if temperature == 1 else partial(_softened, temperature=temperature)
    return _by_group(student, teacher, groups, distance)


def soft_bce(student: Maps, teacher: Maps, groups: Groups = EQUAL) -> Tensor:
    """Binary cross entropy with the teacher's probabilities as labels: `bernoulli_kl` at T = 1, plus the teacher's
    entropy, which has no gradient."""
    return _by_group(student, teacher, groups, _cross_entropy)


def objectness_scaled(student: Maps, teacher: Maps, groups: Groups = EQUAL) -> Tensor:
    """Objectness everywhere; box and classes in proportion to the teacher's objectness.

    Divergences of a row's independent sigmoids add up; rows are divided by the sum of the teacher's objectness, not by
    their number, so that background does not dilute objects.
    Mehta and Ozturk 2018, arXiv:1805.06361 (with squared differences there).
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    objects = total.clone()
    columns = torch.full((student[0].shape[-1],), groups.classes, device=total.device)
    columns[BOX], columns[OBJECTNESS] = groups.box, 0.0
    for level in believed(student, teacher):
        objects = objects + level.objects
        rest = _weighted_sum(level.found, level.wanted, columns, _divergence, level.belief)
        objectness = bernoulli_divergence(level.scores, level.wanted_scores).sum()
        total = total + groups.objectness * objectness + rest
    return total / objects.clamp(min=1.0)


class Believed(NamedTuple):
    """What of a level teaches: objectness of all its rows, and the S rows where the teacher sees an object."""

    objects: Tensor  # scalar: sum of the teacher's objectness
    scores: Tensor  # [R] logits of the student's objectness
    wanted_scores: Tensor  # [R] the teacher's
    found: Tensor  # [S, 5 + classes] the student's
    wanted: Tensor  # [S, 5 + classes] the teacher's
    belief: Tensor  # [S] the teacher's objectness


def believed(student: Maps, teacher: Maps) -> Iterator[Believed]:
    """A level at a time, in single precision."""
    for found, wanted in zip(student, map(rows_of, teacher), strict=True):
        wanted_scores = wanted[:, OBJECTNESS].float()
        belief = wanted_scores.sigmoid()
        sure = (belief > SMALLEST_BELIEF).nonzero().flatten()
        picked, scores = rows_and_column(found, sure, OBJECTNESS)
        yield Believed(
            belief.sum(),
            scores.float(),
            wanted_scores,
            picked.float(),
            wanted.index_select(0, sure).float(),
            belief[sure],
        )


def _by_group(student: Maps, teacher: Maps, groups: Groups, distance: Distance) -> Tensor:
    """Mean of each group over all rows, weighted and added."""
    width = student[0].shape[-1]
    columns = torch.full((width,), groups.classes / max(1, width - BOX_VALUES), device=student[0].device)
    columns[BOX], columns[OBJECTNESS] = groups.box / (BOX_VALUES - 1), groups.objectness
    sums, rows = [], 0
    for found, wanted in zip(student, teacher, strict=True):
        rows += found[..., 0].numel()
        sums.append(_weighted_sum(found, wanted, columns, distance))
    return torch.stack(sums).sum() / rows


def _weighted_sum(
    found: Tensor, wanted: Tensor, columns: Tensor, distance: Distance, shares: Tensor | None = None
) -> Tensor:
    """Sum of a distance over rows; columns weighted, and rows by `shares`; in single precision or better."""
    return with_slopes(partial(_summed, wanted=wanted, columns=columns, distance=distance, shares=shares), found)


def _summed(found: Tensor, wanted: Tensor, columns: Tensor, distance: Distance, shares: Tensor | None) -> Sloped:
    columns, slope = columns.to(precision_of(found)), empty_map(found.shape, found)
    found, wanted, slopes = rows_of(found), rows_of(wanted), rows_of(slope)
    weights = columns.new_ones(len(found)) if shares is None else shares.to(columns.dtype)
    sums = columns.new_zeros(len(columns))
    for rows in parts(found, BLOCK):
        room = columns.new_empty(3, *found[rows].shape).unbind()
        sums.addmv_(distance(found[rows], wanted[rows], slopes[rows], room).t(), weights[rows])
        if shares is not None:
            slopes[rows] *= shares[rows, None]
    return Sloped(sums @ columns, (slope,), columns)


def _square(student: Tensor, teacher: Tensor, slope: Tensor, room: Room) -> Tensor:
    difference = torch.sub(student, room[1].copy_(teacher), out=room[0])
    torch.mul(difference, 2, out=slope)
    return difference.square_()


def _divergence(student: Tensor, teacher: Tensor, slope: Tensor, room: Room) -> Tensor:
    on, wanted_on = _bounded(student, room[0]), _bounded(teacher, room[1])
    behind = torch.sub(wanted_on, on, out=room[2])
    on.sigmoid_()
    wanted_on.sigmoid_()
    torch.sub(on, wanted_on, out=slope)
    # log(1 - p) = log(p) - x: half of the exponentials and logarithms that softplus and sigmoid take apart. The price
    # is an absolute error of some 1e-7, and as much again for each unit between the logits: it hides only what is too
    # small to teach, and may be negative. Of p, not 1 - p: so the slope is exact where p is small, as nearly all are.
    return torch.div(wanted_on, on, out=on).log_().sub_(behind).addcmul_(behind, wanted_on)


def _softened(student: Tensor, teacher: Tensor, slope: Tensor, room: Room, temperature: float) -> Tensor:
    on, wanted_on = room[0].copy_(student).div_(temperature), room[1].copy_(teacher).div_(temperature)
    values = _divergence(on, wanted_on, slope, room)
    slope.mul_(temperature)
    return values.mul_(temperature**2)


def _cross_entropy(student: Tensor, teacher: Tensor, slope: Tensor, room: Room) -> Tensor:
    on, wanted_on = _bounded(student, room[0]), _bounded(teacher, room[1]).sigmoid_()
    expected = torch.mul(on, wanted_on, out=room[2]).neg_().add_(on)
    on.sigmoid_()
    torch.sub(on, wanted_on, out=slope)
    return expected.sub_(on.log_())


def _bounded(logits: Tensor, out: Tensor) -> Tensor:
    """Without extremes: its sigmoids are never zero."""
    return torch.clamp(logits if logits.dtype == out.dtype else out.copy_(logits), -SATURATED, SATURATED, out=out)
