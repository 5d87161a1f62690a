"""Balancers that weigh losses: torchjd's scalarizers, fitted to tasks that are absent from some batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torchjd.scalarization import DWA, FAMO, IMTLL, UW, Scalarizer

from mtyolo.balance.balancer import weighted_backward

LEARNING_RATE = 0.01
"""Of learned weights, by Adam, which they have to themselves: no decay, and not the model's schedule."""
LARGEST_EXPONENT = 4.0
"""Learned weights are exp(±s). A loss near zero would otherwise drive its weight up without end."""

HIDDEN_STATE = {DWA: ("_loss_sum", "_n_batches", "_previous_averages"), FAMO: ("_prev_losses",)}
"""What torchjd 0.18 keeps outside of `state_dict`."""


class ScalarBalancer:
    """Losses times weights that a scalarizer of torchjd chooses.

    tasks: all that may occur. weights: task -> factor of its loss before that. averages: do the scalarizer's weights
    add up to one? Then they are made to add up to their number, so that the learning rate keeps its meaning.
    It works on the CPU, wherever the losses are: they are a few numbers, and a state that is resumed needs no device.
    """

    def __init__(
        self, scalarizer: Scalarizer, tasks: Sequence[str], weights: Mapping[str, float], *, averages: bool = False
    ) -> None:
        self.scalarizer = scalarizer
        self.tasks = tuple(tasks)
        self.weights = dict(weights)
        self.averages = averages
        self.stateful = isinstance(scalarizer, (UW, IMTLL, DWA, FAMO))
        learned = list(scalarizer.parameters()) if isinstance(scalarizer, (UW, IMTLL)) else []
        self.optimizer = Adam(learned, lr=LEARNING_RATE) if learned else None
        self.last: dict[str, float] = {}

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor], scale: float) -> dict[str, float]:
        present = [task for task in self.tasks if task in losses]
        chosen = self._choose({task: losses[task].detach().cpu() * self.weights.get(task, 1.0) for task in present})
        factor = len(chosen) if self.averages else 1
        weights = {task: float(chosen[task]) * factor * self.weights.get(task, 1.0) for task in present}
        return weighted_backward({task: losses[task] for task in present}, weights, scale)

    def _choose(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weight of each present task: the derivative of the scalarizer by its loss; learns on the way."""
        tasks = self.tasks if self.stateful else tuple(values)
        vector = self._with_absent(values, tasks).requires_grad_()
        if isinstance(self.scalarizer, FAMO) and self.last:
            # The paper takes the same batch's losses after the step; the next batch's cost no second forward pass.
            self.scalarizer.update(vector)
        total = self.scalarizer(vector)
        total.backward()
        assert vector.grad is not None
        if self.optimizer is not None:
            self._learn([task in values for task in tasks])
        self.last |= {task: float(value) for task, value in values.items()}
        return dict(zip(tasks, vector.grad.unbind(), strict=True))

    def _with_absent(self, values: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
        """Stateful methods need a value for every task: an absent one stands with its last, or the others' mean."""
        mean = torch.stack(list(values.values())).mean()
        return torch.stack(
            [values[task] if task in values else mean.new_tensor(self.last.get(task, float(mean))) for task in tasks]
        )

    def _learn(self, present: Sequence[bool]) -> None:
        assert self.optimizer is not None
        (parameter,) = self.scalarizer.parameters()
        assert parameter.grad is not None
        there, before = parameter.new_tensor(present, dtype=torch.bool), parameter.detach().clone()
        parameter.grad *= there
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():  # an absent task's weight would move on by Adam's momentum
            parameter.copy_(torch.where(there, parameter, before).clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT))

    def end_epoch(self) -> None:
        if isinstance(self.scalarizer, DWA):
            self.scalarizer.step()

    def state_dict(self) -> dict[str, Any]:
        hidden = HIDDEN_STATE.get(type(self.scalarizer), ())
        state = {
            "scalarizer": self.scalarizer.state_dict(),
            "hidden": {name: getattr(self.scalarizer, name) for name in hidden},
            "last": dict(self.last),
            "optimizer": self.optimizer and self.optimizer.state_dict(),
        }
        if isinstance(self.scalarizer, FAMO) and self.scalarizer._optimizer is not None:
            state["optimizer"] = self.scalarizer._optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scalarizer.load_state_dict(state["scalarizer"])
        for name, value in state["hidden"].items():
            setattr(self.scalarizer, name, value)
        self.last = dict(state["last"])
        if state["optimizer"] is not None:
            if isinstance(self.scalarizer, FAMO):
                self.scalarizer._optimizer = Adam([self.scalarizer._w])
            optimizer = self.scalarizer._optimizer if isinstance(self.scalarizer, FAMO) else self.optimizer
            assert optimizer is not None
            optimizer.load_state_dict(state["optimizer"])
