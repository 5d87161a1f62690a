"""Any timm model as an extractor."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mtyolo.config.model import Normalisation
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError
from mtyolo.extractors.base import Extractor
from mtyolo.extractors.pretrained import fill, offline, packaged_weights, read_tensors, weights_hash
from mtyolo.structures import Level, Pyramid

PREFIX = "timm/"
PROBES = ((256, 256), (320, 384))
"""Sizes that a model must take, both, to count as free in its input size."""

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HUB_TIMEOUT = 3.0
"""Seconds to find out that there is no way to the hub, before its client retries for most of a minute."""


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
        self.body = _create(name, shape.arguments | ({"out_indices": chosen} if shape.hierarchical else {}))
        _load(self.body, name, weights, shape.arguments)
        self.patch_scale, self.own_size, self.fixed_size = shape.patch_scale, shape.own_size, shape.fixed_size
        used = normalisation or shape.normalisation
        self.register_buffer("mean", torch.tensor(used.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(used.std).view(1, 3, 1, 1), persistent=False)
        self.identity = {
            "name": PREFIX + name,
            "weights": weights_hash(self.body),
            "mean": str(list(used.mean)),
            "std": str(list(used.std)),
            "arguments": str(sorted(shape.arguments.items())),
        }

    def forward(self, images: Tensor) -> Pyramid:
        normalised = (images - self.mean) / self.std
        try:
            features = self.body(self._fitted(normalised))
        except IndexError:
            # Some families look positions up in a table for one size, which a trial on shapes does not show.
            self.fixed_size = self.own_size
            features = self.body(self._fitted(normalised))
        return {
            level.stride: _as_level(features[pick], level, images.shape[-2:])
            for level, pick in zip(self.levels, self.picks, strict=True)
        }

    def _fitted(self, images: Tensor) -> Tensor:
        size = self.fixed_size or tuple(round(side * self.patch_scale) for side in images.shape[-2:])
        if size == tuple(images.shape[-2:]):
            return images
        return interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class _Shape:
    """What a model is like, found on shapes alone."""

    def __init__(self, arguments: dict[str, Any], body: nn.Module, free: bool) -> None:
        config: dict[str, Any] = getattr(body, "pretrained_cfg", None) or getattr(body.model, "pretrained_cfg", {})
        info: Any = body.feature_info
        strides = [_power_of_two(stride) for stride in info.reduction()]
        self.arguments = arguments
        self.hierarchical = len(set(strides)) == len(strides)
        self.levels = [Level(*pair) for pair in zip(strides, info.channels(), strict=True)]
        self.patch_scale = info.reduction()[-1] / strides[-1]
        self.own_size = _size_of(arguments, config)
        self.fixed_size = None if free else self.own_size
        self.normalisation = Normalisation(mean=config.get("mean", IMAGENET.mean), std=config.get("std", IMAGENET.std))


def _examine(name: str, arguments: dict[str, Any]) -> _Shape:
    """Find the arguments with which a model takes any input size, or else its own size."""
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"extractor.name: timm has no model {name!r}; {nearest(name, timm.list_models())}")
    freedoms: list[dict[str, Any]] = [{}] if "img_size" in arguments else [{}, {"dynamic_img_size": True}]
    for freedom in freedoms:
        with torch.device("meta"):
            body = _create_or_none(name, freedom | arguments)
        if body is not None and _takes_any_size(body.eval()):
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


@torch.no_grad()
def _takes_any_size(body: nn.Module) -> bool:
    info: Any = body.feature_info
    scale = info.reduction()[-1] / _power_of_two(info.reduction()[-1])
    try:
        for height, width in PROBES:
            body(torch.empty(1, 3, round(height * scale), round(width * scale), device="meta"))
    except (AssertionError, RuntimeError, IndexError, ValueError):  # each family has its own way to say no
        return False
    return True


def _choose(name: str, levels: Sequence[Level], strides: Sequence[int], strict: bool) -> list[int]:
    """Numbers of the levels to give, fine to coarse; of several with one stride the last."""
    last = {level.stride: index for index, level in enumerate(levels)}
    missing = [stride for stride in strides if stride not in last]
    if missing and strict:
        raise ConfigError(f"extractor.strides: {name} has no level of stride {missing[0]}; it has {sorted(last)}")
    chosen = [last[stride] for stride in sorted(set(strides)) if stride in last]
    return chosen or [index for _, index in sorted(last.items())]


def _load(body: nn.Module, name: str, weights: str, arguments: Mapping[str, Any]) -> None:
    if weights == "none":
        return
    inner = body.model if hasattr(body, "model") and isinstance(body.model, nn.Module) else body
    packaged = packaged_weights(name) if weights == "imagenet" else None
    if packaged is not None:
        fill(inner, read_tensors(packaged), packaged, by_order=True)
    elif weights == "imagenet":
        fill(inner, _from_hub(name, arguments), "model hub")
    else:
        fill(inner, read_tensors(Path(weights)), weights)


def _from_hub(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    import timm

    try:
        with _no_vain_retries():
            return timm.create_model(name, pretrained=True, **arguments).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise offline(name, error) from None


@contextmanager
def _no_vain_retries() -> Iterator[None]:
    """Without a way to the hub look only into its cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    if urllib.request.getproxies():
        return True  # only the proxy knows
    place = urllib.parse.urlsplit(address)
    try:
        socket.create_connection((place.hostname, place.port or 443), HUB_TIMEOUT).close()
    except OSError:
        return False
    return True


def _size_of(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    size = arguments.get("img_size", config.get("input_size", (3, 224, 224))[1:])
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _power_of_two(stride: int) -> int:
    """The next power of two: 14 -> 16."""
    return 1 << (stride - 1).bit_length()


def _as_level(features: Tensor, level: Level, image: Sequence[int]) -> Tensor:
    """[B, C, H/stride, W/stride], whatever the model's order of axes and rounding of sizes."""
    if features.shape[1] != level.channels and features.shape[-1] == level.channels:
        features = features.permute(0, 3, 1, 2)
    size = (image[0] // level.stride, image[1] // level.stride)
    if tuple(features.shape[-2:]) == size:
        return features
    return interpolate(features, size, mode="bilinear", align_corners=False)
