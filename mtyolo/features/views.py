"""What the extractor sees of an image: the plain letterbox, and views with their own crop, colours and mirror."""

from __future__ import annotations

import logging
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mtyolo.config.training import AugmentConfig
from mtyolo.data.cache import resize, working_shape
from mtyolo.data.images import read_image
from mtyolo.data.records import ImageRecord
from mtyolo.data.transforms import Placement, jitter_colour, paste
from mtyolo.errors import DataError
from mtyolo.features.index import sha256_of
from mtyolo.features.shards import Row, View
from mtyolo.geometry import PADDING_GREY, letterbox_of
from mtyolo.keys import text_key

logger = logging.getLogger(__name__)

VIEW_RECIPE = AugmentConfig(mosaic=0)
"""Colours and mirrors of views after the first: as of training images."""
VIEW_SCALE = 0.8, 2.0
"""Their size against the plain view. Mostly closer, and never with more grey than must be: a cell of padding costs as
much as one of the picture, and teaches nothing."""


class Drawn(NamedTuple):
    """One image's views for the extractor, and what the store notes about the image."""

    row: Row
    images: NDArray[np.uint8]  # [V, size, size, 3] RGB


def draw(record: ImageRecord, name: str, size: int, views: int, *, mirror: bool) -> Drawn:
    """All views of one image. They depend on the image's name, not on its place among the others.

    mirror: may views be mirrored? (Not where keypoints do not say which of them swap.)
    """
    row = row_of(record, name)
    shape = working_shape(record.height, record.width, size)
    placed = [further_view(name, number, shape, size, mirror=mirror) for number in range(1, views)]
    images = np.full((views, size, size, 3), PADDING_GREY, np.uint8)
    usable = True
    try:
        image = _decoded(record, shape)
        paste(image, plain_placement(record.height, record.width, size), images[0])
        for number, view in enumerate(placed, start=1):
            images[number] = _draw_view(image, view, name, number, size)
    except DataError as error:
        logger.warning("%s; stored as an image without labels", error)
        usable = False
    return Drawn(row.model_copy(update={"views": placed, "usable": usable}), images)


def row_of(record: ImageRecord, name: str) -> Row:
    """What the store notes about an image and its file. Raises DataError where that can not be read."""
    try:
        status, sha256 = record.path.stat(), sha256_of(record.path)
    except OSError as error:
        raise DataError(f"{record.path}: can not be read: {error}") from None
    size = {"height": record.height, "width": record.width, "length": status.st_size}
    return Row(name=name, **size, modified=status.st_mtime_ns, sha256=sha256)


def redraw(image: NDArray[np.uint8], row: Row, number: int, size: int) -> NDArray[np.uint8]:
    """[size, size, 3]: one view once more, to the pixel. image: the row's, at the working size."""
    if number:
        return _draw_view(image, row.views[number - 1], row.name, number, size)
    canvas = np.full((size, size, 3), PADDING_GREY, np.uint8)
    paste(image, plain_placement(row.height, row.width, size), canvas)
    return canvas


def view_key(row: Row, number: int, size: int, *, mirrored: bool) -> str | None:
    """Names the pixels that `redraw` gives, mirrored or not, without drawing them. None where nothing says which file
    they are of."""
    if row.sha256 is None:
        return None
    # Colours of a further view are drawn by the image's name.
    view = (row.name, row.views[number - 1].model_dump_json(), VIEW_RECIPE.model_dump_json()) if number else ()
    return text_key(repr((row.sha256, row.usable, size, mirrored, number, *view)))


def plain_placement(height: int, width: int, size: int) -> Placement:
    """Where the letterboxed image lies in the input."""
    letterbox = letterbox_of(height, width, (size, size))
    inner_height, inner_width = working_shape(height, width, size)
    left, top = letterbox.left, letterbox.top
    return Placement(1.0, left, top, (left, top, left + inner_width, top + inner_height))


def view_placement(row: Row, number: int, size: int) -> tuple[Placement, bool]:
    """Where an image lies in one of its views before mirroring, and whether the view is mirrored."""
    if number == 0:
        return plain_placement(row.height, row.width, size), False
    view = row.views[number - 1]
    return _placement(view, working_shape(row.height, row.width, size), size), view.mirrored


def further_view(name: str, number: int, shape: tuple[int, int], size: int, *, mirror: bool) -> View:
    random = _random(name, number)
    scale = float(random.uniform(*VIEW_SCALE))
    spare_height, spare_width = (size - side * scale for side in shape)
    left, top = (float(random.uniform(min(0, spare), max(0, spare))) for spare in (spare_width, spare_height))
    mirrored = bool(random.random() < VIEW_RECIPE.flip) and mirror
    return View(scale=scale, left=left, top=top, mirrored=mirrored)


def _draw_view(image: NDArray[np.uint8], view: View, name: str, number: int, size: int) -> NDArray[np.uint8]:
    canvas = np.full((size, size, 3), PADDING_GREY, np.uint8)
    paste(image, _placement(view, image.shape[:2], size), canvas)
    canvas = jitter_colour(canvas, VIEW_RECIPE, _random(name, number, purpose=1))
    return np.asarray(cv2.flip(canvas, 1), np.uint8) if view.mirrored else canvas


def _placement(view: View, shape: tuple[int, int], size: int) -> Placement:
    right, bottom = view.left + shape[1] * view.scale, view.top + shape[0] * view.scale
    window = (max(view.left, 0.0), max(view.top, 0.0), min(right, float(size)), min(bottom, float(size)))
    return Placement(view.scale, view.left, view.top, window)


def _random(name: str, number: int, purpose: int = 0) -> np.random.Generator:
    return np.random.default_rng((zlib.crc32(name.encode()), number, purpose))


def _decoded(record: ImageRecord, shape: tuple[int, int]) -> NDArray[np.uint8]:
    image = read_image(record.path)
    if image.shape[:2] != (record.height, record.width):
        raise DataError(f"{record.path}: is {image.shape[1]}x{image.shape[0]}, was {record.width}x{record.height}")
    return resize(image, *shape)
