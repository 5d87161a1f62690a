"""The running average of the weights: what is validated and saved for use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mtyolo.model import Model

RAMP = 10
"""After n steps the decay is (1 + n) / (RAMP + n) at most, as in TensorFlow's moving averages: these reach over a ninth
of the steps so far. The official recipe's 1 - exp(-n / 2000) averages one or two steps in a run of hundreds."""

Place = tuple[Mapping[str, Any], Mapping[str, Any], str]
"""A module's tensors by name in the average, those of the same module in the model, and a name."""


class Ema(AveragedModel):
    """Exponential moving average of parameters and buffers; its decay grows to the given one.

    Tensors that equal the model's are left bit for bit as they are.
    """

    def __init__(self, model: Model, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self.module.requires_grad_(False).eval()
        self._places: list[Place] = []

    @property
    def model(self) -> Model:
        assert isinstance(self.module, Model)
        return self.module

    def settle(self, model: Model, names: Iterable[str]) -> None:
        """Take over the model's own tensors of these names: what a stage freezes stands still from its first step."""
        own, theirs = self.module.state_dict(), model.state_dict()
        for name in names:
            own[name].copy_(theirs[name])
        self._places = []

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """To be called after each step, with the model that it was made of. torch's own looks through all modules each
        time, which takes longer than to average the tensors of a small network."""
        self._places = self._places or _places(self.module, model)
        pairs = [(own[name], theirs[name]) for own, theirs, name in self._places]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        steps = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + steps) / (RAMP + steps))
        # lerp adds a fraction of the difference: equal tensors stay equal to the bit.
        torch._foreach_lerp_([own for own, _ in floats], [theirs for _, theirs in floats], weight)
        for own, theirs in pairs:
            if not own.is_floating_point():
                own.copy_(theirs)
        self.n_averaged += 1


def _places(average: nn.Module, model: nn.Module) -> list[Place]:
    """Where the tensors are that belong together, each once. Not the tensors: a module may put another into a buffer's
    place."""
    places: dict[int, Place] = {}
    for own, theirs in zip(average.modules(), model.modules(), strict=True):
        for mine, other in ((own._parameters, theirs._parameters), (own._buffers, theirs._buffers)):
            for name, tensor in mine.items():
                if tensor is not None:
                    places.setdefault(id(tensor), (mine, other, name))
    return list(places.values())
