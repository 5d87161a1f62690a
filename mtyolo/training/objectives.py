"""What a stage minimises: the losses of labelled tasks, or the adapters' distance to the layers that they replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mtyolo.config.training import LossGains
from mtyolo.model import Model, forward
from mtyolo.structures import Batch, Outputs
from mtyolo.tasks import compute_losses, official_gains
from mtyolo.training.processes import any_process


@dataclass(slots=True)
class Losses:
    """One batch's losses, each a mean over images."""

    tasks: dict[str, Tensor]  # what is balanced: task -> scalar; tasks without a labelled image are absent
    components: dict[str, Tensor]  # what is shown: "detect.box", … -> scalar
    shared: list[Tensor] = field(default_factory=list)  # the features that all tasks saw
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
        size = outputs.detect[0].shape[2] * model.strides[0]
        # Over all processes, as all must take part in counting what losses divide by.
        present = any_process(
            [bool(batch.targets.labelled[task].any()) for task in self.tasks], outputs.detect[0].device
        )
        computed = compute_losses(
            tasks=[task for task, is_there in zip(self.tasks, present, strict=True) if is_there],
            outputs=outputs,
            targets=batch.targets,
            anchors=model.anchors,
            strides=model.strides,
            gains=official_gains(self.gains, classes=len(model.names), size=size, levels=len(model.strides)),
            sigmas=None if self.sigmas is None else torch.tensor(self.sigmas, device=model.anchors.device),
        )
        images = len(batch.indices)  # the losses come as sums over images
        components = {name: value / images for parts in computed.values() for name, value in parts.items()}
        tasks = {task: torch.stack([components[name] for name in parts]).sum() for task, parts in computed.items()}
        return Losses(tasks, components, shared_features(outputs))


def shared_features(outputs: Outputs) -> list[Tensor]:
    """What all branches saw, independent of each other: there balancers look at the tasks' gradients."""
    return [*outputs.fused.values(), *(outputs.taken or {}).values()]
