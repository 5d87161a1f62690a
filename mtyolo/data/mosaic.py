"""Where images go in a training input: one image, or four around a point; then scaled and shifted together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtyolo.config.training import AugmentConfig
from mtyolo.data.transforms import Placement
from mtyolo.geometry import letterbox_of


class View(NamedTuple):
    """How a larger drawing is seen in the input: times `gain`, plus (left, top)."""

    gain: float
    left: float
    top: float


def draw_view(size: int, centre: float, augment: AugmentConfig, random: np.random.Generator) -> View:
    """Scale about the drawing's centre, which lands near the middle of the input."""
    gain = random.uniform(1 - augment.scale, 1 + augment.scale)
    x, y = random.uniform(0.5 - augment.translate, 0.5 + augment.translate, 2) * size
    return View(gain, x - gain * centre, y - gain * centre)


def place_one(shape: tuple[int, int], size: int, view: View) -> Placement:
    """A working image of `shape` (height, width) alone, centred in a square of `size` before the view."""
    height, width = shape
    letterbox = letterbox_of(height, width, (size, size))
    left, top = letterbox.left, letterbox.top
    return _seen((left, top), (left, top, left + width, top + height), size, view)


def place_four(
    shapes: Sequence[tuple[int, int]], size: int, view: View, random: np.random.Generator
) -> list[Placement]:
    """Four working images meet at a random point of a square of twice the size, each filling one quarter from there."""
    x, y = random.uniform(size / 2, 3 * size / 2, 2)
    corners = []
    for number, (height, width) in enumerate(shapes):
        # 0 top left, 1 top right, 2 bottom left, 3 bottom right
        corners.append((x if number % 2 else x - width, y if number >= 2 else y - height))
    drawing = (0.0, 0.0, 2.0 * size, 2.0 * size)
    return [
        _seen(corner, _common(drawing, (*corner, corner[0] + width, corner[1] + height)), size, view)
        for corner, (height, width) in zip(corners, shapes, strict=True)
    ]


def _seen(corner: tuple[float, float], window: tuple[float, float, float, float], size: int, view: View) -> Placement:
    """Move a corner and a window of the drawing into the input."""
    edges = [edge * view.gain + shift for edge, shift in zip(window, (view.left, view.top) * 2, strict=True)]
    left, top = corner[0] * view.gain + view.left, corner[1] * view.gain + view.top
    return Placement(view.gain, left, top, _common((edges[0], edges[1], edges[2], edges[3]), (0, 0, size, size)))


def _common(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """The part of two windows that is in both; empty ones have right < left or bottom < top."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    return left, top, max(left, min(one[2], other[2])), max(top, min(one[3], other[3]))
