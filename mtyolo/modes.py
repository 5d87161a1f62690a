"""Modes of modules, put back afterwards one by one: in a model that is partly frozen they differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode in which it was."""
    with _modes_kept(model):
        model.eval()
        with torch.no_grad():  # not inference_mode: results may be calculated with
            yield


@contextmanager
def as_before(model: nn.Module | None) -> Iterator[None]:
    """Afterwards the same parameters want gradients as before, and modules are in the same modes, however it ended: a
    loop of one's own would else go on with a part of the model."""
    wanted = [] if model is None else [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with _modes_kept(model):
            yield
    finally:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)


@contextmanager
def _modes_kept(model: nn.Module | None) -> Iterator[None]:
    modes = [] if model is None else [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
