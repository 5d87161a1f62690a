"""The mask loss: composed masks against the labelled ones, inside the object's box."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtyolo.config.training import LossGains
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.structures import Assignment, MaskOutputs, Matches, Targets
from mtyolo.tasks.anchors import at_matches, labelled_images, select_matches
from mtyolo.tasks.counting import divisor

CHUNK_PIXELS = 2**22
"""Mask pixels composed at once, 16 MB a tensor. Backward composes them again, so that no more is ever held."""


def segment_loss(outputs: MaskOutputs, assignment: Assignment, targets: Targets, gains: LossGains) -> dict[str, Tensor]:
    """After gains, not multiplied by the batch size: segment.mask.

    Binary cross-entropy summed over the box, divided by the box's area, averaged over the matches of a level, summed
    over levels. (The official code averages over the matches of each image first.) Objects whose mask is all zero,
    and images not labelled for segment, are left out.
    """
    prototypes = outputs.prototypes
    masks = _masks_of_size(targets, (prototypes.shape[2], prototypes.shape[3]))
    usable = masks.flatten(1).any(1).bool() & labelled_images(targets, "segment", len(prototypes))[targets.image_index]
    levels = [select_matches(matches, usable[matches.object]) for matches in assignment.levels]
    coefficients = torch.cat(
        [at_matches(level, found) for level, found in zip(outputs.coefficients, levels, strict=True)]
    )
    objects = torch.cat([found.object for found in levels])
    weights = torch.cat([_shares(found) for found in levels])
    boxes = cxcywh_to_xyxy(targets.boxes_cxcywh) * targets.boxes_cxcywh.new_tensor(masks.shape[:0:-1] * 2)
    # Depends on all outputs, so that its gradient is zero, and not an error, where there are no masks.
    total = coefficients[:0].sum() + prototypes[:0].float().sum()
    one_by_one = prototypes.unbind()
    for image, pairs in _chunks(targets.image_index[objects], len(prototypes), prototypes.shape[2:].numel()):
        chosen = objects[pairs]
        total = total + checkpoint(
            _weighted_loss,
            *(coefficients[pairs], one_by_one[image], masks, chosen, boxes[chosen], weights[pairs]),
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return {"segment.mask": total * gains.mask}


def _shares(matches: Matches) -> Tensor:
    """[N]: what each match of a level counts in its mean."""
    ones = matches.box.new_ones(len(matches.object))
    return ones / divisor(ones.sum())


def _masks_of_size(targets: Targets, size: tuple[int, int]) -> Tensor:
    """[M, h, w] uint8 at the prototypes' size. Without masks: all zero, so that no object counts."""
    if targets.masks is None:
        return targets.classes.new_zeros((len(targets.classes), *size), dtype=torch.uint8)
    if targets.masks.shape[1:] == size or not len(targets.masks):
        return targets.masks
    return F.interpolate(targets.masks[None], size, mode="nearest")[0]


def _chunks(images: Tensor, count: int, pixels: int) -> Iterator[tuple[int, Tensor]]:
    """Pairs of one image at a time, as they share its prototypes, and no more than fit into CHUNK_PIXELS."""
    order = images.argsort(stable=True)
    by_image = order.split(images.bincount(minlength=count).tolist())
    for image, pairs in enumerate(by_image):
        if len(pairs):
            for chunk in pairs.split(max(1, CHUNK_PIXELS // pixels)):
                yield image, chunk


def _weighted_loss(
    coefficients: Tensor, prototypes: Tensor, masks: Tensor, objects: Tensor, boxes: Tensor, weights: Tensor
) -> Tensor:
    """Of N pairs in one image. coefficients [N, P], prototypes [P, h, w], masks [M, h, w], objects [N], boxes [N, 4]
    xyxy in mask pixels."""
    size = masks.shape[1:].numel()
    pair, pixel = pixels_inside(boxes, masks.shape[1], masks.shape[2])
    logits = (coefficients @ prototypes.float().flatten(1)).float().flatten()[pair * size + pixel]
    wanted = masks.flatten()[objects[pair] * size + pixel].float()
    # A box smaller than one mask pixel holds one at most; dividing by less would blow its error up.
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1)
    return F.binary_cross_entropy_with_logits(logits, wanted, (weights / areas)[pair], reduction="sum")


def pixels_inside(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pixels whose centre lies in each box: [T] number of the box, [T] number of the pixel, row by row.

    boxes: [N, 4] xyxy pixels. A list, not N full pictures: boxes cover a small part of them, and all that follows is
    done on the list alone.
    """
    limits = boxes.new_tensor([width, height, width, height])
    left, top, right, bottom = torch.minimum((boxes - 0.5).ceil().clamp(min=0), limits).long().unbind(1)
    across = (right - left).clamp(min=0)
    counts = across * (bottom - top).clamp(min=0)
    box = torch.repeat_interleave(counts)
    place = torch.arange(len(box), device=boxes.device) - (counts.cumsum(0) - counts)[box]
    row = place // across[box]
    column = place - row * across[box]
    return box, (top[box] + row) * width + left[box] + column
