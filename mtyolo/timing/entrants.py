"""What takes part: a model on pictures and, behind an extractor, on features that are there already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtyolo.exported import FEATURES, ExportedModel
from mtyolo.extractors.base import GivenFeatures, features_of
from mtyolo.model import Model
from mtyolo.structures import Detections, Outputs, Pyramid


@dataclass(frozen=True, slots=True)
class Entrant:
    name: str
    takes: str  # "images" or "features"
    parameters: int | None  # of all that it runs; None for an exported network
    look: Callable[[], Outputs]
    find: Callable[[Outputs], list[Detections]]


def entrants_of(name: str, model: Model | ExportedModel, images: Tensor) -> Iterator[Entrant]:
    """images: [B, 3, H, W] uint8, square, on the model's device. Detections end on the CPU, as `predict` gives them."""

    def find(outputs: Outputs) -> list[Detections]:
        return [found.to("cpu") for found in model.detections(outputs)]

    def entrant(takes: str, look: Callable[[], Outputs]) -> Entrant:
        return Entrant(name, takes, _parameters(model, takes), look, find)

    if isinstance(model, ExportedModel) and not model.description.takes_images:
        pyramid = _anything(model.description.inputs, images)
        yield entrant("features", lambda: model(pyramid=pyramid))
        return
    if isinstance(model, ExportedModel) or not isinstance(model.extractor, GivenFeatures):
        yield entrant("images", lambda: model(_pixels(images)))
    if isinstance(model, Model) and model.extractor is not None:
        pyramid = _features(model, images)
        size = (images.shape[-2], images.shape[-1])
        yield entrant("features", lambda: _on_features(model, images, pyramid, size))


def _on_features(model: Model, images: Tensor, pyramid: Pyramid, size: tuple[int, int]) -> Outputs:
    """Layers before those that features replace may be there still, and take images."""
    return model(_pixels(images) if model.graph.needs_images else None, pyramid=pyramid, size=size)


def _features(model: Model, images: Tensor) -> Pyramid:
    assert model.extractor is not None
    if not isinstance(model.extractor, GivenFeatures):
        return features_of(model.extractor, _pixels(images))
    batch, _, height, width = images.shape
    return {
        level.stride: torch.rand(batch, level.channels, height // level.stride, width // level.stride).to(images.device)
        for level in model.extractor.levels
    }


def _anything(inputs: Mapping[str, list[int]], images: Tensor) -> Pyramid:
    """Features of the shapes that an exported network takes."""
    return {int(name.removeprefix(FEATURES)): torch.rand(len(images), *shape) for name, shape in inputs.items()}


def _pixels(images: Tensor) -> Tensor:
    return images.float().div_(255)


def _parameters(model: Model | ExportedModel, takes: str) -> int | None:
    if isinstance(model, ExportedModel):
        return None
    left_out = model.extractor if takes == "features" else None
    unused = sum(one.numel() for one in left_out.parameters()) if left_out is not None else 0
    return sum(one.numel() for one in model.parameters()) - unused
