"""GradNorm: weights under which every task pulls on the shared features in proportion to how far behind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from mtyolo.balance.balancer import weighted_backward, with_gradient

ALPHA = 1.5
"""Strength of the pull towards equal training rates; the paper's value for tasks of different difficulty."""
LEARNING_RATE = 0.025
SMALLEST_WEIGHT = 1e-3


class GradNorm:
    """Chen et al. 2018, arXiv:1711.02257, with the shared features in the place of the last shared layer.

    G_k: norm of the gradient of w_k L_k on the features; r_k: L_k / L_k(0) over its mean. The weights descend on
    sum |G_k - mean(G) r_k^ALPHA|, whose second term is a constant, and are then scaled to add up to their number.
    Losses that do not pull on the features, as teachers' of deeper layers, keep their weight, and so do those that are
    absent.
    """

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        self.tasks = tuple(tasks)
        self.factors = dict(weights)
        self.weights = torch.ones(len(tasks), requires_grad=True)
        self.optimizer = Adam([self.weights], lr=LEARNING_RATE)
        self.first: dict[str, float] = {}

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor], scale: float) -> dict[str, float]:
        features = [feature for feature in shared if feature.requires_grad]
        losses = with_gradient(losses)
        values = {task: losses[task] * self.factors.get(task, 1.0) for task in self.tasks if task in losses}
        chosen = dict(zip(self.tasks, self.weights.tolist(), strict=True))
        if features and len(values) > 1:
            norms = torch.stack([_norm(value, features) for value in values.values()]).cpu()
            pulling = {task: value for (task, value), norm in zip(values.items(), norms, strict=True) if norm > 0}
            if len(pulling) > 1:
                self._learn(pulling, norms[norms > 0])
        used = weighted_backward(values, chosen, scale)
        return {task: weight * self.factors.get(task, 1.0) for task, weight in used.items()}

    def _learn(self, values: Mapping[str, Tensor], norms: Tensor) -> None:
        for task, value in values.items():
            self.first.setdefault(task, float(value.detach()))
        rates = torch.tensor([float(value.detach()) / self.first[task] for task, value in values.items()])
        present = [self.tasks.index(task) for task in values]
        pulls = self.weights[present] * norms
        targets = (pulls.mean() * (rates / rates.mean()) ** ALPHA).detach()
        self.optimizer.zero_grad()
        (pulls - targets).abs().sum().backward()
        before = self.weights.detach().clone()
        self.optimizer.step()
        with torch.no_grad():
            learned = self.weights[present].clamp(min=SMALLEST_WEIGHT)
            self.weights.copy_(before)  # Adam's momentum would move the others on
            self.weights[present] = learned * before[present].sum() / learned.sum()

    def end_epoch(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "first": dict(self.first),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.first = dict(state["first"])


def _norm(loss: Tensor, features: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.stack([gradient.norm() for gradient in gradients]).norm()
