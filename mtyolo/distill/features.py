"""Losses between feature maps of student and teacher. Each is a small module that brings along what it must learn.

All take the student's map [B, C, h, w] and the teacher's [B, C', H, W], which may be in half precision, and gradients
as what they are made of. The student's is projected to the teacher's channels by a 1x1 convolution where they differ,
and resized bilinearly where sizes differ. What is learned here trains with the student and stays behind when the
student is saved.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtyolo.distill.compared import channel_divergence, mean_square, relative_error
from mtyolo.distill.low_rank import LowRank, angle

CWD_TEMPERATURE = 1.0
"""For necks of detectors, in the authors' configurations; for segmentation logits they take 4."""
MGD_MASKED = 0.65
"""Fraction of positions that are hidden, for one-stage detectors, in the authors' configurations."""


class FitNets(nn.Module):
    """Mean squared difference. Romero et al. 2015, arXiv:1412.6550."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.projector = make_projector(student, teacher)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return mean_square(*fitting(student, teacher, self.projector))


class Relative(FitNets):
    """FitNets' error over the variance of the teacher's map: 1.0 is no better than its mean, and layers whose values
    differ a hundredfold weigh alike. The measure of alignment."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return relative_error(*fitting(student, teacher, self.projector))


class SpatialAttention(nn.Module):
    """Where a map is active: sum of squares over channels, over positions of length 1; mean squared difference.

    Zagoruyko and Komodakis 2017, arXiv:1612.03928. Needs no projector.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self._attention(resized(student, teacher)), self._attention(teacher.float()))

    @staticmethod
    def _attention(features: Tensor) -> Tensor:
        return F.normalize(features.square().sum(1).flatten(1))


class ChannelAttention(nn.Module):
    """Which channels are active: their means over positions, of length 1; mean squared difference.

    The channel counterpart of attention transfer; squeezed as in Hu et al. 2018, arXiv:1709.01507.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.projector = make_projector(student, teacher)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(F.normalize(self.projector(student).mean((2, 3))), F.normalize(teacher.float().mean((2, 3))))


class ChannelWise(nn.Module):
    """Each channel as a distribution over positions: T^2 times the divergence, a mean over channels and images.

    Shu et al. 2021, arXiv:2011.13256.
    """

    def __init__(self, student: int, teacher: int, temperature: float = CWD_TEMPERATURE) -> None:
        super().__init__()
        self.projector = make_projector(student, teacher)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        found, teacher, weight = fitting(student, teacher, self.projector)
        if self.temperature != 1:
            found, teacher = found / self.temperature, teacher.float() / self.temperature
        return self.temperature**2 * channel_divergence(found, teacher, weight)


class MaskedGeneration(nn.Module):
    """The teacher's map generated from the student's with most positions hidden; squared difference, summed over
    channels and positions, a mean over images.

    Yang et al. 2022, arXiv:2205.01529.
    """

    def __init__(self, student: int, teacher: int, masked: float = MGD_MASKED) -> None:
        super().__init__()
        self.projector = make_projector(student, teacher)
        self.generator = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(teacher, teacher, 3, padding=1)
        )
        self.masked = masked

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        found = resized(student, teacher)
        shown = torch.rand(found[:, :1].shape, device=found.device) >= self.masked
        _, activation, last = self.generator
        made = last(activation(self._first(found * shown)))
        return mean_square(made, teacher) * teacher[0].numel()

    def _first(self, student: Tensor) -> Tensor:
        """Projection and first convolution. A student has fewer channels than its teacher in most cases: then the
        convolution is multiplied with the projector once, and not each position."""
        convolution, projector = self.generator[0], self.projector
        assert isinstance(convolution, nn.Conv2d)
        if not isinstance(projector, Projector) or projector.in_channels > projector.out_channels:
            return convolution(projector(student))  # type: ignore[no-any-return]
        weight = F.linear(convolution.weight.movedim(1, -1), projector.weight.flatten(1).t()).movedim(-1, 1)
        return F.conv2d(student, weight, convolution.bias, padding=convolution.padding)


class GradientSimilarity(nn.Module):
    """1 - cosine of two gradients, each image's as one vector, a mean over the images that have any.

    Of the task loss by the features: what a model would change says what it looks at. Du et al. 2018, arXiv:1812.02224,
    for the cosine as a measure of agreement.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.projector = make_projector(student, teacher)

    def forward(self, student: LowRank, teacher: LowRank) -> Tensor:
        weight = self.projector.weight.flatten(1) if isinstance(self.projector, Projector) else None
        with torch.autocast(teacher.rows.device.type, enabled=False):
            return angle(student.projected(weight), teacher)


FEATURE_LOSSES: dict[str, type[nn.Module]] = {
    "fitnets": FitNets,
    "relative": Relative,
    "spatial": SpatialAttention,
    "channel": ChannelAttention,
    "cwd": ChannelWise,
    "mgd": MaskedGeneration,
    "gradient": GradientSimilarity,
}

PUBLISHED_WEIGHTS = {
    "fitnets": 1.0,
    "relative": 1.0,
    "spatial": 1000.0,
    "channel": 1.0,
    "cwd": 5.0,
    "mgd": 2e-5,
    "gradient": 1.0,
}
"""What authors multiply their loss with: attention transfer's beta (over mean squares), CWD and MGD on detectors."""
SUMMED = {"mgd"}
"""Over positions: where maps are pooled, each counts as those that it stands for."""


class Projector(nn.Conv2d):
    """A 1x1 convolution as the matrix product that it is under channels_last: two thirds of the time there on a CPU.

    Without a bias, so that it maps gradients as it maps features.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__(student, teacher, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features.movedim(1, -1), self.weight.flatten(1)).movedim(-1, 1)


def make_projector(student: int, teacher: int) -> nn.Module:
    """From the student's channels to the teacher's; nothing where they agree, so that equal maps have no distance."""
    return nn.Identity() if student == teacher else Projector(student, teacher)


def pooled(features: Tensor, side: int) -> Tensor:
    """Means of side x side positions of maps [B, C, H, W]; at the far edges of those that are left."""
    return features if side == 1 else F.avg_pool2d(features, side, ceil_mode=True, count_include_pad=False)


def resized(features: Tensor, like: Tensor) -> Tensor:
    if features.shape[-2:] == like.shape[-2:]:
        return features
    return F.interpolate(features, like.shape[-2:], mode="bilinear")


def fitting(student: Tensor, teacher: Tensor, projector: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
    """Maps of one size, and the weight of the projector that the student's have still to go through, if any: who
    compares them projects on the way. What is to be resized is projected before."""
    if isinstance(projector, Projector) and student.shape[-2:] == teacher.shape[-2:]:
        return student, teacher, projector.weight.flatten(1)
    return resized(projector(student), teacher), teacher, None
