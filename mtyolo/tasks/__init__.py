"""What branches predict and losses judge. A task is a folder here and a row in TASKS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtyolo.config.training import LossGains
from mtyolo.structures import Assignment, Outputs, Targets
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.detect.loss import detect_loss
from mtyolo.tasks.keypoint.loss import default_sigmas, keypoint_loss
from mtyolo.tasks.segment.loss import segment_loss

Components = dict[str, Tensor]


class Context(NamedTuple):
    """What every loss may look at besides the outputs; made once a step."""

    assignment: Assignment
    targets: Targets
    anchors: Tensor  # [L, A, 2] pixels
    strides: Sequence[int]
    gains: LossGains
    sigmas: Sequence[float] | None


class Task(NamedTuple):
    """A row of the table: the names of its loss components, and what computes them."""

    components: tuple[str, ...]
    loss: Callable[[Outputs, Context], Components]


def _detect(outputs: Outputs, context: Context) -> Components:
    return detect_loss(outputs.detect, *context[:5])


def _segment(outputs: Outputs, context: Context) -> Components:
    assert outputs.segment is not None
    return segment_loss(outputs.segment, context.assignment, context.targets, context.gains)


def _keypoint(outputs: Outputs, context: Context) -> Components:
    assert outputs.keypoint is not None
    points = outputs.keypoint[0].shape[-1] // 3
    sigmas = torch.tensor(context.sigmas or default_sigmas(points), device=outputs.keypoint[0].device)
    return keypoint_loss(outputs.keypoint, *context[:5], sigmas)


TASKS: dict[str, Task] = {
    "detect": Task(("detect.box", "detect.objectness", "detect.class"), _detect),
    "segment": Task(("segment.mask",), _segment),
    "keypoint": Task(("keypoint.location", "keypoint.visibility"), _keypoint),
}


def compute_losses(
    outputs: Outputs,
    targets: Targets,
    *,
    anchors: Tensor,
    strides: Sequence[int],
    gains: LossGains,
    sigmas: Sequence[float] | None = None,
    tasks: Sequence[str] = ("detect",),
) -> dict[str, Components]:
    """Task -> component -> scalar, after gains, from one assignment. Tasks that no image is labelled for are left out.

    As in the official recipe every component is multiplied by the batch size, here and nowhere else: its learning
    rates belong to that sum.
    """
    shapes = [(level.shape[2], level.shape[3]) for level in outputs.detect]
    assignment = assign(anchors, strides, shapes, targets)
    context = Context(assignment, targets, anchors, strides, gains, sigmas)
    batch = outputs.detect[0].shape[0]
    return {
        task: {name: value * batch for name, value in TASKS[task].loss(outputs, context).items()}
        for task in tasks
        if bool(targets.labelled[task].any())
    }
