"""Variety without pixels: shifts, mosaics and mirrors of feature grids, always in whole cells of the coarsest level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtyolo.config.training import AugmentConfig
from mtyolo.errors import ConfigError
from mtyolo.features.reader import Piece, Window

PIXEL_FIELDS = ("scale", "hue", "saturation", "value")
"""What only pixels can do; views stored by `extract --views` carry it."""

FEATURE_DEFAULTS = AugmentConfig(mosaic=0, flip=0.5, scale=0, translate=0, hue=0, saturation=0, value=0)
"""What helped on coco_mini: see the table in docs/features.md."""

ALIGN_DEFAULTS = FEATURE_DEFAULTS.model_copy(update={"mosaic": 1.0, "flip": 0.0})
"""What a frozen graph makes of few photos is soon learned by heart, of mosaics not. Mirrored features are not quite the
mirrored image's. Labels forgive that; what adapters imitate does not."""

MOSAIC_MARGIN = 0.25
"""The four images of a mosaic meet at least this share of the side away from its edges."""


class Picture(NamedTuple):
    """How one training input is put together from stored views. Mirrored at the end, if at all."""

    pieces: tuple[Piece, ...]
    mirrored: bool = False


def feature_augment(augment: AugmentConfig, *, aligns: bool = False) -> AugmentConfig:
    """What of a run's augmentation the store can do: `flip`, `translate` and `mosaic`.

    Values left at the defaults of pixel augmentation become those that suit features, or alignment.
    Raises ConfigError where something was chosen that needs pixels.
    """
    usual = AugmentConfig()
    chosen = [name for name in AugmentConfig.model_fields if getattr(augment, name) != getattr(usual, name)]
    return _with_chosen(ALIGN_DEFAULTS if aligns else FEATURE_DEFAULTS, augment, chosen)


def loader_augment(augment: AugmentConfig | bool | None) -> AugmentConfig | None:
    """What a call from Python means: True the defaults of features, False and None the plain view, and what an
    AugmentConfig does not name is as in these defaults. Raises ConfigError where something was named that needs pixels.
    """
    if isinstance(augment, AugmentConfig):
        return _with_chosen(FEATURE_DEFAULTS, augment, sorted(augment.model_fields_set))
    return FEATURE_DEFAULTS if augment else None


def _with_chosen(defaults: AugmentConfig, augment: AugmentConfig, chosen: Sequence[str]) -> AugmentConfig:
    for name in PIXEL_FIELDS:
        if name in chosen and getattr(augment, name):
            raise ConfigError(
                f"augment.{name}: {getattr(augment, name)} needs pixels, and a feature store has none; set it to 0, "
                "train without --features, or store views that vary so: mtyolo extract --views 4"
            )
    return defaults.model_copy(update={name: getattr(augment, name) for name in chosen})


def plain(row: int, cells: int) -> Picture:
    """The first view as it is: what evaluation sees."""
    return Picture((Piece(row, 0, Window(0, 0, cells, cells), 0, 0),))


def arrange(
    rows: Sequence[int], views: int, cells: int, augment: AugmentConfig, random: np.random.Generator
) -> Picture:
    """Draw how an input looks.

    rows: of the image asked for, and of three others for a mosaic; without these there is none.
    cells: side of the coarsest level.
    """
    # Drawn in any case, so that one choice does not shift the others.
    joined, mirrored = random.random(2) < (augment.mosaic, augment.flip)
    chosen = [int(view) for view in random.integers(views, size=4)]
    if joined and len(rows) == 4 and cells > 1:
        return Picture(_four(rows, chosen, cells, random), bool(mirrored))
    down, right = random.uniform(-augment.translate, augment.translate, 2) * cells
    return Picture((shifted(rows[0], chosen[0], cells, round(down), round(right)),), bool(mirrored))


def shifted(row: int, view: int, cells: int, down: int, right: int) -> Piece:
    """A view moved by whole cells; what leaves is cut off, what is uncovered stays zero."""
    height, width = cells - abs(down), cells - abs(right)
    source = Window(max(-down, 0), max(-right, 0), height, width)
    return Piece(row, view, source, max(down, 0), max(right, 0))


def _four(rows: Sequence[int], views: Sequence[int], cells: int, random: np.random.Generator) -> tuple[Piece, ...]:
    """Windows of four images meet at a point. Each takes each of the four places equally often."""
    low = max(1, round(cells * MOSAIC_MARGIN))
    y, x = (int(value) for value in random.integers(low, cells - low + 1, size=2))
    corners = [Window(0, 0, y, x), Window(0, x, y, cells - x), Window(y, 0, cells - y, x)]
    corners.append(Window(y, x, cells - y, cells - x))
    pieces = []
    for number, corner in zip(random.permutation(4), corners, strict=True):
        top = int(random.integers(cells - corner.height + 1))
        left = int(random.integers(cells - corner.width + 1))
        source = Window(top, left, corner.height, corner.width)
        pieces.append(Piece(rows[number], views[number], source, corner.top, corner.left))
    return tuple(pieces)
