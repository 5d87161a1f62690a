"""Balancers that weigh losses: torchjd's scalarizers, fitted to tasks that are absent from some batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class ScalarBalancer:
    """The weighted sum of losses. weights: task -> factor; default 1."""

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float] | None = None) -> None:
        self.weights = {task: (weights or {}).get(task, 1.0) for task in tasks}

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor], scale: float) -> dict[str, float]:
        weights = {task: self.weights.get(task, 1.0) for task in losses}
        total = torch.stack([weights[task] * loss for task, loss in losses.items()]).sum()
        (total * scale).backward()
        return weights

    def end_epoch(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
