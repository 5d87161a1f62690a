"""Balancers that reconcile gradients: torchjd's aggregators, on the features that all tasks share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import Aggregator, FairGrad, GradVac
from torchjd.autojac import jac_to_grad, mtl_backward

from mtyolo.balance.balancer import weighted_backward


class GradientBalancer:
    """Each task's gradient reaches its own branch as it is; on the shared features they are aggregated into one.

    Only that one goes back through the rest of the model, so the cost beyond a plain sum is a few operations on the
    features. They must not depend on each other; those of `Model.forward` do not. Where nothing before the features
    trains there is nothing to reconcile: the sum is taken.
    """

    def __init__(self, aggregator: Aggregator, weights: Mapping[str, float], factor: float = 1.0) -> None:
        self.aggregator = aggregator
        self.weights = dict(weights)
        self.factor = factor

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor], scale: float) -> dict[str, float]:
        features = [feature for feature in shared if feature.requires_grad]
        if not features or len(losses) < 2:
            return weighted_backward(losses, self.weights, scale)
        for feature in features:
            feature.retain_grad()
        scaled = [loss * (self.weights.get(task, 1.0) * scale) for task, loss in losses.items()]
        # The graph is kept: a loss that reaches deeper than the features, as a teacher's, has gone through it before.
        mtl_backward(scaled, features, shared_params=features, parallel_chunk_size=1, retain_graph=True)
        pulling, size = self._prepare(features)
        if not pulling:
            return dict.fromkeys(losses, 1.0)
        chosen = jac_to_grad(features, self.aggregator)
        gradients = [feature.grad * (self.factor * size) for feature in features if feature.grad is not None]
        for feature in features:
            feature.grad = None
        torch.autograd.backward(features, gradients)
        if chosen is None:
            return dict.fromkeys(losses, math.nan)
        tasks = [*losses]
        weights = zip(pulling, (chosen * self.factor).tolist(), strict=True)
        return dict.fromkeys(tasks, 1.0) | {tasks[place]: weight for place, weight in weights}

    def _prepare(self, features: Sequence[Any]) -> tuple[list[int], float]:
        """Make the features' Jacobians fit for an aggregator. Returns whose rows are left, and their former length.

        Who does not pull on the features is left out, as alignment, which looks at adapters alone: to the shortest
        combination of gradients a zero is the whole answer. Some aggregators know no half precision; and some take all
        for zero whose squares add up to less than 1e-4, so that rows are brought to a length of one. Not for FairGrad:
        its answer does not grow with the gradients.
        """
        jacobians = [feature.jac.float() for feature in features]
        pull = torch.stack([one.flatten(1).any(1) for one in jacobians]).any(0)
        norms = [float(torch.linalg.vector_norm(one)) for one in jacobians]
        size = 1.0 if isinstance(self.aggregator, FairGrad) else math.hypot(*norms) or 1.0
        for feature, jacobian in zip(features, jacobians, strict=True):
            feature.grad = None  # torch left the tasks' gradients there, one by one
            feature.jac = jacobian[pull] / size
        return pull.nonzero().flatten().tolist(), size

    def end_epoch(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.aggregator, GradVac):
            # Not `aggregator.state_dict()`: a fresh one has no place for the buffer yet, and refuses it.
            return {"similarities": self.aggregator.gramian_weighting._phi_t}
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        similarities = state.get("similarities")
        if isinstance(self.aggregator, GradVac) and similarities is not None:
            weighting = self.aggregator.gramian_weighting
            weighting._phi_t = similarities
            weighting._state_key = (len(similarities), similarities.dtype)
