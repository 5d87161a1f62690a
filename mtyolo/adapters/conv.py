"""Adapters that look at one level at a time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtyolo.adapters.blocks import ChannelAffine, conv_block, grid, nearest_level, resampled
from mtyolo.errors import ConfigError
from mtyolo.structures import Level, Pyramid


class Identity(nn.Module):
    """Features as they are, where strides and channels fit already."""

    def __init__(self, inputs: Sequence[Level], outputs: Sequence[Level]) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        channels = {level.stride: level.channels for level in inputs}
        for level in outputs:
            if channels.get(level.stride) != level.channels:
                got = f"{channels[level.stride]} channels" if level.stride in channels else "nothing"
                raise ConfigError(
                    f"adapters: identity: stride {level.stride}: the replaced layer has {level.channels} channels, "
                    f"the extractor gives {got}; use type: conv"
                )

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Pyramid:
        return {level.stride: pyramid[level.stride] for level in self.outputs}


class ConvAdapter(nn.Module):
    """For each output the nearest level of the input: resampled where strides differ, 1x1, then depth - 1 times 3x3."""

    def __init__(
        self, inputs: Sequence[Level], outputs: Sequence[Level], *, depth: int = 1, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.sources = [nearest_level(inputs, level.stride) for level in outputs]
        self.layers = nn.ModuleList(
            nn.Sequential(
                conv_block(source.channels, level.channels, 1, norm),
                *(conv_block(level.channels, level.channels, 3, norm) for _ in range(depth - 1)),
                ChannelAffine(level.channels),
            )
            for source, level in zip(self.sources, outputs, strict=True)
        )

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Pyramid:
        return {
            level.stride: layer(resampled(pyramid[source.stride], grid(size, level.stride)))
            for layer, source, level in zip(self.layers, self.sources, self.outputs, strict=True)
        }
