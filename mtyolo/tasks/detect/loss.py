"""Boxes, objectness and classes, as the official YOLOv5 trains them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mtyolo.config.training import LossGains
from mtyolo.geometry import complete_iou
from mtyolo.structures import Assignment, Matches, Targets
from mtyolo.tasks.detect.branch import BOX_ROWS
from mtyolo.tasks.maps import of_labelled, of_matches

LEVEL_BALANCE = {3: (4.0, 1.0, 0.4)}
DEEP_LEVEL_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
"""Weight of each level's objectness, fine to coarse: finer levels have more empty cells (official)."""


def detect_loss(
    maps: Sequence[Tensor],
    assignment: Assignment,
    targets: Targets,
    anchors: Tensor,
    strides: Sequence[int],
    gains: LossGains,
) -> dict[str, Tensor]:
    """Components after gains, each averaged over its own kind: matches, or cells of images labelled for boxes."""
    labelled = targets.labelled["detect"]
    balance = LEVEL_BALANCE.get(len(maps), DEEP_LEVEL_BALANCE)
    box, objectness, classes = (maps[0].new_zeros(()) for _ in range(3))
    for level, (raw, matches) in enumerate(zip(maps, assignment.levels, strict=True)):
        matches = of_labelled(matches, labelled)
        picked = of_matches(raw, matches)
        iou = _iou(picked, matches, anchors[level] / strides[level])
        if len(picked):
            box = box + (1 - iou).mean()
            classes = classes + _class_loss(picked, targets.classes[matches.object])
        objectness = objectness + balance[level] * _objectness_loss(raw, matches, iou, labelled)
    return {
        "detect.box": gains.box * box,
        "detect.objectness": gains.objectness * objectness,
        "detect.class": gains.classes * classes,
    }


def _iou(picked: Tensor, matches: Matches, anchors: Tensor) -> Tensor:
    scores = picked[:, :4].float().sigmoid()
    predicted = torch.cat((2 * scores[:, :2] - 0.5, (2 * scores[:, 2:]) ** 2 * anchors[matches.anchor]), 1)
    return complete_iou(predicted, matches.box)


def _class_loss(picked: Tensor, classes: Tensor) -> Tensor:
    logits = picked[:, BOX_ROWS:].float()
    if logits.shape[1] == 1:  # objectness says it all
        return logits.new_zeros(())
    wanted = torch.zeros_like(logits)
    wanted[torch.arange(len(classes), device=classes.device), classes] = 1
    return binary_cross_entropy_with_logits(logits, wanted)


def _objectness_loss(raw: Tensor, matches: Matches, iou: Tensor, labelled: Tensor) -> Tensor:
    """The target of a matched cell is the overlap that its box reached; of all others zero."""
    logits = raw[..., 4].float()
    wanted = torch.zeros_like(logits)
    cell = (matches.image, matches.anchor, matches.row, matches.column)
    last = _last_of_each_cell(cell, logits.shape)
    wanted[tuple(index[last] for index in cell)] = iou.detach().clamp(min=0)[last]
    if bool(labelled.all()):
        return binary_cross_entropy_with_logits(logits, wanted)
    if not bool(labelled.any()):
        return logits.sum() * 0
    return binary_cross_entropy_with_logits(logits[labelled], wanted[labelled])


def _last_of_each_cell(cell: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """Where objects share a cell the last one counts, as in the official loop; said so that a GPU does it too."""
    image, anchor, row, column = cell
    flat = ((image * shape[1] + anchor) * shape[2] + row) * shape[3] + column
    order = torch.arange(len(flat), device=flat.device)
    last = torch.full((shape.numel(),), -1, device=flat.device).scatter_reduce_(0, flat, order, "amax")
    return last[flat] == order


def official_gains(gains: LossGains, classes: int, size: int, levels: int) -> LossGains:
    """Gains as the official trainer scales them: by levels, by classes of 80, and by the image's area of 640 px."""
    by_level = 3 / levels
    return gains.model_copy(
        update={
            "box": gains.box * by_level,
            "classes": gains.classes * by_level * classes / 80,
            "objectness": gains.objectness * by_level * (size / 640) ** 2,
        }
    )
