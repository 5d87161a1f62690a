"""The running average of the weights: what is validated and saved for use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mtyolo.model import Model

RAMP_STEPS = 2000
"""Steps over which the decay grows, so that early averages follow the weights; as in the official recipe."""


class Ema(AveragedModel):
    """Exponential moving average of parameters and buffers, decay * (1 - exp(-step / RAMP_STEPS)).

    Tensors that equal the model's are left bit for bit as they are.
    """

    def __init__(self, model: Model, decay: float) -> None:
        super().__init__(model, multi_avg_fn=_ramped(decay), use_buffers=True)
        self.module.requires_grad_(False).eval()

    @property
    def model(self) -> Model:
        assert isinstance(self.module, Model)
        return self.module

    def settle(self, model: Model, names: Iterable[str]) -> None:
        """Take over the model's own tensors of these names: what a stage freezes stands still from its first step."""
        own, theirs = self.module.state_dict(), model.state_dict()
        for name in names:
            own[name].copy_(theirs[name])


def _ramped(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        weight = float(1 - decay * (1 - torch.exp(-steps.double() / RAMP_STEPS)))
        if averaged[0].is_floating_point():
            # lerp adds a fraction of the difference: equal tensors stay equal to the bit.
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return average
