"""Adapters that make several levels of one, or each level of all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtyolo.adapters.blocks import ChannelAffine, conv_block, grid, make_norm, nearest_level, resampled
from mtyolo.structures import Level, Pyramid


class PyramidAdapter(nn.Module):
    """Finer levels by transposed convolutions, coarser ones by pooling, from the nearest level there is.

    Made for vision transformers of one stride: the simple feature pyramid of Li et al. 2022, arXiv:2203.16527.
    """

    def __init__(
        self, inputs: Sequence[Level], outputs: Sequence[Level], *, depth: int = 2, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        self.sources = [nearest_level(inputs, level.stride) for level in outputs]
        self.layers = nn.ModuleList(
            self._layer(source, level, depth, norm) for source, level in zip(self.sources, outputs, strict=True)
        )

    @staticmethod
    def _layer(source: Level, level: Level, depth: int, norm: str) -> nn.Sequential:
        steps: list[nn.Module] = []
        channels = source.channels
        for _ in range(max(0, round(math.log2(source.stride / level.stride)))):
            finer = max(channels // 2, level.channels)
            steps += [nn.ConvTranspose2d(channels, finer, 2, 2), make_norm(finer, norm), nn.SiLU(inplace=True)]
            channels = finer
        steps += [nn.MaxPool2d(2) for _ in range(max(0, round(math.log2(level.stride / source.stride))))]
        steps.append(conv_block(channels, level.channels, 1, norm))
        steps += [conv_block(level.channels, level.channels, 3, norm) for _ in range(depth - 1)]
        return nn.Sequential(*steps, ChannelAffine(level.channels))

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Pyramid:
        return {
            level.stride: resampled(layer(pyramid[source.stride]), grid(size, level.stride))
            for layer, source, level in zip(self.layers, self.sources, self.outputs, strict=True)
        }


class FusionAdapter(nn.Module):
    """Each output sees all levels of the input; the coarsest one sees the whole image besides.

    A replaced layer mixes fine and coarse in its own way, and the last one (SPPF) pools over the image: an adapter that
    looks through one level's small window can not say what they would have said.
    width: channels in between, as a multiple of an output's; above 1 the output is a linear map of them.
    """

    def __init__(
        self, inputs: Sequence[Level], outputs: Sequence[Level], *, depth: int = 2, norm: str = "batch", width: int = 1
    ) -> None:
        super().__init__()
        coarsest = max(outputs)
        self.outputs = tuple(outputs)
        self.layers = nn.ModuleList(
            _Fusion(inputs, level, depth, norm, width, context=level == coarsest) for level in outputs
        )

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Pyramid:
        return {
            level.stride: layer(pyramid, grid(size, level.stride))
            for layer, level in zip(self.layers, self.outputs, strict=True)
        }


class _Fusion(nn.Module):
    """All input levels to one output: projected, resampled, summed, then 3x3 convolutions."""

    def __init__(
        self, inputs: Sequence[Level], level: Level, depth: int, norm: str, width: int, *, context: bool
    ) -> None:
        super().__init__()
        channels = width * level.channels
        self.sources = tuple(inputs)
        self.project = nn.ModuleList(nn.Conv2d(source.channels, channels, 1) for source in inputs)
        self.mix = nn.Sequential(make_norm(channels, norm), nn.SiLU(inplace=True))
        self.context = _Context(channels, norm) if context else nn.Identity()
        self.refine = nn.Sequential(
            *(conv_block(channels, channels, 3, norm) for _ in range(depth - 1)),
            *([nn.Conv2d(channels, level.channels, 1)] if width > 1 else []),
            ChannelAffine(level.channels),
        )

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Tensor:
        projected = [
            self._placed(layer, pyramid[source.stride], size)
            for layer, source in zip(self.project, self.sources, strict=True)
        ]
        # Added one by one: a stack would leave channels_last, and slow all convolutions around it.
        return self.refine(self.context(self.mix(sum(projected[1:], projected[0]))))

    @staticmethod
    def _placed(project: nn.Module, features: Tensor, size: tuple[int, int]) -> Tensor:
        # The cheaper order: a 1x1 convolution commutes with resampling.
        shrinks = features.shape[-1] > size[1]
        return project(resampled(features, size)) if shrinks else resampled(project(features), size)


class _Context(nn.Module):
    """Max-pooled neighbourhoods of growing size beside the features, as in SPPF, and the mean of the whole image."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.reduce = conv_block(channels, channels // 2, 1, norm)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.join = conv_block(channels // 2 * 5, channels, 1, norm)

    def forward(self, features: Tensor) -> Tensor:
        reduced = self.reduce(features)
        pooled = [reduced]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        whole = torch.zeros_like(reduced) + reduced.mean((2, 3), keepdim=True)  # expanded, it would leave channels_last
        return self.join(torch.cat((*pooled, whole), 1))
