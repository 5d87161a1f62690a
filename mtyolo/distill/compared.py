"""Feature maps compared, image by image: projected, told apart, and the derivatives carried back, in one go.

So on a CPU a map with the teacher's channels, of which a student has fewer, never leaves the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mtyolo.distill.slopes import Sloped, parts, precision_of, with_slopes

SMALLEST_VARIANCE = 1e-12

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of [n, P, C], student's and teacher's, at P positions, summed. The first is overwritten with the derivative by the
student's; the second is room to calculate in."""


def mean_square(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference of maps [B, C, H, W]; the teacher gets no gradient. weight: [C', C], of a projector that
    the student's go through before."""
    return with_slopes(partial(_mean_square, teacher=teacher), *_given(student, weight))


def relative_error(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """The same over the variance of the teacher's values."""
    return with_slopes(partial(_relative_error, teacher=teacher), *_given(student, weight))


def channel_divergence(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over positions, a mean over channels and images; the rest as above."""
    return with_slopes(partial(_channel_divergence, teacher=teacher), *_given(student, weight))


def _given(student: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    return (student,) if weight is None else (student, weight)


def _mean_square(student: Tensor, weight: Tensor | None = None, *, teacher: Tensor) -> Sloped:
    return _walked(student, weight, teacher, _half_square, lambda: 2 / teacher.numel())


def _relative_error(student: Tensor, weight: Tensor | None = None, *, teacher: Tensor) -> Sloped:
    spread = Spread()

    def distance(own: Tensor, other: Tensor) -> Tensor:
        spread.add(other)
        return _half_square(own, other)

    def scale() -> Tensor:
        return 2 / (teacher.numel() * spread.variance.clamp(min=SMALLEST_VARIANCE))

    return _walked(student, weight, teacher, distance, scale)


def _channel_divergence(student: Tensor, weight: Tensor | None = None, *, teacher: Tensor) -> Sloped:
    return _walked(student, weight, teacher, _divergence, lambda: 1 / (teacher.shape[0] * teacher.shape[1]))


def _walked(
    student: Tensor, weight: Tensor | None, teacher: Tensor, distance: Distance, scale: Callable[[], Tensor | float]
) -> Sloped:
    """scale: of value and derivatives, asked when all images were seen."""
    precision = precision_of(student)
    # As convolutions under channels_last take it: in another layout a gradient slows all layers before it.
    to_student = torch.empty_like(student, memory_format=torch.channels_last)
    to_weight = None if weight is None else torch.zeros_like(weight)
    found, wanted, slopes = _positions(student), _positions(teacher), _positions(to_student)
    total = student.new_zeros((), dtype=precision)
    for part in parts(found, most=1):
        own, other = found[part].to(precision), wanted[part].to(precision, copy=True)
        apart = own.clone() if weight is None else own @ weight.t()
        total += distance(apart, other)
        if weight is None or to_weight is None:
            slopes[part] = apart
        else:
            slopes[part] = apart @ weight
            to_weight += apart.flatten(0, 1).t() @ own.flatten(0, 1)
    factor = scale()
    return Sloped(total * factor, (to_student,) if to_weight is None else (to_student, to_weight), factor)


def _positions(maps: Tensor) -> Tensor:
    """[B, H * W, C]: a view under channels_last."""
    return maps.movedim(1, -1).flatten(1, 2)


def _half_square(student: Tensor, teacher: Tensor) -> Tensor:
    return _square_of(student.sub_(teacher)) / 2


def _square_of(values: Tensor) -> Tensor:
    """Sum of squares; a product with itself writes none to memory."""
    return torch.dot(values.flatten(), values.flatten())


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """By sums of exponentials, so that logarithms are of channels and not of positions."""
    for values in (student, teacher):
        values.sub_(values.amax(1, keepdim=True))  # here: how far apart maps are as a whole would cost digits
    apart = teacher - student
    total = (_to_softmax(student) - _to_softmax(teacher)).sum() + torch.dot(teacher.flatten(), apart.flatten())
    student.sub_(teacher)
    return total


def _to_softmax(values: Tensor) -> Tensor:
    """Over positions, in place. Returns the logarithm of what exponentials are divided by, [n, 1, C]."""
    whole = values.exp_().sum(1, keepdim=True)
    values.div_(whole)
    return whole.log_()


class Spread:
    """Variance of all values, from those of each part: not Tensor.var, which takes three times as long on a CPU."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.means: list[Tensor] = []
        self.within: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        self.counts.append(values.numel())
        self.means.append(values.mean())
        self.within.append(_square_of(values - self.means[-1]))

    @property
    def variance(self) -> Tensor:
        """Chan et al. 1983, doi:10.1080/00031305.1983.10483115."""
        number = sum(self.counts)
        if len(self.counts) == 1:
            return self.within[0] / max(1, number - 1)
        means = torch.stack(self.means)
        counts = torch.tensor(self.counts, device=means.device, dtype=means.dtype)
        between = counts * (means - (counts * means).sum() / number).square()
        return (torch.stack(self.within) + between).sum() / max(1, number - 1)
