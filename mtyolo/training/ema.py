"""The running average of the weights: what is validated and saved for use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mtyolo.model import Model

RAMP_STEPS = 2000
"""Steps over which the decay grows, so that early averages follow the weights; as in the official recipe."""

Pairs = list[tuple[Tensor, Tensor]]


class Ema(AveragedModel):
    """Exponential moving average of parameters and buffers, decay * (1 - exp(-step / RAMP_STEPS)).

    Tensors that equal the model's are left bit for bit as they are.
    """

    def __init__(self, model: Model, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.module.requires_grad_(False).eval()
        self._tensors: tuple[Pairs, Pairs] | None = None

    @property
    def model(self) -> Model:
        assert isinstance(self.module, Model)
        return self.module

    def settle(self, model: Model, names: Iterable[str]) -> None:
        """Take over the model's own tensors of these names: what a stage freezes stands still from its first step."""
        own, theirs = self.module.state_dict(), model.state_dict()
        for name in names:
            own[name].copy_(theirs[name])
        self._tensors = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """To be called after each step. torch's own looks for all tensors anew each time, which takes longer than to
        average those of a small network."""
        if self._tensors is None:
            self._tensors = _paired(self.module, model)
        weight = 1 - self.decay * (1 - math.exp(-int(self.n_averaged) / RAMP_STEPS))
        floats, counters = self._tensors
        # lerp adds a fraction of the difference: equal tensors stay equal to the bit.
        torch._foreach_lerp_([own for own, _ in floats], [theirs for _, theirs in floats], weight)
        if counters:
            torch._foreach_copy_([own for own, _ in counters], [theirs for _, theirs in counters])
        self.n_averaged += 1


def _paired(own: nn.Module, model: nn.Module) -> tuple[Pairs, Pairs]:
    """Tensors of the average beside the model's: those to average, and counters to copy."""
    pairs = list(zip(chain(own.parameters(), own.buffers()), chain(model.parameters(), model.buffers()), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    return floats, [pair for pair in pairs if not pair[0].is_floating_point()]
