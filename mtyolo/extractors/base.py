"""What an extractor is to the rest of the house."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mtyolo.errors import ConfigError, DataError
from mtyolo.extractors.checking import check_pyramid
from mtyolo.structures import Level, Pyramid

GIVEN = "features"
"""The name, in a model file, of features that are made elsewhere."""

CACHED = 4
"""Images that a CPU takes through an extractor at once: what is in between then stays in its cache. Measured at 320
pixels on two cores, ms an image with 4 and with 16 at once: EfficientNet-Lite0 44 and 58, MobileNetV2 17 and 44,
ResNet-50 149 and 183, ConvNeXt-T 150 and 217, DINOv3 ViT-S/16 166 and 163."""


class Extractor(nn.Module):
    """A module from images to features at some strides.

    levels: strides and channels, fine to coarse, known without running it.
    identity: what computed the features, as text: name, weights, normalisation; a store on disk remembers it.
    Your own: set both in the constructor, and give `forward(images [B, 3, H, W] in 0..1) -> {stride: [B, C, H/stride,
    W/stride]}`, normalising inside.
    """

    levels: tuple[Level, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.identity: dict[str, str] = {"name": type(self).__name__}

    def forward(self, images: Tensor) -> Pyramid:
        raise ConfigError(f"{type(self).__name__} does not say how to make features; give it a forward(images)")


class GivenFeatures(Extractor):
    """Features that are made elsewhere: only their levels are known, and of a store what made them.

    levels: stride -> channels. identity: the store's; as long as none was read, `{"name": "features"}`.
    """

    def __init__(self, levels: dict[int, int]) -> None:
        super().__init__()
        self.levels = tuple(Level(stride, channels) for stride, channels in sorted(levels.items()))
        self.identity = {"name": GIVEN}

    @property
    def may_be_any(self) -> bool:
        """Is it not known what made them?"""
        return self.identity.get("name") in (None, GIVEN)

    def made_by(self, identity: Mapping[str, str]) -> None:
        """What made the features that a model learns from: stores are compared with it from now on."""
        if identity.get("name") not in (None, GIVEN):
            self.identity = dict(identity)

    def forward(self, images: Tensor) -> Pyramid:
        strides = ", ".join(f"{level.stride}: …" for level in self.levels)
        raise ConfigError(
            f"this model takes features, not images: give pyramid={{{strides}}}, name a feature store "
            "(features=, --features), or name an extractor in the model file"
        )


def features_of(extractor: nn.Module, images: Tensor) -> Pyramid:
    """What an extractor gives, in the pace that suits the device where nothing of it trains.

    images: [B, 3, H, W] in 0..1.
    """
    trains = extractor.training or (
        torch.is_grad_enabled() and any(parameter.requires_grad for parameter in extractor.parameters())
    )
    at_once = images.requires_grad or images.device.type != "cpu" or torch.compiler.is_compiling()
    if trains or at_once or len(images) <= CACHED:
        return _checked(extractor, images)
    parts = [_checked(extractor, some) for some in images.split(CACHED)]
    return {stride: torch.cat([part[stride] for part in parts]) for stride in parts[0]}


def _checked(extractor: nn.Module, images: Tensor) -> Pyramid:
    features: Pyramid = extractor(images)
    try:
        check_pyramid(features, getattr(extractor, "levels", ()), (images.shape[-2], images.shape[-1]))
    except DataError as error:
        name = type(extractor).__name__
        raise ConfigError(f"extractor {name}: gives other features than its levels say: {error}") from None
    return features
