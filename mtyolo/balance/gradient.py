"""Balancers that reconcile gradients: torchjd's aggregators, on the features that all tasks share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import Aggregator, FairGrad, GradVac
from torchjd.autojac import jac_to_grad, mtl_backward

from mtyolo.balance.balancer import weighted_backward, with_gradient


class GradientBalancer:
    """Each task's gradient reaches its own branch as it is; on the shared features they are aggregated into one.

    Only that one goes back through the rest of the model, so the cost beyond a plain sum is a few operations on the
    features. They must not depend on each other; those of `Model.forward` do not. Where nothing before the features
    trains there is nothing to reconcile: the sum is taken.
    """

    def __init__(self, aggregator: Aggregator, weights: Mapping[str, float], *, averages: bool = False) -> None:
        """averages: is the aggregator's answer as long as a mean, not a sum? Then it is made as long as the sum."""
        self.aggregator = aggregator
        self.weights = dict(weights)
        self.averages = averages
        self.similarities: dict[str, Tensor] = {}

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor], scale: float) -> dict[str, float]:
        features = [feature for feature in shared if feature.requires_grad]
        losses = with_gradient(losses)
        if not features or len(losses) < 2:
            return weighted_backward(losses, self.weights, scale)
        for feature in features:
            feature.retain_grad()
        scaled = [loss * (self.weights.get(task, 1.0) * scale) for task, loss in losses.items()]
        # The graph is kept: a loss that reaches deeper than the features, as a teacher's, has gone through it before.
        mtl_backward(scaled, features, shared_params=features, parallel_chunk_size=1, retain_graph=True)
        jacobians, pulling = _rows(features)
        if not pulling:
            return self._reported(dict.fromkeys(losses, 1.0))
        tasks = [list(losses)[number] for number in pulling]
        gradients, chosen = self._aggregated(features, jacobians, tasks, scale)
        laid_out = [torch.empty_like(into).copy_(one) for one, into in zip(gradients, features, strict=True)]
        torch.autograd.backward(features, laid_out)  # in another layout a gradient slows all layers before it
        found = [math.nan] * len(tasks) if chosen is None else chosen.tolist()
        others = math.nan if chosen is None else 1.0
        return self._reported(dict.fromkeys(losses, others) | dict(zip(tasks, found, strict=True)))

    def _reported(self, chosen: Mapping[str, float]) -> dict[str, float]:
        """With the plan's own factors, as all balancers say it."""
        return {task: weight * self.weights.get(task, 1.0) for task, weight in chosen.items()}

    def _aggregated(
        self, features: Sequence[Any], jacobians: Sequence[Tensor], tasks: Sequence[str], scale: float
    ) -> tuple[list[Tensor], Tensor | None]:
        """One gradient for each feature, and the tasks' weights in it, where the aggregator has some."""
        size = self._size(jacobians, scale)
        if not math.isfinite(size):  # half precision's scale is too large, or training diverges: others see to that
            return [rows.sum(0) for rows in jacobians], None
        for feature, rows in zip(features, jacobians, strict=True):
            feature.jac = rows / size
        self._recall(tasks)
        chosen = jac_to_grad(features, self.aggregator)
        self._keep(tasks)
        factor = len(tasks) if self.averages else 1
        gradients = [feature.grad.float() * (factor * size) for feature in features]
        for feature in features:
            feature.grad = None
        return gradients, None if chosen is None else chosen * factor

    def _size(self, jacobians: Sequence[Tensor], scale: float) -> float:
        """What to divide the rows by, and the answer to multiply with: their root mean square.

        Some aggregators take all for zero whose squares add up to less than 1e-4, and half precision knows no small
        numbers. FairGrad's answer does not grow with the gradients: it is given them as they are without `scale`.
        """
        norm = math.hypot(*(float(torch.linalg.vector_norm(rows)) for rows in jacobians))
        if isinstance(self.aggregator, FairGrad) and math.isfinite(norm):
            return scale
        return norm / math.sqrt(sum(rows.numel() for rows in jacobians))

    def _recall(self, tasks: Sequence[str]) -> None:
        """GradVac remembers how alike pairs of tasks are, by their numbers: for each set of tasks that met."""
        if isinstance(self.aggregator, GradVac):
            weighting: Any = self.aggregator.gramian_weighting
            known = self.similarities.get(",".join(tasks))
            weighting._phi_t = known
            weighting._state_key = None if known is None else (len(known), known.dtype)

    def _keep(self, tasks: Sequence[str]) -> None:
        if isinstance(self.aggregator, GradVac):
            kept = self.aggregator.gramian_weighting._phi_t
            assert kept is not None
            self.similarities[",".join(tasks)] = kept

    def end_epoch(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"similarities": {tasks: kept.clone() for tasks, kept in self.similarities.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.similarities = dict(state["similarities"])


def _rows(features: Sequence[Any]) -> tuple[list[Tensor], list[int]]:
    """The features' Jacobians, a row a task, and the numbers of the tasks in them.

    Who does not pull on the features is left out, as alignment, which looks at adapters alone: to the shortest
    combination of gradients a zero is the whole answer.
    """
    jacobians = [feature.jac.float() for feature in features]  # some aggregators know no half precision
    pull = torch.stack([rows.flatten(1).any(1) for rows in jacobians]).any(0)
    for feature in features:
        feature.grad = None  # torch left the tasks' gradients there, one by one
        del feature.jac
    return [rows[pull] for rows in jacobians], pull.nonzero().flatten().tolist()
