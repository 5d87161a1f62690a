"""From a YAML file to a model, and from a file of weights back to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtyolo.adapters import ADAPTERS, make_adapters
from mtyolo.config.model import ExtractorConfig, ModelConfig, TasksConfig
from mtyolo.errors import ConfigError
from mtyolo.extractors import EXTRACTORS, Extractor, make_extractor, refuse_imagenet
from mtyolo.graph.network import INPUT, Graph, default_entry, layer_levels
from mtyolo.graph.official import read_official
from mtyolo.graph.reading import GraphSpec, read_graph, scaled_channels
from mtyolo.graph.transfer import transfer
from mtyolo.model import Model
from mtyolo.resolution import graph_content, resolve
from mtyolo.structures import Level
from mtyolo.tasks.detect.branch import DetectBranch
from mtyolo.tasks.keypoint.branch import KeypointBranch
from mtyolo.tasks.segment.branch import SegmentBranch

COCO_POINTS = 17
PROTOTYPE_CHANNELS = 256
"""Width of the prototype network before the graph's width multiple, as in the official -seg files."""

Registry = Mapping[str, Any]
StandIn = Callable[[ExtractorConfig], Extractor]
"""Gives a module with `levels` and `identity` in place of an extractor whose features come from elsewhere."""


def build(
    config: str | Path | Mapping[str, Any] | ModelConfig,
    *,
    weights: str | Path | None = None,
    names: Mapping[int, str] | None = None,
    points: int | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    stand_in: StandIn | None = None,
    trust: bool = False,
) -> Model:
    """Assemble a model and load the weights that its file names. It is in evaluation mode.

    config: a model file, or a plain YOLOv5 layer list (own backbone, the tasks of its last layer).
    weights: an official checkpoint in place of the one that the file names.
    names, points: classes and keypoints of the data, in place of the file's or the checkpoint's.
    extractors, adapters: your own classes by name, beside the built-in ones. trust: also import `package.module:Class`.
    stand_in: makes what takes the extractor's place where features are stored; the extractor is then not loaded.
    Raises ConfigError or CheckpointError naming the place of what is wrong.
    """
    resolved = resolve(config, weights)
    if resolved.extractor is not None and not isinstance(config, ModelConfig):  # which was written with its defaults
        refuse_imagenet(resolved.extractor, EXTRACTORS | dict(extractors or {}))
    official = read_official(resolved.detector.weights) if resolved.detector.weights else None
    own = resolved.names or names or (official.names if official else None)
    model = assemble(
        resolved, names=own, points=points, extractors=extractors, adapters=adapters, stand_in=stand_in, trust=trust
    )
    if official is not None:
        transfer(official, model)
    # Evaluation mode, or a first look at what it finds would move its BatchNorm statistics.
    return model.to(memory_format=torch.channels_last).eval()


def assemble(
    config: ModelConfig,
    *,
    names: Mapping[int, str] | None = None,
    points: int | None = None,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    stand_in: StandIn | None = None,
    trust: bool = False,
    weights: bool = True,
) -> Model:
    """Modules from a resolved config; without weights when `weights` is false (a file of weights brings them)."""
    spec = read_graph(graph_content(config))
    names = dict(names or config.names or {number: str(number) for number in range(spec.classes)})
    _check_classes(config.tasks, names)
    entry = _entry(config, spec)
    extractor, channels = None, 3
    if config.extractor is not None:
        chosen = config.extractor if weights else config.extractor.model_copy(update={"weights": "none"})
        registry = EXTRACTORS | dict(extractors or {})
        wanted = tuple(sorted(entry.values()))
        extractor = stand_in(config.extractor) if stand_in else make_extractor(chosen, wanted, registry, trust=trust)
        channels = _input_channels(entry, extractor.levels)
    graph = Graph(spec, entry=entry, channels=channels)
    adapter = None
    if extractor is not None:
        known = ADAPTERS | dict(adapters or {})
        adapter = make_adapters(config.adapters, extractor.levels, graph.entry_levels, known, trust=trust)
    tasks = _tasks_with_points(config.tasks or TasksConfig(), points)
    return Model(
        extractor=extractor,
        adapters=adapter,
        graph=graph,
        branches=_branches(tasks, graph, len(names)),
        names=names,
        config=config.model_copy(update={"tasks": tasks, "names": names}).with_unknown(
            name for name in config.unknown_classes or () if name in names.values()
        ),
    )


def _entry(config: ModelConfig, spec: GraphSpec) -> dict[int, int]:
    if config.extractor is None:
        if config.detector.entry:
            raise ConfigError("detector.entry says where features enter, but there is no extractor to make them")
        return {}
    if config.detector.entry is None:
        levels = layer_levels(spec)
        return {layer: levels[layer].stride for layer in default_entry(spec)}
    if not config.detector.entry:
        raise ConfigError(
            "detector.entry is empty, so nothing takes the extractor's features; leave it out for the default"
        )
    return {INPUT if layer == "input" else int(layer): stride for layer, stride in config.detector.entry.items()}


def _input_channels(entry: Mapping[int, int], levels: tuple[Level, ...]) -> int:
    if INPUT not in entry:
        return 3
    channels = {level.stride: level.channels for level in levels}
    if entry[INPUT] not in channels:
        raise ConfigError(f"entry: input wants stride {entry[INPUT]}, the extractor gives {sorted(channels)}")
    return channels[entry[INPUT]]


def _check_classes(tasks: TasksConfig | None, names: Mapping[int, str]) -> None:
    wanted = tasks.keypoint.classes if tasks and tasks.keypoint else None
    unknown = [number for number in wanted or () if number not in names]
    if unknown:
        raise ConfigError(f"tasks.keypoint.classes: there is no class {unknown[0]}; they go from 0 to {max(names)}")


def _tasks_with_points(tasks: TasksConfig, points: int | None) -> TasksConfig:
    if tasks.keypoint is None:
        return tasks
    chosen = tasks.keypoint.points or points or COCO_POINTS
    if points and chosen != points:
        raise ConfigError(f"tasks.keypoint.points is {chosen}, the data set has {points}")
    if tasks.keypoint.sigmas and len(tasks.keypoint.sigmas) != chosen:
        raise ConfigError(f"tasks.keypoint.sigmas has {len(tasks.keypoint.sigmas)} entries for {chosen} points")
    joined = [point for pair in tasks.keypoint.skeleton or () for point in pair]
    if joined and not 0 <= min(joined) <= max(joined) < chosen:
        raise ConfigError(
            f"tasks.keypoint.skeleton joins points {min(joined)} to {max(joined)}; there are {chosen}, from 0"
        )
    return tasks.model_copy(update={"keypoint": tasks.keypoint.model_copy(update={"points": chosen})})


def _branches(tasks: TasksConfig, graph: Graph, classes: int) -> dict[str, nn.Module]:
    levels = tuple(sorted(graph.wanted_levels))
    anchors = _anchors(graph)
    branches: dict[str, nn.Module] = {"detect": DetectBranch(levels, classes, anchors)}
    if tasks.segment is not None:
        width = tasks.segment.channels or scaled_channels(PROTOTYPE_CHANNELS, graph.spec.width)
        branches["segment"] = SegmentBranch(levels, len(anchors[0]), tasks.segment.prototypes, width)
    if tasks.keypoint is not None:
        points, heatmaps = tasks.keypoint.points or COCO_POINTS, tasks.keypoint.heatmaps
        taken = graph.taken_levels
        branches["keypoint"] = KeypointBranch(levels, len(anchors[0]), points, heatmaps=heatmaps, taken=taken)
    return branches


def _anchors(graph: Graph) -> list[list[list[float]]]:
    """[L][A][2] in pixels, fine to coarse."""
    spec = graph.spec
    if isinstance(spec.anchors, int):
        return [default_anchors(level.stride, spec.anchors) for level in sorted(graph.wanted_levels)]
    by_stride = {
        level.stride: [[row[i], row[i + 1]] for i in range(0, len(row), 2)]
        for level, row in zip(graph.wanted_levels, spec.anchors, strict=True)
    }
    return [by_stride[stride] for stride in sorted(by_stride)]


def default_anchors(stride: int, count: int) -> list[list[float]]:
    """Where a graph says only how many: an octave of sizes from twice the stride, square, tall and wide in turn."""
    sizes = [2 * stride * 2 ** (index / count) for index in range(count)]
    shapes = [(1.0, 1.0), (0.7, 1.4), (1.4, 0.7)]
    return [[size * shapes[i % 3][0], size * shapes[i % 3][1]] for i, size in enumerate(sizes)]
