"""The mask loss: composed masks against the labelled ones, inside the object's box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtyolo.config.training import LossGains
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.structures import Assignment, MaskOutputs, Matches, Targets
from mtyolo.tasks.anchors import at_matches, labelled_images, select_matches
from mtyolo.tasks.counting import divisor

CHUNK_PIXELS = {"cpu": 2**22, "cuda": 2**24}
"""Mask pixels composed at once: many small steps would leave a GPU idle. In memory 16 MB on a CPU and 64 on a GPU, and
with the list of pixels inside of boxes up to 14 times that, where boxes fill the picture. Backward composes them again,
so that it is held once."""


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
    losses = []
    for chunk in _chunks(targets.image_index[objects], prototypes):
        chosen = objects[chunk.pairs]
        losses.append(
            checkpoint(
                _weighted_loss,
                *(coefficients[chunk.pairs], chunk, masks, chosen, boxes[chosen], weights[chunk.pairs]),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    # Without masks it depends on all outputs, too, so that its gradient is zero, and not an error.
    total = torch.stack(losses).sum() if losses else coefficients.sum() + prototypes[:0].float().sum()
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


class Chunk(NamedTuple):
    """N pairs of a match and its object in I neighbouring images."""

    prototypes: Tensor  # [I, P, h, w]
    rows: int  # pairs of the image that has most: all are given as many
    pairs: Tensor  # [N] numbers of the pairs, image by image
    slots: Tensor  # [N] their places among the I * rows


def _chunks(images: Tensor, prototypes: Tensor) -> Iterator[Chunk]:
    """images: [N] of each pair. Pairs of an image share its prototypes; several images are a batch of products."""
    limit = CHUNK_PIXELS.get(images.device.type, CHUNK_PIXELS["cuda"])
    order, begin = images.argsort(stable=True), 0
    one_by_one = prototypes.unbind()  # backward of slices would each fill a gradient for the whole batch
    counts = images.bincount(minlength=len(prototypes)).tolist()
    for first, pairs_of in _spans(counts, max(1, limit // prototypes.shape[2:].numel())):
        total, rows = sum(pairs_of), max(pairs_of)
        if total:
            slots = torch.cat([row * rows + torch.arange(count) for row, count in enumerate(pairs_of)])
            shared = torch.stack(one_by_one[first : first + len(pairs_of)])
            yield Chunk(shared, rows, order[begin : begin + total], slots.to(images.device))
        begin += total


def _spans(counts: list[int], most: int) -> Iterator[tuple[int, list[int]]]:
    """Neighbouring images whose pairs are composed at once: the first one's number, and how many pairs of each.

    counts: pairs of each image. most: images times the largest count, in each span.
    """
    first, span = 0, list[int]()
    for image, count in enumerate(counts):
        if span and (len(span) + 1) * max(*span, count) > most:
            yield first, span
            first, span = image, []
        while count > most:
            yield image, [most]
            count -= most
        span.append(count)
    if span:
        yield first, span


def _weighted_loss(
    coefficients: Tensor, chunk: Chunk, masks: Tensor, objects: Tensor, boxes: Tensor, weights: Tensor
) -> Tensor:
    """Of a chunk's pairs. coefficients [N, P], masks [M, h, w], objects [N], boxes [N, 4] xyxy in mask pixels."""
    size, (images, channels) = masks.shape[1:].numel(), chunk.prototypes.shape[:2]
    pair, pixel = pixels_inside(boxes, masks.shape[1], masks.shape[2])
    padded = coefficients.new_zeros(images * chunk.rows, channels).index_copy(0, chunk.slots, coefficients)
    composed = padded.view(images, chunk.rows, channels) @ chunk.prototypes.float().flatten(2)
    logits = composed.float().flatten()[chunk.slots[pair] * size + pixel]
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
