"""A YOLOv5 layer list: from YAML text to numbered layers with known arguments, without running any of it as code."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtyolo.config.reading import Document, nearest, read_yaml
from mtyolo.errors import ConfigError
from mtyolo.graph.blocks import ACTIVATIONS, BLOCKS, HEADS, SCALED, STACKED

CHANNEL_MULTIPLE = 8
"""Channel counts are rounded up to a multiple of this after scaling, as in the official graphs."""

DEFAULT_CLASSES = 80
_KNOWN_KEYS = ("nc", "ch", "depth_multiple", "width_multiple", "anchors", "activation", "backbone", "head")
_LITERALS = {"None": None, "True": True, "False": False, "nearest": "nearest", "bilinear": "bilinear"}


@dataclass(frozen=True)
class LayerSpec:
    """One numbered layer: where its inputs come from (-1 is the network's input) and how it is built."""

    number: int
    sources: tuple[int, ...]
    block: str
    repeats: int
    arguments: tuple[Any, ...]
    place: str
    """file:line, for messages."""


@dataclass(frozen=True)
class GraphSpec:
    """A whole layer list. The last layer, the head, is apart: it becomes the branches."""

    layers: tuple[LayerSpec, ...]
    backbone_length: int
    head: LayerSpec
    classes: int
    anchors: tuple[tuple[float, ...], ...] | int
    """Per level w, h, w, h, … in pixels; or only how many a level has."""
    width: float
    activation: str | None
    content: dict[str, Any]
    """The mapping that this was read from, to be kept beside weights."""


def read_graph(source: Path | str | Mapping[str, Any]) -> GraphSpec:
    """Read a layer list from a YAML file or a mapping. Raises ConfigError naming file and line."""
    document = Document(Path("graph"), dict(source), {}) if isinstance(source, Mapping) else read_yaml(source)
    return _Reader(document).read()


def scaled_channels(channels: int, width: float) -> int:
    """Channels after the width multiple, rounded up to a multiple of eight."""
    return math.ceil(channels * width / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE


def make_activation(text: str | None) -> Any:
    """An activation module from text such as `nn.LeakyReLU(0.1)`. None: the default."""
    if text is None:
        return None
    match = re.fullmatch(r"(?:torch\.)?(?:nn\.)?(\w+)(?:\((.*)\))?", text.strip())
    if match is None or match[1] not in ACTIVATIONS:
        raise ConfigError(f"activation {text!r} is not known; {nearest(match[1] if match else text, ACTIVATIONS)}")
    try:
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {item.arg: ast.literal_eval(item.value) for item in call.keywords if item.arg}
        return ACTIVATIONS[match[1]](*positional, **named)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ConfigError(f"activation {text!r}: arguments not understood: {error}") from None


class _Reader:
    """Reads one document; methods fail with the place of what is wrong."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.content = document.content

    def read(self) -> GraphSpec:
        self._check_keys()
        backbone, head = self.content["backbone"], self.content["head"]
        depth = self._number("depth_multiple", 1.0)
        specs = [
            self._layer(number, row, (section, index), depth)
            for number, (section, index, row) in enumerate(
                [("backbone", i, row) for i, row in enumerate(backbone)]
                + [("head", i, row) for i, row in enumerate(head)]
            )
        ]
        *layers, last = specs
        if last.block not in HEADS:
            raise ConfigError(f"{last.place}: the last layer must be one of {', '.join(HEADS)}, got {last.block}")
        early = next((layer for layer in layers if layer.block in HEADS), None)
        if early:
            raise ConfigError(f"{early.place}: {early.block} must be the last layer")
        make_activation(self.content.get("activation"))
        return GraphSpec(
            layers=tuple(layers),
            backbone_length=len(backbone),
            head=last,
            classes=int(self._number("nc", DEFAULT_CLASSES)),
            anchors=self._anchors(len(last.sources)),
            width=self._number("width_multiple", 1.0),
            activation=self.content.get("activation"),
            content=self.content,
        )

    def _fail(self, keys: tuple[str | int, ...], sentence: str) -> ConfigError:
        return ConfigError(f"{self.document.place(keys)}: {sentence}")

    def _check_keys(self) -> None:
        if not isinstance(self.content, dict):
            raise self._fail((), "a graph is a mapping with backbone and head")
        for key in self.content:
            if key not in _KNOWN_KEYS:
                raise self._fail((key,), f"unknown key {key!r} in a graph; {nearest(key, _KNOWN_KEYS)}")
        for key in ("backbone", "head"):
            rows = self.content.get(key)
            if not isinstance(rows, list) or not rows:
                raise self._fail((key,), f"a graph needs {key}: a list of [from, number, module, arguments]")

    def _number(self, key: str, default: float) -> float:
        value = self.content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self._fail((key,), f"{key} must be a number above zero, got {value!r}")
        return value

    def _anchors(self, levels: int) -> tuple[tuple[float, ...], ...] | int:
        anchors = self.content.get("anchors", 3)
        if isinstance(anchors, int) and not isinstance(anchors, bool) and anchors > 0:
            return anchors
        sound = isinstance(anchors, list) and all(isinstance(row, list | tuple) for row in anchors)
        if not sound or len({len(row) for row in anchors}) != 1 or len(anchors[0]) % 2:
            raise self._fail(
                ("anchors",), "anchors must be a list of [w, h, w, h, …] in pixels, equally many per level"
            )
        if len(anchors) != levels:
            raise self._fail(("anchors",), f"anchors for {len(anchors)} levels, but the head takes {levels}")
        return tuple(tuple(float(value) for value in row) for row in anchors)

    def _layer(self, number: int, row: Any, keys: tuple[str, int], depth: float) -> LayerSpec:
        if not isinstance(row, list | tuple) or len(row) != 4:
            raise self._fail(keys, f"layer {number} must be [from, number, module, arguments], got {row!r}")
        sources, repeats, block, arguments = row
        block = str(block).removeprefix("torch.").removeprefix("models.common.")
        if block not in BLOCKS and block not in HEADS:
            raise self._fail(keys, f"layer {number}: unknown module {block!r}; {nearest(block, (*BLOCKS, *HEADS))}")
        if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
            raise self._fail(keys, f"layer {number}: the number of repeats must be at least 1, got {repeats!r}")
        if not isinstance(arguments, list | tuple):
            raise self._fail(keys, f"layer {number}: arguments must be a list, got {arguments!r}")
        if block in SCALED | STACKED and (not arguments or not isinstance(arguments[0], int)):
            raise self._fail(keys, f"layer {number}: the first argument of {block} is its output channels")
        return LayerSpec(
            number=number,
            sources=self._sources(number, sources, keys),
            block=block,
            repeats=max(round(repeats * depth), 1) if repeats > 1 else repeats,
            arguments=tuple(_LITERALS.get(value, value) if isinstance(value, str) else value for value in arguments),
            place=self.document.place(keys),
        )

    def _sources(self, number: int, sources: Any, keys: tuple[str, int]) -> tuple[int, ...]:
        listed = list(sources) if isinstance(sources, list | tuple) else [sources]
        if not listed or not all(isinstance(source, int) and not isinstance(source, bool) for source in listed):
            raise self._fail(keys, f"layer {number}: 'from' must be a layer number or a list of them, got {sources!r}")
        absolute = tuple(number + source if source < 0 else source for source in listed)
        wrong = next((source for source in absolute if not -1 <= source < number), None)
        if wrong is not None:
            raise self._fail(keys, f"layer {number} takes layer {wrong}, which does not come before it")
        return absolute
