"""The official detection loss: box overlap, objectness, classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtyolo.config.training import LossGains
from mtyolo.geometry import complete_iou
from mtyolo.structures import Assignment, Matches, Targets
from mtyolo.tasks.anchors import labelled_images
from mtyolo.tasks.counting import divisor
from mtyolo.tasks.detect.branch import BOX_VALUES, OBJECTNESS
from mtyolo.tasks.maps import box_of, match_rows
from mtyolo.tasks.rows import rows_and_column

THREE_LEVEL_BALANCE = (4.0, 1.0, 0.4)
LEVEL_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
"""Weights of the levels' objectness, fine to coarse: for three levels, and for other numbers (official values)."""


class Judged(NamedTuple):
    """A level, as far as the loss looks at it."""

    matches: Matches
    cells: Tensor  # [N] where they are, as numbers in the order of `rows_of`
    rows: Tensor  # [N, 5 + classes], what the map says there
    objectness: Tensor  # [B*H*W*A], everywhere
    anchors: Tensor  # [A, 2] in cells
    balance: float  # what objectness weighs at this level


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
    levels = []
    for number, (level, matches, stride) in enumerate(zip(maps, assignment.levels, strides, strict=True)):
        cells = match_rows(matches, level.shape)
        rows, objectness = (values.float() for values in rows_and_column(level, cells, OBJECTNESS))
        balance = level_balance(number, len(maps))
        levels.append(Judged(matches, cells, rows, objectness, anchors[number] / stride, balance))
    return judge(levels, targets, labelled_images(targets, "detect", maps[0].shape[0]), gains)


def level_balance(number: int, levels: int) -> float:
    """What objectness weighs at this level of so many."""
    balance = THREE_LEVEL_BALANCE if levels == len(THREE_LEVEL_BALANCE) else LEVEL_BALANCE
    return balance[min(number, len(balance) - 1)]


def judge(levels: Sequence[Judged], targets: Targets, flags: Tensor, gains: LossGains) -> dict[str, Tensor]:
    """The loss of some levels, as above. flags: [B] bool, the images that are labelled.

    All levels at once: they hold few values, and what takes time is how often something is asked of them.
    """
    flags = flags.to(torch.float32)
    rows = torch.cat([level.rows for level in levels])
    sizes = torch.cat([level.anchors[level.matches.anchor] for level in levels])
    weights = _match_weights([flags[level.matches.image] for level in levels])
    overlap = complete_iou(box_of(rows[:, :4], sizes), torch.cat([level.matches.box for level in levels]))
    classes = targets.classes[torch.cat([level.matches.object for level in levels])]
    return {
        "detect.box": ((1 - overlap) * weights).sum() * gains.box,
        "detect.objectness": _objectness_loss(levels, overlap.detach(), flags) * gains.objectness,
        "detect.class": _class_loss(rows[:, BOX_VALUES:], classes, weights) * gains.classes,
    }


def _match_weights(flags: Sequence[Tensor]) -> Tensor:
    """[N]: of each match so that a level's sum is a mean over its labelled ones. flags: [n] 0 or 1, a level each."""
    counts = divisor(torch.stack([level.sum() for level in flags]))
    return torch.cat([level / count for level, count in zip(flags, counts, strict=True)])


def _objectness_loss(levels: Sequence[Judged], overlap: Tensor, flags: Tensor) -> Tensor:
    """Everywhere: how well the box that a cell gives overlaps its object, and zero where there is none.

    overlap: [N] of all levels' matches. flags: [B] 0 or 1.
    """
    logits = torch.cat([level.objectness for level in levels])
    starts = accumulate((len(level.objectness) for level in levels), initial=0)
    cells = torch.cat([level.cells + start for level, start in zip(levels, starts, strict=False)])
    wanted = torch.zeros_like(logits)
    wanted[cells] = overlap.clamp(min=0)[_last_claims(cells, len(wanted))]
    shares = flags / divisor(flags.sum())
    rows = [len(level.objectness) // len(flags) for level in levels]  # of an image
    weights = [
        (shares * (level.balance / count))[:, None].expand(-1, count).flatten()
        for level, count in zip(levels, rows, strict=True)
    ]
    return F.binary_cross_entropy_with_logits(logits, wanted, torch.cat(weights), reduction="sum")


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
        return logits[:0].sum()  # zero, of which a gradient may be asked
    wanted = torch.zeros_like(logits).scatter_(1, classes[:, None], 1.0)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
    return (losses * weights).sum()
