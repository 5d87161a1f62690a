"""Any timm model as an extractor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mtyolo.config.model import Normalisation
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError
from mtyolo.extractors.base import Extractor
from mtyolo.extractors.pretrained import load_weights
from mtyolo.structures import Level, Pyramid

PREFIX = "timm/"
PROBES = ((256, 256), (320, 384))
"""Sizes that a model must take, both, to count as free in its input size."""

DYNAMIC = {"dynamic_img_size": True}
"""What frees most families of transformers from the size that they were trained at."""

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""For a model that does not say what it was trained with."""


class TimmExtractor(Extractor):
    """A timm model's feature levels, normalised as the model was trained.

    strides: the levels to give, as far as the model has them; strict: all of them. Where several levels have one stride
    (plain vision transformers) it is the last. A patch that is no power of two (14) sees the image scaled so that it
    covers one (16). A model that takes only one input size sees the image resized to it, and its features come resized
    to the stride's grid; `arguments: {img_size: 320}` builds it for the size you train at instead.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        weights: str = "imagenet",
        strides: Sequence[int] = (8, 16, 32),
        strict: bool = False,
        normalisation: Normalisation | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        shape = _examine(name, dict(arguments or {}))
        chosen = _choose(name, shape.levels, strides, strict)
        self.levels = tuple(shape.levels[index] for index in chosen)
        # Only hierarchical models can be cut after their coarsest wanted level.
        self.picks = list(range(len(chosen))) if shape.hierarchical else chosen
        cut = {"out_indices": [shape.indices[index] for index in chosen]} if shape.hierarchical else {}
        self.body = _create(name, shape.arguments | cut)
        load_weights(self.body, name, weights, shape.arguments)
        self.patch_scale = shape.patch_scale
        self.channels_last = getattr(self.body, "output_fmt", None) == "NHWC"
        free = shape.free and (shape.certain or _runs(self.body, PROBES[-1], shape.patch_scale))
        self.fixed_size = None if free else shape.own_size
        used = normalisation or shape.normalisation
        self.register_buffer("mean", torch.tensor(used.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(used.std).view(1, 3, 1, 1), persistent=False)
        self.identity = {
            "name": PREFIX + name,
            "mean": str(list(used.mean)),
            "std": str(list(used.std)),
            "arguments": str(sorted(shape.arguments.items())),
        }

    def forward(self, images: Tensor) -> Pyramid:
        normalised = (images - self.mean) / self.std
        features = self.body(self._fitted(normalised))
        return {
            level.stride: self._placed(features[pick], level.stride, images.shape[-2:])
            for level, pick in zip(self.levels, self.picks, strict=True)
        }

    def _fitted(self, images: Tensor) -> Tensor:
        size = self.fixed_size or tuple(round(side * self.patch_scale) for side in images.shape[-2:])
        if size == tuple(images.shape[-2:]):
            return images
        return interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)

    def _placed(self, features: Tensor, stride: int, image: Sequence[int]) -> Tensor:
        """[B, C, H/stride, W/stride], whatever the model's order of axes and rounding of sizes."""
        if self.channels_last:
            features = features.permute(0, 3, 1, 2)
        size = (image[0] // stride, image[1] // stride)
        if tuple(features.shape[-2:]) == size:
            return features
        return interpolate(features, size, mode="bilinear", align_corners=False)


class _Shape:
    """What a model is like, found on shapes alone."""

    def __init__(self, arguments: dict[str, Any], body: nn.Module, free: bool) -> None:
        config: dict[str, Any] = getattr(body, "pretrained_cfg", None) or getattr(body.model, "pretrained_cfg", {})
        info: Any = body.feature_info
        strides = [_power_of_two(stride) for stride in info.reduction()]
        self.arguments = arguments
        self.hierarchical = len(set(strides)) == len(strides)
        self.levels = [Level(*pair) for pair in zip(strides, info.channels(), strict=True)]
        self.indices: Sequence[int] = info.out_indices
        self.patch_scale = info.reduction()[-1] / strides[-1]
        self.own_size = _size_of(arguments, config)
        self.free = free
        # Some that say so look positions up in a table, which does not show on shapes alone.
        self.certain = DYNAMIC.items() <= arguments.items() or not config.get("fixed_input_size", False)
        self.normalisation = Normalisation(mean=config.get("mean", IMAGENET.mean), std=config.get("std", IMAGENET.std))


def _examine(name: str, arguments: dict[str, Any]) -> _Shape:
    """Find the arguments with which a model takes any input size, or else its own size."""
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"extractor.name: timm has no model {name!r}; {nearest(name, timm.list_models())}")
    for freedom in ({},) if "img_size" in arguments else ({}, DYNAMIC):
        with torch.device("meta"):
            body = _create_or_none(name, freedom | arguments)
        if body is not None and _takes_any_size(body):
            return _Shape(freedom | arguments, body, free=True)
    with torch.device("meta"):
        return _Shape(arguments, _create(name, arguments), free=False)


def _create(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=False, features_only=True, **arguments)
    except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
        raise ConfigError(f"extractor: timm can not make features of {name} with {dict(arguments)}: {error}") from None


def _create_or_none(name: str, arguments: Mapping[str, Any]) -> nn.Module | None:
    try:
        return _create(name, arguments)
    except ConfigError:
        return None


def _takes_any_size(body: nn.Module) -> bool:
    info: Any = body.feature_info
    scale = info.reduction()[-1] / _power_of_two(info.reduction()[-1])
    return all(_runs(body, size, scale) for size in PROBES)


@torch.no_grad()
def _runs(body: nn.Module, size: tuple[int, int], scale: float) -> bool:
    training, device = body.training, next(body.parameters()).device
    try:
        body.eval()(torch.zeros(1, 3, *(round(side * scale) for side in size), device=device))
    except (AssertionError, RuntimeError, IndexError, ValueError):  # each family has its own way to say no
        return False
    finally:
        body.train(training)
    return True


def _choose(name: str, levels: Sequence[Level], strides: Sequence[int], strict: bool) -> list[int]:
    """Numbers of the levels to give, fine to coarse; of several with one stride the last."""
    last = {level.stride: index for index, level in enumerate(levels)}
    missing = [stride for stride in strides if stride not in last]
    if missing and strict:
        raise ConfigError(f"extractor.strides: {name} has no level of stride {missing[0]}; it has {sorted(last)}")
    chosen = [last[stride] for stride in sorted(set(strides)) if stride in last]
    return chosen or [index for _, index in sorted(last.items())]


def _size_of(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    size = arguments.get("img_size", config.get("input_size", (3, 224, 224))[1:])
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _power_of_two(stride: int) -> int:
    """The nearest power of two: 14 -> 16."""
    return 1 << round(math.log2(stride))
