"""Drawn creatures with a face and two legs: what the demo data set shows.

A body is described in its own frame: x to the right, y down, about 1 from the centre to the rim.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]

CLASSES = ("ball", "box", "cone", "star")
KEYPOINTS = ("left eye", "right eye", "mouth", "left foot", "right foot")
FLIP_IDX = (1, 0, 2, 4, 3)
"""What each keypoint becomes in a mirror."""
SKELETON = ((0, 2), (1, 2), (2, 3), (2, 4))
"""Which of them pictures join."""
SUPERSAMPLING = 2
"""Pictures are drawn this much larger and then reduced, which smooths the edges."""

_EYE, _PUPIL, _FOOT, _LEG = 0.19, 0.1, 0.17, 0.14
"""Radii, and the width of a leg, in body units."""
_HIP = 0.7
"""Height at which legs leave the body, in body units below its centre."""
_INK = (28, 28, 36)


@dataclass(frozen=True, slots=True)
class Creature:
    """One object of a picture. Lengths in pixels, angles in radians."""

    kind: int  # number in CLASSES
    centre: tuple[float, float]
    radius: float
    stretch: float  # width over height
    angle: float
    hue: float  # 0..1
    feet: tuple[tuple[float, float], tuple[float, float]]  # left and right, body units

    def place(self, points: Points, scale: float = 1.0) -> Points:
        """[n, 2] body units -> pixels, of a picture `scale` times as large."""
        width = self.radius * math.sqrt(self.stretch)
        local = points * (width, self.radius**2 / width)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turned = local @ np.array([[cos, sin], [-sin, cos]])
        return (turned + self.centre) * scale

    def keypoints(self) -> Points:
        """[5, 2] pixels, in the order of KEYPOINTS."""
        return self.place(np.array([*_face(self.kind), *self.feet]))


def draw_creature(picture: Image.Image, numbers: Image.Image, creature: Creature, number: int) -> None:
    """Draw onto an RGB picture and, as `number`, onto an L picture of who is seen where; both SUPERSAMPLING larger."""
    body = creature.place(_outline(creature.kind), SUPERSAMPLING)
    hips = creature.place(np.array([[0.6 * x, _HIP] for x, _ in creature.feet]), SUPERSAMPLING)
    feet = creature.place(np.array(creature.feet), SUPERSAMPLING)
    unit = creature.radius * SUPERSAMPLING
    dark, bright = _colour(creature.hue, 0.75, 0.5), _colour(creature.hue, 0.72, 0.97)
    for canvas, leg, skin in ((picture, dark, bright), (numbers, number, number)):
        draw = ImageDraw.Draw(canvas)
        for hip, foot in zip(hips, feet, strict=True):
            draw.line([tuple(hip), tuple(foot)], fill=leg, width=max(2, round(_LEG * unit)))
            _disc(draw, foot, _FOOT * unit, leg)
        draw.polygon([tuple(point) for point in body], fill=skin)
        draw.line([tuple(point) for point in (*body, body[0])], fill=leg, width=max(2, round(0.08 * unit)))
    _draw_face(ImageDraw.Draw(picture), creature, unit)


def draw_background(size: int, random: np.random.Generator) -> Image.Image:
    """A quiet, uneven ground with strokes and grain, SUPERSAMPLING times `size` pixels wide and high."""
    patches = random.integers(90, 180, 3) + random.integers(-28, 29, (5, 5, 3))
    ground = Image.fromarray(patches.clip(0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(random.integers(6, 16)):
        colour = tuple(int(value) for value in random.integers(70, 200, 3))
        ends = random.uniform(0, size, (2, 2))
        draw.line([tuple(end) for end in ends], fill=colour, width=int(random.integers(1, 4)))
    grain = random.normal(0, 6, (size, size, 1))
    grainy = Image.fromarray((np.asarray(ground) + grain).clip(0, 255).astype(np.uint8))
    return grainy.resize((size * SUPERSAMPLING, size * SUPERSAMPLING), Image.Resampling.BILINEAR)


def _face(kind: int) -> Points:
    """[3, 2] body units: left eye, right eye, mouth. Cones are narrow at the top, so their faces sit lower."""
    name = CLASSES[kind]
    apart, eyes, mouth = {"cone": (0.24, 0.12, 0.5), "star": (0.24, -0.12, 0.26)}.get(name, (0.33, -0.2, 0.32))
    return np.array([[-apart, eyes], [apart, eyes], [0, mouth]])


def _outline(kind: int) -> Points:
    """[n, 2] body units."""
    if CLASSES[kind] == "box":
        return 0.82 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    if CLASSES[kind] == "cone":
        return np.array([[0, -1.1], [1.0, 0.85], [-1.0, 0.85]])
    count = 10 if CLASSES[kind] == "star" else 40
    turn = np.arange(count) * 2 * math.pi / count - math.pi / 2
    rim = np.where(np.arange(count) % 2, 0.58, 1.15) if CLASSES[kind] == "star" else np.full(count, 0.95)
    return np.stack([rim * np.cos(turn), rim * np.sin(turn)], 1)


def _draw_face(draw: ImageDraw.ImageDraw, creature: Creature, unit: float) -> None:
    for eye in creature.place(_face(creature.kind)[:2], SUPERSAMPLING):
        _disc(draw, eye, _EYE * unit, (255, 255, 255))
        _disc(draw, eye, _PUPIL * unit, _INK)
    smile = np.linspace(0, math.pi, 12)
    curve = np.stack([0.26 * np.cos(smile), 0.2 * np.sin(smile) - 0.08], 1) + _face(creature.kind)[2]
    draw.polygon([tuple(point) for point in creature.place(curve, SUPERSAMPLING)], fill=_INK)


def _disc(draw: ImageDraw.ImageDraw, centre: Points, radius: float, fill: int | tuple[int, ...]) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _colour(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
