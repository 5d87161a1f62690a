"""The keypoint loss: object keypoint similarity, and visibility."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.config.training import LossGains
from mtyolo.geometry import default_sigmas
from mtyolo.structures import Assignment, KeypointOutputs, Matches, Targets
from mtyolo.tasks.anchors import at_matches, labelled_images, select_matches
from mtyolo.tasks.counting import divisor
from mtyolo.tasks.keypoint.branch import POINT_VALUES
from mtyolo.tasks.keypoint.decode import points_of
from mtyolo.tasks.keypoint.heatmaps import LABEL_SPREAD, divergence, place, windows
from mtyolo.tasks.maps import box_of


def keypoint_loss(
    outputs: KeypointOutputs,
    boxes: Sequence[Tensor],
    assignment: Assignment,
    targets: Targets,
    anchors: Sequence[Tensor] | Tensor,
    strides: Sequence[int],
    gains: LossGains,
    sigmas: Tensor | None = None,
) -> dict[str, Tensor]:
    """Components after gains, not multiplied by the batch size: keypoint.location, keypoint.visibility, and
    keypoint.heatmap where the branch has heat-maps.

    boxes: [B, A, H, W, 5 + classes] a level, the detect branch's maps: points are relative to the predicted box, which
    learns nothing from them. anchors: [L][A, 2] pixels. sigmas: [K].
    A point's location costs ln(1 + e), where its similarity is OKS = exp(-e). Close to the label that is 1 - OKS, the
    loss of YOLO-Pose (arXiv:2204.06806), and a bound above it everywhere. But 1 - OKS is flat where a point is far off,
    as all are at first: measured with a frozen YOLOv5n on 80 photos for 600 steps, new photos reach a mean OKS of 0.110
    with it and of 0.126 with the bound.
    Means over the matches of a level, summed over levels; of heat-maps, which know no matches, a mean over objects.
    Objects without a labelled point, and images not labelled for keypoint, are left out.
    """
    maps = outputs.points
    size = maps[0].shape[2] * strides[0], maps[0].shape[3] * strides[0]
    labels = _labels_in_pixels(maps[0], size, targets)
    usable = (labels[..., 2] > 0).any(1) & labelled_images(targets, "keypoint", len(maps[0]))[targets.image_index]
    sigmas = (torch.tensor(default_sigmas(labels.shape[1])) if sigmas is None else sigmas).to(labels.device)
    sums = labels.new_zeros(2)
    for number, (level, matches, stride) in enumerate(zip(maps, assignment.levels, strides, strict=True)):
        found = select_matches(matches, usable[matches.object])
        predicted = _predicted_boxes(boxes[number], found, anchors[number], stride)
        sums = sums + _level_losses(level, found, predicted, stride, labels, sigmas)
    losses = {"keypoint.location": sums[0] * gains.location, "keypoint.visibility": sums[1] * gains.visibility}
    if outputs.heatmaps is not None:
        missed = _heatmap_loss(outputs.heatmaps, targets, labels, usable, size, sigmas)
        losses["keypoint.heatmap"] = missed * gains.heatmap
    return losses


def _labels_in_pixels(level: Tensor, size: tuple[int, int], targets: Targets) -> Tensor:
    """[M, K, 3] x, y in pixels of the network input, and v. Without keypoints: none is labelled."""
    if targets.keypoints is None:
        return torch.zeros(len(targets.classes), level.shape[-1] // POINT_VALUES, POINT_VALUES, device=level.device)
    return targets.keypoints * targets.keypoints.new_tensor([size[1], size[0], 1])


def _heatmap_loss(
    heatmaps: Tensor, targets: Targets, labels: Tensor, usable: Tensor, size: tuple[int, int], sigmas: Tensor
) -> Tensor:
    """Mean over objects of the divergence in the window of the object's box; a mean over its labelled points there,
    zero where none is."""
    chosen = usable.nonzero().flatten()
    wanted, boxes = labels[chosen], targets.boxes_cxcywh[chosen] * labels.new_tensor([*size[::-1]] * 2)
    logits = windows(heatmaps, targets.image_index[chosen], boxes, size)
    places = place(wanted[..., :2], boxes, sigmas, LABEL_SPREAD)
    seen = (wanted[..., 2] > 0) & places.inside()
    losses = (divergence(logits, places.bumps()) * seen).sum(1) / seen.sum(1).clamp(min=1)
    return losses.sum() / divisor(losses.new_tensor(len(chosen)))


def _predicted_boxes(level: Tensor, matches: Matches, anchors: Tensor, stride: int) -> Tensor:
    """[N, 4] centre and size in pixels, without gradient."""
    box = box_of(at_matches(level.detach(), matches)[:, :4], anchors[matches.anchor])
    corner = torch.stack((matches.column, matches.row), 1)
    return torch.cat(((box[:, :2] + corner) * stride, box[:, 2:]), 1)


def _level_losses(
    level: Tensor, matches: Matches, predicted: Tensor, stride: int, labels: Tensor, sigmas: Tensor
) -> Tensor:
    """[2]: location and visibility."""
    points, visibility = points_of(at_matches(level, matches), predicted)
    wanted = labels[matches.object]
    seen = (wanted[..., 2] > 0).float()
    areas = (matches.box[:, 2:] * stride).prod(1)
    distances = oks_distance(points, wanted[..., :2], areas, sigmas)
    location = (torch.log1p(distances) * seen).sum(1) / seen.sum(1).clamp(min=1)
    unsure = F.binary_cross_entropy_with_logits(visibility, seen, reduction="none").mean(1)
    count = divisor(location.new_tensor(len(predicted)))
    return torch.stack((location, unsure)).sum(1) / count


def oks_distance(points: Tensor, wanted: Tensor, areas: Tensor, sigmas: Tensor) -> Tensor:
    """[N, K]: the exponent of the object keypoint similarity, d^2 / (2 area (2 sigma)^2).

    points, wanted: [N, K, 2] pixels. areas: [N] square pixels. Lin et al. 2014, cocodataset.org/#keypoints-eval.
    """
    squared = (points - wanted).square().sum(-1)
    return squared / (2 * areas[:, None].clamp(min=1) * (2 * sigmas).square())
