"""What adapters are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mtyolo.errors import ConfigError
from mtyolo.structures import Level

BATCHNORM_EPS = 1e-3
BATCHNORM_MOMENTUM = 0.03
"""As in YOLOv5, whose layers the adapters stand in for."""

MOST_GROUPS = 32


def conv_block(channels_in: int, channels_out: int, kernel: int, norm: str) -> nn.Sequential:
    """Convolution, norm (batch, group or none), SiLU; keeps the size."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=norm == "none")
    return nn.Sequential(convolution, make_norm(channels_out, norm), nn.SiLU(inplace=True))


def make_norm(channels: int, norm: str) -> nn.Module:
    """Raises ConfigError for a word that is no norm."""
    if norm == "batch":
        return nn.BatchNorm2d(channels, eps=BATCHNORM_EPS, momentum=BATCHNORM_MOMENTUM)
    if norm == "group":
        return nn.GroupNorm(math.gcd(channels, MOST_GROUPS), channels)
    if norm == "none":
        return nn.Identity()
    raise ConfigError(f"adapters.norm: unknown norm {norm!r}; known: batch, group, none")


class ChannelAffine(nn.Module):
    """A scale and a shift for each channel, at first 1 and 0: where statistics are matched."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.weight[:, None, None] + self.bias[:, None, None]


def nearest_level(levels: Sequence[Level], stride: int) -> Level:
    """The level whose stride is closest by factor; of two equally close the finer, which has more to give."""
    return min(levels, key=lambda level: (abs(math.log2(level.stride / stride)), level.stride))


def resampled(features: Tensor, size: tuple[int, int]) -> Tensor:
    """To (H, W): averaged where it shrinks, interpolated where it grows."""
    height, width = features.shape[-2:]
    if (height, width) == size:
        return features
    if height >= size[0] and width >= size[1]:
        return interpolate(features, size, mode="area")
    return interpolate(features, size, mode="bilinear", align_corners=False)


def grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return size[0] // stride, size[1] // stride
