"""Statistics matching: an adapter starts with the mean and variance that the detector expects."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtyolo.adapters.blocks import ChannelAffine
from mtyolo.errors import ConfigError
from mtyolo.structures import Pyramid

SMALLEST_VARIANCE = 1e-6
"""Of an adapter's channel that says nothing yet; dividing by less would make noise loud."""

Moments = dict[int, tuple[Tensor, Tensor]]
"""stride -> per-channel mean and variance."""


@torch.no_grad()
def moments(pyramids: Iterable[Pyramid]) -> Moments:
    """Per-channel mean and variance over batches and positions."""
    sums: dict[int, list[Tensor]] = {}
    for pyramid in pyramids:
        for stride, features in pyramid.items():
            values = features.double()
            parts = [values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), values.new_tensor(values[:, 0].numel())]
            before = sums.setdefault(stride, [torch.zeros_like(part) for part in parts])
            sums[stride] = [old + new for old, new in zip(before, parts, strict=True)]
    found = {}
    for stride, (total, squares, count) in sums.items():
        mean = total / count
        found[stride] = (mean.float(), (squares / count - mean.square()).clamp(min=0).float())
    return found


@torch.no_grad()
def match_statistics(adapters: nn.Module, got: Moments, wanted: Moments) -> None:
    """Set each output's last affine so that its mean and variance become the wanted ones.

    The affine stands behind the activation, so that the match is exact and not distorted by it.
    got: the adapters' outputs, wanted: the replaced layers', in the same mode and over the same images.
    Raises ConfigError for adapters without such an affine (identity).
    """
    for layer, level in zip(getattr(adapters, "layers", ()), getattr(adapters, "outputs", ()), strict=False):
        affine = next((part for part in reversed(list(layer.modules())) if isinstance(part, ChannelAffine)), None)
        if affine is None:
            continue
        (mean, variance), (wanted_mean, wanted_variance) = got[level.stride], wanted[level.stride]
        scale = (wanted_variance / variance.clamp(min=SMALLEST_VARIANCE)).sqrt()
        affine.bias.copy_((affine.bias - mean) * scale + wanted_mean)
        affine.weight.mul_(scale)
    if not any(isinstance(part, ChannelAffine) for part in adapters.modules()):
        raise ConfigError("adapters.match_statistics: these adapters have no scale to set; use conv, pyramid or fusion")
