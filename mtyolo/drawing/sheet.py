"""Sheets of pictures: a training batch, truth beside prediction. And the writing of any picture."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mtyolo.drawing.picture import Picture, Skeleton, annotated, resized_masks, scaled
from mtyolo.errors import ConfigError, DataError
from mtyolo.files import replacing
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.structures import Batch, Detections, Targets

TILE_SIDE = 480
"""Pixels of a tile in a grid of more than one."""
MOST_TILES = 16
TILE_GAP = 6
LETTER_SIZE = (16.0, 35.0)
"""Width of a letter and height of a line of supervision's font, in pixels at text_scale 1 (measured)."""
PICTURE_SUFFIXES = ".jpg .png .webp .tif .bmp .gif"
"""Said to people; Pillow writes some others, too."""


def draw_batch(batch: Batch, names: Mapping[int, str], skeleton: Skeleton | None = None) -> Picture:
    """Grid of a training batch's first 16 images with their boxes, masks and keypoints.

    Raises DataError for a batch of features: it has no picture.
    """
    if batch.images is None:
        raise DataError("a batch of stored features has no pictures to draw; draw one from a loader of images")
    tiles = [
        _tile(image.permute(1, 2, 0).cpu().numpy(), truth, names, skeleton, with_scores=False)
        for image, truth in zip(batch.images[:MOST_TILES], truths_of(batch), strict=False)
    ]
    return _grid(tiles, columns=math.ceil(math.sqrt(len(tiles))))


def draw_comparison(
    images: Sequence[Picture],
    truths: Sequence[Detections],
    predictions: Sequence[Detections],
    names: Mapping[int, str],
    skeleton: Skeleton | None = None,
) -> Picture:
    """Truth beside prediction: a pair for each image, two pairs to a row."""
    tiles = []
    for image, truth, prediction in zip(images, truths, predictions, strict=True):
        tiles.append(_captioned(_tile(image, truth, names, skeleton, with_scores=False), "truth"))
        tiles.append(_captioned(_tile(image, prediction, names, skeleton, with_scores=True), "prediction"))
    return _grid(tiles, columns=2 if len(images) == 1 else 4)


def truths_of(batch: Batch) -> list[Detections]:
    """A batch's labels as certain detections, in pixels of the network input."""
    assert batch.images is not None
    height, width = batch.images.shape[-2:]
    return [_truth(batch.targets, number, (height, width)) for number in range(len(batch.images))]


def save_image(image: Picture, path: str | Path) -> Path:
    """Write a picture, in the format of the suffix, so that no half-written file is ever seen. Makes folders.

    Raises ConfigError for a suffix that is not written, DataError for a picture that is too large for its format.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ConfigError(f"{path}: pictures are not written with this suffix; known: {PICTURE_SUFFIXES}")
    with replacing(path) as unfinished:
        try:
            Image.fromarray(image).save(unfinished, format=kind)
        except (OSError, ValueError, struct.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the format
                raise
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(
                f"{path}: a picture of {size} pixels can not be written as {kind} ({error}); "
                f"give it another suffix, known: {PICTURE_SUFFIXES}"
            ) from None
    return path


def _truth(targets: Targets, number: int, size: tuple[int, int]) -> Detections:
    chosen = targets.image_index == number
    count = int(chosen.sum())
    side = torch.tensor([size[1], size[0]], device=chosen.device)
    masks = None if targets.masks is None else resized_masks(targets.masks[chosen], size)
    keypoints = None
    if targets.keypoints is not None:
        points = targets.keypoints[chosen]
        keypoints = torch.cat([points[..., :2] * side, (points[..., 2:] > 0).to(points)], -1).cpu()
    boxes = cxcywh_to_xyxy(targets.boxes_cxcywh[chosen]) * side.repeat(2)
    return Detections(boxes.cpu(), torch.ones(count), targets.classes[chosen].cpu(), masks, keypoints, size)


def _tile(
    image: Picture, detections: Detections, names: Mapping[int, str], skeleton: Skeleton | None, *, with_scores: bool
) -> Picture:
    """Drawn at the size at which it is seen, so that lines and letters keep theirs."""
    drawn = scaled(image, detections, TILE_SIDE / max(image.shape[:2]))
    return annotated(*drawn, names, skeleton, with_scores)


def _captioned(tile: Picture, text: str) -> Picture:
    import supervision as sv

    scale, margin = 0.5, 8
    width, height = len(text) * LETTER_SIZE[0] * scale, LETTER_SIZE[1] * scale
    centre = sv.Point(margin + width / 2, tile.shape[0] - margin - height / 2)
    return sv.draw_text(
        tile,
        text,
        centre,
        text_color=sv.Color.WHITE,
        background_color=sv.Color.BLACK,
        text_scale=scale,
        text_padding=margin // 2,
    )


def _grid(tiles: Sequence[Picture], columns: int) -> Picture:
    """Tiles on white, each centred in its cell; a row is as high as its highest tile."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = max(tile.shape[1] for tile in tiles) + TILE_GAP
    heights = [max(tile.shape[0] for tile in row) + TILE_GAP for row in rows]
    sheet = np.full((sum(heights) + TILE_GAP, min(columns, len(tiles)) * width + TILE_GAP, 3), 255, np.uint8)
    row_top = TILE_GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            top = row_top + (height - TILE_GAP - tile.shape[0]) // 2
            left = TILE_GAP + column * width + (width - TILE_GAP - tile.shape[1]) // 2
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        row_top += height
    return sheet
