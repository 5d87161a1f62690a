"""What a stage minimises: the losses of labelled tasks, or the adapters' distance to the layers that they replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mtyolo.config.training import LossGains
from mtyolo.errors import ConfigError
from mtyolo.model import Model, forward
from mtyolo.structures import Batch, Outputs, Targets
from mtyolo.tasks import compute_losses, official_gains
from mtyolo.tasks.anchors import labelled_images
from mtyolo.tasks.checking import check_targets
from mtyolo.tasks.rows import gathered
from mtyolo.training.processes import any_process


@dataclass(slots=True)
class Losses:
    """One batch's losses, each a mean over images."""

    tasks: dict[str, Tensor]  # what is balanced: task -> scalar; tasks without a labelled image are absent
    components: dict[str, Tensor]  # what is shown: "detect.box", … -> scalar
    shared: list[Tensor] = field(default_factory=list, repr=False)  # the features that all tasks saw
    sums_images: bool = True  # the learning rate belongs to a sum over images, as in the official recipe


class Objective(Protocol):
    """The losses of a batch that is on the model's device."""

    def __call__(self, model: Model, batch: Batch) -> Losses: ...


class TasksObjective:
    """Every labelled task's loss, from one assignment.

    tasks: which count. gains: for 80 classes at 640 px and three levels; scaled to the model and the input.
    """

    def __init__(self, tasks: Sequence[str], gains: LossGains, sigmas: Sequence[float] | None = None) -> None:
        self.tasks = tuple(tasks)
        self.gains = gains
        self.sigmas = sigmas

    def __call__(self, model: Model, batch: Batch) -> Losses:
        return self.judge(model, forward(model, batch), batch)

    def judge(self, model: Model, outputs: Outputs, batch: Batch) -> Losses:
        """The losses of a forward pass that was made already."""
        return _losses(model, outputs, batch.targets, self.tasks, self.gains, self.sigmas)


def shared_maps(outputs: Outputs) -> Outputs:
    """The same, for other losses on the raw detect maps beside those of tasks: their rows make one map of gradient."""
    return outputs._replace(detect=[gathered(level) for level in outputs.detect])


def losses(
    model: Model,
    outputs: Outputs,
    targets: Targets,
    *,
    tasks: Sequence[str] | None = None,
    gains: LossGains | None = None,
    sigmas: Sequence[float] | None = None,
) -> Losses:
    """What a batch costs, for a training loop of your own: `sum(losses(…).tasks.values()).backward()`.

    outputs: of the model; targets: on the same device; where `labelled` does not name a task, all images count.
    tasks: by default the model's. gains: for 80 classes at 640 px and three levels; scaled to the model and the input.
    sigmas: [K] falloff per keypoint, by default as the model remembers them. The losses are means over images; the
    official learning rates belong to their sum, so multiply by the number of images there.
    Raises ConfigError for a task that the model has not, DataError for targets that do not belong to the outputs.
    """
    chosen = model.tasks if tasks is None else tuple(tasks)
    if unknown := [task for task in chosen if task not in model.tasks]:
        raise ConfigError(f"the model has no task {unknown[0]!r}; it has {', '.join(model.tasks)}")
    points = model.keypoints if "keypoint" in chosen else None
    check_targets(targets, outputs, classes=len(model.names), points=points)
    return _losses(model, outputs, targets, chosen, gains, sigmas)


def _losses(
    model: Model,
    outputs: Outputs,
    targets: Targets,
    chosen: Sequence[str],
    gains: LossGains | None,
    sigmas: Sequence[float] | None,
) -> Losses:
    """The same of targets that a loader made."""
    images, _, height, *_ = outputs.detect[0].shape
    # Over all processes, as all must take part in counting what losses divide by.
    flags = [bool(labelled_images(targets, task, images).any()) for task in chosen]
    present = any_process(flags, outputs.detect[0].device)
    falloff = sigmas or (model.keypoint.sigmas if model.keypoint else None)
    computed = compute_losses(
        tasks=[task for task, is_there in zip(chosen, present, strict=True) if is_there],
        outputs=outputs,
        targets=targets,
        anchors=model.anchors,
        strides=model.strides,
        gains=official_gains(
            gains or LossGains(), classes=len(model.names), size=height * model.strides[0], levels=len(model.strides)
        ),
        sigmas=None if falloff is None else torch.tensor(falloff, device=model.anchors.device),
    )
    # They come as sums over images.
    components = {name: value / images for parts in computed.values() for name, value in parts.items()}
    by_task = {task: torch.stack([components[name] for name in parts]).sum() for task, parts in computed.items()}
    return Losses(by_task, components, shared_features(outputs))


def shared_features(outputs: Outputs) -> list[Tensor]:
    """What all branches saw, independent of each other: there balancers look at the tasks' gradients."""
    return [*outputs.fused.values(), *(outputs.taken or {}).values()]
