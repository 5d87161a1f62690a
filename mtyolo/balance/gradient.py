"""Balancers that reconcile gradients: torchjd's aggregators, on the features that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchjd.aggregation import Aggregator, GradVac
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
        for feature in features:
            feature.grad = None  # torch left the tasks' gradients there, one by one
            feature.jac = feature.jac.float()  # type: ignore[attr-defined]  # some aggregators know no half precision
        chosen = jac_to_grad(features, self.aggregator)
        gradients = [feature.grad * self.factor for feature in features if feature.grad is not None]
        for feature in features:
            feature.grad = None
        torch.autograd.backward(features, gradients)
        weights = [float("nan")] * len(losses) if chosen is None else (chosen * self.factor).tolist()
        return dict(zip(losses, weights, strict=True))

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
