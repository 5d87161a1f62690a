"""What every balancer is to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

Backward = Callable[[Tensor], None]
"""Puts the gradient of a scalar into `.grad`; scales it first where half precision needs that."""


class Balancer(Protocol):
    """From the losses of a step to the gradient of the model."""

    def backward(self, losses: Mapping[str, Tensor], shared: Sequence[Tensor], scale: float) -> dict[str, float]:
        """Add the balanced gradient to every `.grad`. Returns each task's weight, NaN where a method has none.

        losses: task -> scalar, positive; tasks without a labelled image in this batch are absent.
        shared: features that all tasks were computed from. scale: factor of the whole.
        """

    def end_epoch(self) -> None:
        """For methods that look at epochs."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
