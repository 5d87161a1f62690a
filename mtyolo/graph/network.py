"""A layer list as a network: replacement of layer outputs by features, pruning of what nothing needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtyolo.errors import ConfigError
from mtyolo.graph.blocks import JOINING, PLAIN, SCALED, STACKED, finish
from mtyolo.graph.reading import GraphSpec, LayerSpec, make_activation, scaled_channels
from mtyolo.structures import Level, Pyramid

INPUT = -1
"""The number that stands for the network's input in `sources` and, written `input`, in an entry."""

_PROBE_SIZE = 512
"""Side of the shape-only input that tells every layer's stride: a multiple of every stride in use (P7 is 128)."""


class Graph(nn.Module):
    """The layers that the wanted outputs depend on, under their official numbers.

    entry: layer number -> stride of the feature that replaces its output (INPUT: the network's input).
    wanted: layers whose outputs `forward` gives; default: those that the head takes.
    channels: of the network's input.
    """

    def __init__(
        self,
        spec: GraphSpec,
        *,
        entry: Mapping[int, int] | None = None,
        wanted: tuple[int, ...] | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.entry = dict(entry or {})
        self.wanted = wanted or spec.head.sources
        self.levels = layer_levels(spec, channels, self.entry.get(INPUT, 1))
        _check_entry(self.entry, self.levels)
        self.steps = _needed(spec, self.entry, self.wanted)
        self.layers = nn.ModuleDict(
            {str(layer.number): _build(layer, _input_channels(layer, self.levels), spec) for layer in self.steps}
        )
        finish(self, make_activation(spec.activation))
        built = {layer.number for layer in self.steps} | self.entry.keys()
        taken = {self.levels[layer].stride: layer for layer in default_entry(spec) if layer in built}
        self._taken = tuple(taken.values())  # of two with one stride the later
        self.needs_images = INPUT not in self.entry and any(INPUT in layer.sources for layer in self.steps)
        unused = [layer for layer in self.entry if not self._takes(layer)]
        if unused:
            raise ConfigError(f"entry: nothing takes the output of layer {unused[0]}; drop it from the entry")

    @property
    def entry_levels(self) -> tuple[Level, ...]:
        """What the adapters must produce, fine to coarse."""
        return tuple(sorted(self.levels[layer] for layer in self.entry))

    @property
    def wanted_levels(self) -> tuple[Level, ...]:
        """What `forward` gives, in the head's order."""
        return tuple(self.levels[layer] for layer in self.wanted)

    @property
    def taken_levels(self) -> tuple[Level, ...]:
        """What the neck takes in, fine to coarse, as far as it is there: a feature may enter behind it."""
        return tuple(sorted(self.levels[layer] for layer in self._taken))

    def forward(self, images: Tensor | None, replaced: Pyramid) -> Pyramid:
        """images: [B, C, H, W]; None when features replace all that needs them. Returns stride -> wanted output."""
        return self.run(images, replaced)[0]

    def run(self, images: Tensor | None, replaced: Pyramid) -> tuple[Pyramid, Pyramid]:
        """The same, and stride -> what the neck took in."""
        outputs = {layer: replaced[stride] for layer, stride in self.entry.items()}
        if images is not None:
            outputs.setdefault(INPUT, images)
        for layer in self.steps:
            inputs = [outputs[source] for source in layer.sources]
            outputs[layer.number] = self.layers[str(layer.number)](inputs if layer.block in JOINING else inputs[0])
        return (
            {self.levels[layer].stride: outputs[layer] for layer in self.wanted},
            {self.levels[layer].stride: outputs[layer] for layer in self._taken},
        )

    def leading_to(self, number: int) -> tuple[list[nn.Module], bool]:
        """Layers that an output depends on, and whether features are among what these take, or stand in its place."""
        steps = [] if number in self.entry else _needed(self.spec, self.entry, (number,))
        given = number in self.entry or any(source in self.entry for layer in steps for source in layer.sources)
        return [self.layers[str(layer.number)] for layer in steps], given

    def _takes(self, number: int) -> bool:
        return number in self.wanted or any(number in layer.sources for layer in self.steps)


def default_entry(spec: GraphSpec) -> tuple[int, ...]:
    """The backbone's layers that the neck takes: 4, 6 and 9 in the stock graphs."""
    taken = {
        source
        for layer in (*spec.layers, spec.head)
        if layer.number >= spec.backbone_length
        for source in layer.sources
    }
    return tuple(sorted(source for source in taken if 0 <= source < spec.backbone_length))


def layer_levels(spec: GraphSpec, channels: int = 3, input_stride: int = 1) -> dict[int, Level]:
    """Stride and channels of every layer's output, built or not, found without computing anything."""
    levels = {INPUT: Level(input_stride, channels)}
    shapes = {INPUT: torch.empty(1, channels, _PROBE_SIZE, _PROBE_SIZE, device="meta")}
    for layer in spec.layers:
        inputs = [shapes[source] for source in layer.sources]
        with torch.device("meta"):
            module = _without_norms(_build(layer, _input_channels(layer, levels), spec)).eval()
        try:
            output = module(inputs if layer.block in JOINING else inputs[0])
        except (RuntimeError, ValueError, TypeError) as error:
            sizes = ", ".join(str(list(tensor.shape[1:])) for tensor in inputs)
            raise ConfigError(
                f"{layer.place}: layer {layer.number} ({layer.block}) can not take {sizes}: {error}"
            ) from None
        shapes[layer.number] = output
        levels[layer.number] = Level(input_stride * round(_PROBE_SIZE / output.shape[-1]), output.shape[1])
    return levels


def _without_norms(module: nn.Module) -> nn.Module:
    """The same shapes: a norm changes none, and on the meta device takes ten times as long as its convolution."""
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, nn.Identity())
    return module


def _check_entry(entry: Mapping[int, int], levels: Mapping[int, Level]) -> None:
    for number, stride in entry.items():
        if number not in levels:
            raise ConfigError(f"entry: there is no layer {number}; the graph has layers 0 to {max(levels)}")
        if levels[number].stride != stride:
            raise ConfigError(
                f"entry: layer {number} has stride {levels[number].stride}, not {stride}; "
                f"write {number}: {levels[number].stride} (adapters resample features of other strides)"
            )
    if len(set(entry.values())) != len(entry):
        raise ConfigError(f"entry: each stride once, got {dict(entry)}; keep the later layer of two with one stride")
    if INPUT in entry and len(entry) > 1:
        raise ConfigError("entry: input stands alone; layers can not be replaced beside it")


def _needed(spec: GraphSpec, entry: Mapping[int, int], wanted: tuple[int, ...]) -> list[LayerSpec]:
    """Layers that the wanted outputs depend on when those in `entry` are given, in order."""
    needed, open_ends = set[int](), [number for number in wanted if number not in entry]
    while open_ends:
        number = open_ends.pop()
        if number in needed or number == INPUT:
            continue
        needed.add(number)
        open_ends += [source for source in spec.layers[number].sources if source not in entry]
    return [layer for layer in spec.layers if layer.number in needed]


def _input_channels(layer: LayerSpec, levels: Mapping[int, Level]) -> int:
    return sum(levels[source].channels for source in layer.sources)


def _build(layer: LayerSpec, channels: int, spec: GraphSpec) -> nn.Module:
    arguments: list[Any] = list(layer.arguments)
    repeats = layer.repeats
    try:
        if layer.block in JOINING:
            return JOINING[layer.block](*arguments)
        if layer.block in PLAIN:
            return _repeat(lambda: PLAIN[layer.block](*arguments), repeats)
        width = scaled_channels(arguments[0], spec.width)
        if layer.block in STACKED:
            return STACKED[layer.block](channels, width, repeats, *arguments[1:])
        if repeats == 1:
            return SCALED[layer.block](channels, width, *arguments[1:])
        # As in the official parser, every repeat is given the same input channels.
        return _repeat(lambda: SCALED[layer.block](channels, width, *arguments[1:]), repeats)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{layer.place}: layer {layer.number}: {layer.block}{layer.arguments}: {error}") from None


def _repeat(make: Any, repeats: int) -> nn.Module:
    return make() if repeats == 1 else nn.Sequential(*(make() for _ in range(repeats)))
