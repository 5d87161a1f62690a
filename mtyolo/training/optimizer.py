"""Optimiser and learning rate of a stage, in the shape of the official recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from mtyolo.config.training import TrainConfig

WARMUP_MOMENTUM = 0.8
"""Where momentum starts; as in the official recipe."""


def make_optimizer(model: nn.Module, scales: Mapping[str, float], config: TrainConfig, kind: str) -> Optimizer:
    """Groups by learning-rate factor, with and without decay; only parameters in `scales` are known to it.

    Norms and biases (all tensors of one dimension) do not decay.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in scales:
            groups.setdefault((scales[name], parameter.ndim > 1), []).append(parameter)
    described = [
        {"params": parameters, "scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
    ]
    if kind == "adamw":
        return AdamW(described, lr=config.lr, betas=(config.momentum, 0.999))
    return SGD(described, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def set_rates(optimizer: Optimizer, step: int, steps: int, warmup: int, lr: float, config: TrainConfig) -> float:
    """Learning rate and momentum of a stage's step `step` of `steps`: linear warm-up, then half a cosine.

    Returns the learning rate of a group with factor 1. A function of the step alone: nothing to save or to resume.
    """
    rate = lr * rate_factor(step, steps, warmup, config.final_lr)
    ramp = min(1.0, step / warmup) if warmup else 1.0
    start = min(WARMUP_MOMENTUM, config.momentum)
    momentum = start + (config.momentum - start) * ramp
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
        if "momentum" in group:
            group["momentum"] = momentum
        else:
            group["betas"] = (momentum, group["betas"][1])
    return rate


def rate_factor(step: int, steps: int, warmup: int, final: float) -> float:
    """Fraction of the learning rate: rises over `warmup` steps, from above 0, and follows a cosine down to `final`."""
    cosine = final + (1 - final) * (1 + math.cos(math.pi * step / max(1, steps))) / 2
    return cosine * min(1.0, (step + 1) / (warmup + 1))


def clip_gradients(parameters: list[nn.Parameter], value: float | None, norm: float | None) -> torch.Tensor:
    """Clip by value, then by norm; None: not. Returns the norm: not finite where a gradient was not."""
    if value is not None:
        total = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        if not total.isfinite():
            return total  # clamped, infinity would look like any large gradient
        nn.utils.clip_grad_value_(parameters, value)
    return nn.utils.clip_grad_norm_(parameters, norm or math.inf)
