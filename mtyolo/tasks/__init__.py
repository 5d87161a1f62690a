"""What a model can be asked for. A task is a folder here and a row in TASKS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from mtyolo.config.training import LossGains
from mtyolo.structures import Assignment, Outputs, Targets
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.detect.branch import DetectBranch
from mtyolo.tasks.detect.loss import detect_loss
from mtyolo.tasks.keypoint.branch import KeypointBranch
from mtyolo.tasks.keypoint.loss import keypoint_loss
from mtyolo.tasks.segment.branch import SegmentBranch
from mtyolo.tasks.segment.loss import segment_loss


class Step(NamedTuple):
    """All that a loss may look at."""

    outputs: Outputs
    targets: Targets
    assignment: Assignment
    anchors: Tensor  # [L, A, 2] pixels
    strides: Sequence[int]
    gains: LossGains
    sigmas: Tensor | None  # [K]


@dataclass(frozen=True)
class Task:
    name: str
    branch: type[nn.Module]  # forward(fused, taken): what the neck gives, and what it took in
    loss: Callable[[Step], dict[str, Tensor]]


def _detect(step: Step) -> dict[str, Tensor]:
    return detect_loss(step.outputs.detect, step.assignment, step.targets, step.anchors, step.strides, step.gains)


def _segment(step: Step) -> dict[str, Tensor]:
    assert step.outputs.segment is not None, "the model has a segment branch"
    return segment_loss(step.outputs.segment, step.assignment, step.targets, step.gains)


def _keypoint(step: Step) -> dict[str, Tensor]:
    assert step.outputs.keypoint is not None, "the model has a keypoint branch"
    return keypoint_loss(
        step.outputs.keypoint,
        step.outputs.detect,
        step.assignment,
        step.targets,
        step.anchors,
        step.strides,
        step.gains,
        step.sigmas,
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("detect", DetectBranch, _detect),
        Task("segment", SegmentBranch, _segment),
        Task("keypoint", KeypointBranch, _keypoint),
    )
}
"""In the order of a model's branches."""


def compute_losses(
    tasks: Sequence[str],
    outputs: Outputs,
    targets: Targets,
    anchors: Tensor,
    strides: Sequence[int],
    gains: LossGains,
    sigmas: Tensor | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Task -> component -> scalar, of the named tasks, on one assignment.

    anchors: [L, A, 2] pixels. sigmas: [K] falloff per keypoint, by default `default_sigmas`.
    The one place where losses are multiplied by the batch size, for all tasks alike: the learning rates of the official
    recipe are made for its loss, which is a sum over images. The tasks' own functions give means.
    """
    shapes = [(level.shape[2], level.shape[3]) for level in outputs.detect]
    assignment = assign(anchors, strides, shapes, targets)
    step = Step(outputs, targets, assignment, anchors, strides, gains, sigmas)
    images = outputs.detect[0].shape[0]
    return {name: {component: loss * images for component, loss in TASKS[name].loss(step).items()} for name in tasks}


RECIPE_CLASSES, RECIPE_SIZE, RECIPE_LEVELS = 80, 640, 3
"""What the official gains were tuned on: COCO at 640 pixels, three levels."""


def official_gains(gains: LossGains, *, classes: int, size: int, levels: int) -> LossGains:
    """Gains for other numbers of classes, pixels a side and levels, as the official trainer scales them.

    Masks, which the official trainer weighs by the box gain, and keypoints, which live on matches too, scale as boxes.
    """
    share = RECIPE_LEVELS / levels
    return gains.model_copy(
        update={
            "box": gains.box * share,
            "objectness": gains.objectness * share * (size / RECIPE_SIZE) ** 2,
            "classes": gains.classes * share * classes / RECIPE_CLASSES,
            "mask": gains.mask * share,
            "location": gains.location * share,
            "visibility": gains.visibility * share,
        }
    )
