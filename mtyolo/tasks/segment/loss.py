"""Masks: what prototypes and coefficients compose, against the labelled mask, inside the object's box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torch.utils.checkpoint import checkpoint

from mtyolo.config.training import LossGains
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.structures import Assignment, MaskOutputs, Matches, Targets
from mtyolo.tasks.maps import of_labelled, of_matches

PAIRS_KEPT = 512
"""Pairs of anchor and mask of one image whose pixels are kept for the backward pass; more are computed again."""


def segment_loss(outputs: MaskOutputs, assignment: Assignment, targets: Targets, gains: LossGains) -> dict[str, Tensor]:
    """Binary cross-entropy inside the box, divided by the box's area, averaged over the pairs of each level.

    Objects without a mask (all zero) and images that are not labelled for masks add nothing.
    """
    loss = outputs.prototypes.new_zeros((), dtype=torch.float32)
    pairs = _pairs(outputs.coefficients, assignment.levels, targets)
    if pairs is None:
        return {"segment.mask": loss + outputs.prototypes.sum() * 0}
    coefficients, matches, weight = pairs
    masks = _resized(targets.masks, outputs.prototypes.shape[-2:])
    boxes = cxcywh_to_xyxy(targets.boxes_cxcywh)
    # Images, not objects: their number is the batch's, and each has prototypes of its own.
    for image in matches.image.unique().tolist():
        chosen = (matches.image == image).nonzero().flatten()
        number = matches.object[chosen]
        parts = (coefficients[chosen], outputs.prototypes[image], masks, number, boxes[number], weight[chosen])
        kept = len(chosen) <= PAIRS_KEPT
        loss = loss + (_image_loss(*parts) if kept else checkpoint(_image_loss, *parts, use_reentrant=False))
    return {"segment.mask": gains.mask * loss}


def _pairs(
    coefficients: Sequence[Tensor], levels: Sequence[Matches], targets: Targets
) -> tuple[Tensor, Matches, Tensor] | None:
    """All levels' pairs in a row: coefficients [N, P], matches, and the weight that averages each level."""
    if targets.masks is None or not len(targets.classes):
        return None
    has_mask = targets.masks.flatten(1).any(1)
    usable = [of_labelled(matches, targets.labelled["segment"]) for matches in levels]
    usable = [Matches(*(values[has_mask[matches.object]] for values in matches)) for matches in usable]
    if not any(len(matches.image) for matches in usable):
        return None
    picked = torch.cat([of_matches(raw, matches) for raw, matches in zip(coefficients, usable, strict=True)])
    weight = torch.cat([picked.new_full((n,), 1 / max(n, 1)) for n in (len(matches.image) for matches in usable)])
    return picked, Matches(*(torch.cat(values) for values in zip(*usable, strict=True))), weight


def _image_loss(
    coefficients: Tensor, prototypes: Tensor, masks: Tensor, number: Tensor, boxes_xyxy: Tensor, weight: Tensor
) -> Tensor:
    """coefficients [N, P], prototypes [P, H, W], masks [M, H, W], number [N]: which mask, boxes [N, 4] fractions."""
    logits = (coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:]).float()
    pixels = binary_cross_entropy_with_logits(logits, masks[number].to(logits), reduction="none")
    inside = inside_boxes(boxes_xyxy, prototypes.shape[-2:])
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1).clamp(min=1 / inside[0].numel())
    return ((pixels * inside).mean((1, 2)) / area * weight).sum()


def inside_boxes(boxes_xyxy: Tensor, shape: tuple[int, int]) -> Tensor:
    """[N, H, W] bool: which pixels lie in each box. boxes: [N, 4] in fractions."""
    height, width = shape
    left, top, right, bottom = (boxes_xyxy * boxes_xyxy.new_tensor([width, height] * 2))[:, :, None].unbind(1)
    columns = torch.arange(width, device=boxes_xyxy.device)[None]
    rows = torch.arange(height, device=boxes_xyxy.device)[None]
    across = (columns >= left) & (columns < right)
    down = (rows >= top) & (rows < bottom)
    return down[:, :, None] & across[:, None, :]


def _resized(masks: Tensor | None, shape: tuple[int, int]) -> Tensor:
    assert masks is not None
    if masks.shape[-2:] == shape:
        return masks
    return interpolate(masks[None].float(), shape, mode="nearest")[0]
