"""The pictures of a batch that teachers are asked about, where these are not all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtyolo.structures import KeypointOutputs, MaskOutputs, Outputs
from mtyolo.tasks.maps import empty_map


def outputs_for(outputs: Outputs, images: slice) -> Outputs:
    """Of these images of a batch. What is differentiated looks at the whole batch's, and is zero for the others."""
    segment, keypoint = outputs.segment, outputs.keypoint
    return outputs._replace(
        adapted=levels_for(outputs.adapted, images),
        fused=levels_for(outputs.fused, images),
        detect=_maps_for(outputs.detect, images),
        segment=segment
        and MaskOutputs(_maps_for(segment.coefficients, images), _of_images(segment.prototypes, images)),
        keypoint=keypoint
        and KeypointOutputs(
            _maps_for(keypoint.points, images),
            None if keypoint.heatmaps is None else _of_images(keypoint.heatmaps, images),
        ),
        taken=outputs.taken and levels_for(outputs.taken, images),
    )


def levels_for(levels: Mapping[int, Tensor], images: slice) -> dict[int, Tensor]:
    """The same of maps by stride, or by layer."""
    return {number: _of_images(level, images) for number, level in levels.items()}


def _maps_for(maps: Sequence[Tensor], images: slice) -> list[Tensor]:
    return [_of_images(level, images) for level in maps]


def _of_images(maps: Tensor, images: slice) -> Tensor:
    """A view. Slicing has a gradient in another layout than convolutions take without a copy."""
    found: Tensor = _Images.apply(maps, images)
    return found


class _Images(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, images: slice) -> Tensor:
        ctx.images, ctx.shape = images, maps.shape
        return maps[images]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Among.apply(gradient, ctx.images, ctx.shape), None


class _Among(torch.autograd.Function):
    """Zero for the other images; by itself, so that it can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, some: Tensor, images: slice, shape: torch.Size) -> Tensor:
        ctx.images = images
        whole = _in_layout_of_convolutions(shape, some).zero_()
        whole[images] = some
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.images], None, None


def _in_layout_of_convolutions(shape: torch.Size, like: Tensor) -> Tensor:
    if len(shape) == 4:
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return empty_map(shape, like)
