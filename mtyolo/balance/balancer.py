"""What every balancer is to the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Balancer(Protocol):
    """From the losses of a step to the gradient of the model."""

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor], scale: float) -> dict[str, float]:
        """Add the balanced gradient to every `.grad`. Returns each task's weight, NaN where a method has none.

        losses: task -> positive scalar; tasks without a labelled image in this batch are absent: left out, not zero.
        shared: features that all tasks were computed from. scale: factor of the whole gradient.
        """

    def end_epoch(self) -> None:
        """For methods that look at epochs."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def with_gradient(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without those that reach nothing that trains, as alignment of frozen adapters: these have none."""
    return {task: loss for task, loss in losses.items() if loss.requires_grad}


def weighted_backward(losses: Mapping[str, Tensor], weights: Mapping[str, float], scale: float) -> dict[str, float]:
    """The gradient of the weighted sum. Returns the weights of the losses that are there."""
    if not losses:
        return {}
    used = {task: weights.get(task, 1.0) for task in losses}
    total = torch.stack([used[task] * loss for task, loss in losses.items()]).sum()
    if total.requires_grad:
        (total * scale).backward()
    return used
