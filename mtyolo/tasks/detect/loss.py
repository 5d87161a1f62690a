"""The official detection loss: box overlap, objectness, classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.config.training import LossGains
from mtyolo.geometry import complete_iou
from mtyolo.structures import Assignment, Targets
from mtyolo.tasks.anchors import labelled_images
from mtyolo.tasks.counting import divisor
from mtyolo.tasks.detect.branch import BOX_VALUES, OBJECTNESS
from mtyolo.tasks.maps import box_of, match_rows
from mtyolo.tasks.rows import rows_and_column

THREE_LEVEL_BALANCE = (4.0, 1.0, 0.4)
LEVEL_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
"""Weights of the levels' objectness, fine to coarse: for three levels, and for other numbers (official values)."""


def detect_loss(
    maps: Sequence[Tensor],
    assignment: Assignment,
    targets: Targets,
    anchors: Sequence[Tensor] | Tensor,
    strides: Sequence[int],
    gains: LossGains,
) -> dict[str, Tensor]:
    """Components after gains, not multiplied by the batch size: detect.box, detect.objectness, detect.class.

    maps: [B, A, H, W, 5 + classes] a level. anchors: [L][A, 2] pixels.
    Each is a mean over what was judged at a level, summed over levels. Images not labelled for detect add nothing,
    objectness included. A single class has no class loss.
    """
    flags = labelled_images(targets, "detect", maps[0].shape[0]).to(torch.float32)
    balance = THREE_LEVEL_BALANCE if len(maps) == len(THREE_LEVEL_BALANCE) else LEVEL_BALANCE
    sums = torch.zeros(3, device=maps[0].device)
    for number, (level, matches, stride) in enumerate(zip(maps, assignment.levels, strides, strict=True)):
        cells = match_rows(matches, level.shape)
        predicted, scores = (values.float() for values in rows_and_column(level, cells, OBJECTNESS))
        boxes = box_of(predicted[:, :4], (anchors[number] / stride)[matches.anchor])
        weights = flags[matches.image]
        weights = weights / divisor(weights.sum())
        overlap = complete_iou(boxes, matches.box)
        sums = sums + torch.stack(
            (
                ((1 - overlap) * weights).sum(),
                _objectness_loss(scores, cells, overlap.detach(), flags) * balance[min(number, len(balance) - 1)],
                _class_loss(predicted[:, BOX_VALUES:], targets.classes[matches.object], weights),
            )
        )
    box, objectness, classes = sums.unbind()
    return {
        "detect.box": box * gains.box,
        "detect.objectness": objectness * gains.objectness,
        "detect.class": classes * gains.classes,
    }


def _objectness_loss(logits: Tensor, cells: Tensor, overlap: Tensor, flags: Tensor) -> Tensor:
    """Everywhere: how well the box that a cell gives overlaps its object, and zero where there is none.

    logits: [B * cells of an image]. cells: [N] those that matched.
    """
    wanted = torch.zeros_like(logits)
    wanted[cells] = overlap.clamp(min=0)[_last_claims(cells, len(wanted))]
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").view(len(flags), -1).mean(1)
    return (losses * flags).sum() / divisor(flags.sum())


def _last_claims(cell: Tensor, count: int) -> Tensor:
    """For each match the last match of the same cell.

    The official code writes in order, so the last object to claim a cell wins. Parallel writes have no order:
    letting all claims write the last one's value gives the same numbers on every device.
    """
    order = torch.arange(len(cell), device=cell.device)
    return order.new_zeros(count).scatter_reduce_(0, cell, order, "amax")[cell]


def _class_loss(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Independent sigmoids: [N, classes], mean over classes, weighted over matches."""
    if logits.shape[1] == 1:
        return logits.new_zeros(())
    wanted = torch.zeros_like(logits).scatter_(1, classes[:, None], 1.0)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
    return (losses * weights).sum()
