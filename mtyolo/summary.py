"""What a model is made of: parts with their output shapes, parameters and FLOPs, and where features enter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtyolo.errors import ConfigError
from mtyolo.geometry import fitting_side
from mtyolo.graph.network import INPUT, default_entry
from mtyolo.model import PARTS, Model
from mtyolo.structures import Level, Outputs

SHOWN_PARTS = tuple(part for part in PARTS if part != "detector")
"""The detector is shown as its backbone, its neck and its detect branch."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One row. Shapes are those of the outputs for one image, without the batch dimension."""

    name: str
    shapes: tuple[Shape, ...]
    parameters: int
    flops: int  # a multiplication and an addition are two


@dataclass(frozen=True, slots=True)
class Summary:
    size: int  # side of the square input in pixels
    parts: tuple[PartSummary, ...]
    entries: tuple[str, ...]  # a sentence for each level at which features enter
    pruned: tuple[int, ...]  # layers of the graph that are not built, because nothing needs them
    names: Mapping[int, str]


def trained_parameters(model: Model) -> dict[str, int]:
    """Part -> how many of its parameters require a gradient."""
    return {
        name: sum(one.numel() for _, module in modules for one in module.parameters() if one.requires_grad)
        for name, modules in _parts(model)
    }


@torch.no_grad()
def summarise(model: Model, size: int | None = None) -> Summary:
    """Run one grey image of `size` x `size` pixels (made a multiple of the largest stride), and count.

    size: by default the one that the model was trained at.
    """
    size = fitting_side(size or model.usual_size, model.largest_stride)
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            outputs = _forward(model.eval(), size)
    finally:
        for module, training in modes.items():
            module.training = training
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    shapes = _shapes(model, outputs, size)
    return Summary(
        size=size,
        parts=tuple(_row(name, modules, shapes[name], flops) for name, modules in _parts(model)),
        entries=tuple(_entries(model)),
        pruned=tuple(layer.number for layer in model.graph.spec.layers if str(layer.number) not in model.graph.layers),
        names=model.names,
    )


def _forward(model: Model, size: int) -> Outputs:
    some = next(model.parameters())
    images = torch.full((1, 3, size, size), 0.5, device=some.device, dtype=some.dtype)
    given = model.config.extractor.levels if model.config.extractor else None
    if given is None:
        return model(images)
    features = {
        stride: images.new_zeros(1, channels, size // stride, size // stride) for stride, channels in given.items()
    }
    return model(images if model.graph.needs_images else None, pyramid=features, size=(size, size))


def _parts(model: Model) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """Those that the model has, in the order of the data's way through it."""
    for name in SHOWN_PARTS:
        try:
            yield name, model.part(name)
        except ConfigError:
            continue


def _row(
    name: str, modules: list[tuple[str, nn.Module]], shapes: tuple[Shape, ...], flops: Mapping[str, int]
) -> PartSummary:
    return PartSummary(
        name=name,
        shapes=shapes,
        parameters=sum(parameter.numel() for _, module in modules for parameter in module.parameters()),
        flops=sum(flops.get(f"Model.{prefix}", 0) for prefix, _ in modules),
    )


def _shapes(model: Model, outputs: Outputs, size: int) -> dict[str, tuple[Shape, ...]]:
    graph, segment = model.graph, outputs.segment
    return {
        "extractor": _of_levels(getattr(model.extractor, "levels", ()), size),
        "adapters": _of_tensors(outputs.adapted.values()),
        "detector.backbone": _of_levels([graph.levels[layer] for layer in default_entry(graph.spec)], size),
        "detector.neck": _of_tensors(outputs.fused.values()),
        "detect": _of_tensors(outputs.detect),
        "segment": _of_tensors([*segment.coefficients, segment.prototypes] if segment else []),
        "keypoint": _of_tensors(_points_and_maps(outputs)),
    }


def _points_and_maps(outputs: Outputs) -> list[Tensor]:
    keypoint = outputs.keypoint
    return [] if keypoint is None else [*keypoint.points, *([] if keypoint.heatmaps is None else [keypoint.heatmaps])]


def _of_levels(levels: Iterable[Level], size: int) -> tuple[Shape, ...]:
    return tuple((level.channels, size // level.stride, size // level.stride) for level in levels)


def _of_tensors(tensors: Iterable[Tensor]) -> tuple[Shape, ...]:
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors)


def _entries(model: Model) -> Iterator[str]:
    given = {level.stride: level.channels for level in getattr(model.extractor, "levels", ())}
    for layer, stride in sorted(model.graph.entry.items(), key=lambda item: item[1]):
        source = f"{given[stride]} channels" if stride in given else "resampled features"
        target = "the network's input" if layer == INPUT else f"the output of layer {layer}"
        yield f"stride {stride}: {source} → adapters → {model.graph.levels[layer].channels} channels, {target}"
