"""Keypoints: object keypoint similarity for places, cross-entropy for visibility."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mtyolo.config.training import LossGains
from mtyolo.structures import Assignment, Matches, Targets
from mtyolo.tasks.keypoint.branch import VALUES
from mtyolo.tasks.maps import of_labelled, of_matches

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""Falloff of each body point, https://cocodataset.org/#keypoints-eval."""

SEGMENT_OF_BOX = 0.53
"""COCO measures an object by its segment's area; a person's is about this part of the box's."""


def default_sigmas(points: int) -> list[float]:
    """COCO's for its 17 body points, else 1 / points for each."""
    return list(COCO_SIGMAS) if points == len(COCO_SIGMAS) else [1 / points] * points


def keypoint_loss(
    maps: Sequence[Tensor],
    assignment: Assignment,
    targets: Targets,
    anchors: Tensor,
    strides: Sequence[int],
    gains: LossGains,
    sigmas: Tensor,
) -> dict[str, Tensor]:
    """Averaged over the pairs of each level whose object has keypoints, in images that are labelled for them.

    sigmas: [K], OKS falloffs.
    """
    location = visibility = maps[0].new_zeros((), dtype=torch.float32) + maps[0].sum() * 0
    if targets.keypoints is not None:
        for level, (raw, matches) in enumerate(zip(maps, assignment.levels, strict=True)):
            matches = _usable(matches, targets)
            if len(matches.image):
                picked = of_matches(raw, matches).float().unflatten(-1, (-1, VALUES))
                wanted = _in_cells(targets.keypoints[matches.object], matches, raw)
                predicted = 0.5 + picked[..., :2] * (anchors[level] / strides[level])[matches.anchor, None]
                seen = wanted[..., 2] > 0
                location = location + similarity_loss(predicted, wanted[..., :2], seen, matches.box[:, 2:], sigmas)
                visibility = visibility + binary_cross_entropy_with_logits(picked[..., 2], seen.float())
    return {"keypoint.location": gains.location * location, "keypoint.visibility": gains.visibility * visibility}


def similarity_loss(predicted: Tensor, wanted: Tensor, seen: Tensor, sizes: Tensor, sigmas: Tensor) -> Tensor:
    """Mean over objects of the mean of log(1 - log OKS) over their seen points; 0 when all points are right.

    predicted, wanted: [N, K, 2]; sizes: [N, 2] of the boxes in the same unit; seen: [N, K] bool.
    Near the right place this is 1 - OKS (Maji et al. 2022, arXiv:2204.06806); far from it, where OKS is flat and gives
    no gradient, it still grows with the logarithm of the distance.
    """
    area = (sizes.prod(1) * SEGMENT_OF_BOX).clamp(min=1e-4)
    squared = (predicted - wanted).square().sum(-1)
    falloff = (2 * sigmas.to(squared)) ** 2
    exponent = squared / (2 * area[:, None] * falloff)
    per_object = (exponent.log1p() * seen).sum(1) / seen.sum(1).clamp(min=1)
    return per_object.mean()


def _usable(matches: Matches, targets: Targets) -> Matches:
    assert targets.keypoints is not None
    matches = of_labelled(matches, targets.labelled["keypoint"])
    has_points = (targets.keypoints[..., 2] > 0).any(1)[matches.object]
    return Matches(*(values[has_points] for values in matches))


def _in_cells(keypoints: Tensor, matches: Matches, raw: Tensor) -> Tensor:
    """[N, K, 3]: x, y relative to the matched cell's corner, in cells; v unchanged."""
    scale = keypoints.new_tensor([raw.shape[3], raw.shape[2], 1])
    corner = torch.stack((matches.column, matches.row, torch.zeros_like(matches.row)), 1)
    return keypoints * scale - corner[:, None]
