"""What teachers' terms learn, projectors and generators, in the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer


def add_learned(optimizer: Optimizer, learned: Sequence[nn.Parameter], weight_decay: float) -> None:
    """With decay, and biases without, as the model's own."""
    for decays in (True, False):
        parameters = [parameter for parameter in learned if (parameter.ndim > 1) is decays]
        if parameters:
            group = {"params": parameters, "scale": 1.0, "weight_decay": weight_decay if decays else 0.0}
            optimizer.add_param_group(group)


def in_groups_of_now(saved: dict[str, Any], optimizer: Optimizer, learned: Sequence[nn.Parameter]) -> dict[str, Any]:
    """An optimiser's state from when biases were among all that is learned: such a stage ends as it began."""
    *others, last = saved["param_groups"]
    if len(optimizer.param_groups) != len(others) + 2 or len(last["params"]) != len(learned):
        return saved
    parts = [
        [number for number, parameter in zip(last["params"], learned, strict=True) if (parameter.ndim > 1) is decays]
        for decays in (True, False)
    ]
    return saved | {"param_groups": [*others, *({**last, "params": part} for part in parts)]}


__all__ = ["add_learned", "in_groups_of_now"]
