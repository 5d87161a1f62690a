"""Pictures for people: detections, training batches, truth beside prediction. Drawn by supervision's annotators.

supervision brings OpenCV and matplotlib, so it is imported when something is drawn. Images are uint8 RGB
[height, width, 3]; small ones are enlarged first, so that lines and letters stay readable.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import nms

from mtyolo.errors import ConfigError, DataError
from mtyolo.geometry import cxcywh_to_xyxy
from mtyolo.structures import Batch, Detections, Targets

if TYPE_CHECKING:
    import supervision

Picture = NDArray[np.uint8]
Skeleton = Sequence[tuple[int, int]]

# COCO's 17 body points, counted from 0; https://cocodataset.org/#keypoints-eval
COCO_SKELETON: Skeleton = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
READABLE_SIDE = 640
"""Pixels: pictures whose longer side is shorter are enlarged to it."""
TILE_SIDE = 480
"""Pixels of a tile in a grid of more than one."""
MOST_TILES = 16
TILE_GAP = 6
VISIBLE = 0.5
"""Predicted points at least this visible are drawn."""
MASK_OPACITY = 0.4
LIGHT = 150
"""Luma of 255 above which text is black."""
SHORTEST_LABELLED_SIDE = 14
"""Pixels: smaller boxes get no text, which would hide them; their colour tells the class."""
LETTER_SIZE = (16.0, 35.0)
"""Width of a letter and height of a line of supervision's font, in pixels at text_scale 1 (measured)."""
TEXT_OVERLAP = 0.1
"""IoU of two texts above which only the better detection's is shown."""
SMALL_BODY = 110
"""Pixels: points of objects whose longer side is shorter get thin lines, which leave the object visible."""
EDGE_COLOUR, POINT_COLOUR = "#FFF04D", "#FF2E63"


def draw_detections(
    image: Picture,
    detections: Detections,
    names: Mapping[int, str],
    skeleton: Skeleton | None = None,
    *,
    with_scores: bool = True,
) -> Picture:
    """Boxes with class and score, masks, and keypoints, on a copy that is at least 640 pixels long.

    detections: in pixels of the image. skeleton: pairs of points to join, counted from 0; COCO's for 17 points.
    """
    factor = max(1.0, READABLE_SIDE / max(image.shape[:2]))
    return _annotated(*_scaled(image, detections, factor), names, skeleton, with_scores)


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
    """Write a picture, in the format of the suffix, so that no half-written file is ever seen. Makes folders."""
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: pictures need a known suffix, such as .jpg or .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        Image.fromarray(image).save(unfinished, format=kind)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _truth(targets: Targets, number: int, size: tuple[int, int]) -> Detections:
    chosen = targets.image_index == number
    count = int(chosen.sum())
    side = torch.tensor([size[1], size[0]], device=chosen.device)
    masks = None if targets.masks is None else _resized_masks(targets.masks[chosen], size)
    keypoints = None
    if targets.keypoints is not None:
        points = targets.keypoints[chosen]
        keypoints = torch.cat([points[..., :2] * side, (points[..., 2:] > 0).to(points)], -1).cpu()
    boxes = cxcywh_to_xyxy(targets.boxes_cxcywh[chosen]) * side.repeat(2)
    return Detections(boxes.cpu(), torch.ones(count), targets.classes[chosen].cpu(), masks, keypoints, size)


def _resized_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(masks):
        return masks.new_zeros((0, *size), dtype=torch.bool).cpu()
    return interpolate(masks[:, None].float().cpu(), size=size, mode="bilinear", align_corners=False)[:, 0] > 0.5


def _scaled(image: Picture, detections: Detections, factor: float) -> tuple[Picture, Detections]:
    if factor == 1:
        return image, detections
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    keypoints = detections.keypoints
    if keypoints is not None:
        keypoints = keypoints.cpu() * torch.tensor([factor, factor, 1.0])
    moved = replace(
        detections,
        boxes_xyxy=detections.boxes_xyxy * factor,
        masks=None if detections.masks is None else _resized_masks(detections.masks, (height, width)),
        keypoints=keypoints,
        size=(height, width),
    )
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)), moved


def _annotated(
    image: Picture,
    detections: Detections,
    names: Mapping[int, str],
    skeleton: Skeleton | None,
    with_scores: bool,
) -> Picture:
    """Masks lie under boxes, keypoints over them, text on top."""
    import supervision as sv

    # Annotators draw in OpenCV's channel order.
    scene = np.ascontiguousarray(image[..., ::-1])
    found = _as_supervision(detections)
    line = max(2, round(max(scene.shape[:2]) / 400))
    if found.mask is not None:
        scene = sv.MaskAnnotator(opacity=MASK_OPACITY).annotate(scene, found)
    scene = sv.BoxAnnotator(thickness=line).annotate(scene, found)
    if detections.keypoints is not None:
        scene = _with_keypoints(scene, detections, skeleton, line)
    return np.ascontiguousarray(_with_labels(scene, found, names, with_scores)[..., ::-1])


def _as_supervision(detections: Detections) -> supervision.Detections:
    import supervision as sv

    masks = detections.masks
    return sv.Detections(
        xyxy=detections.boxes_xyxy.cpu().numpy(),
        mask=None if masks is None or not len(masks) else masks.cpu().numpy(),
        confidence=detections.scores.cpu().numpy(),
        class_id=detections.classes.cpu().numpy(),
    )


def _with_keypoints(scene: Picture, detections: Detections, skeleton: Skeleton | None, line: int) -> Picture:
    assert detections.keypoints is not None
    points = detections.keypoints.cpu().numpy()
    if skeleton is None and points.shape[1] == 1 + max(max(edge) for edge in COCO_SKELETON):
        skeleton = COCO_SKELETON
    boxes = detections.boxes_xyxy.cpu().numpy()
    small = np.max(boxes[:, 2:] - boxes[:, :2], axis=1) < SMALL_BODY
    scene = _with_points(scene, points[small], skeleton, max(1, line - 1))
    return _with_points(scene, points[~small], skeleton, line)


def _with_points(scene: Picture, points: NDArray[Any], skeleton: Skeleton | None, line: int) -> Picture:
    import supervision as sv

    if not len(points):
        return scene
    shown = sv.KeyPoints(xy=points[..., :2].astype(np.float32), visible=points[..., 2] >= VISIBLE)
    if skeleton:
        edges = [(start + 1, end + 1) for start, end in skeleton]  # supervision counts points from 1
        joints = sv.EdgeAnnotator(color=sv.Color.from_hex(EDGE_COLOUR), thickness=line, edges=edges)
        scene = joints.annotate(scene, shown)
    return sv.VertexAnnotator(color=sv.Color.from_hex(POINT_COLOUR), radius=line + line // 2).annotate(scene, shown)


def _with_labels(scene: Picture, found: Any, names: Mapping[int, str], with_scores: bool) -> Picture:
    import supervision as sv

    texts = np.array(
        [
            f"{names.get(int(number), number)} {score:.2f}" if with_scores else str(names.get(int(number), number))
            for number, score in zip(found.class_id, found.confidence, strict=True)
        ],
        dtype=object,
    )
    scale = max(0.4, max(scene.shape[:2]) / 1600)
    chosen = _readable(found, texts, scale)
    letters = [
        sv.Color.BLACK if _is_light(colour.as_rgb()) else sv.Color.WHITE for colour in sv.ColorPalette.DEFAULT.colors
    ]
    annotator = sv.LabelAnnotator(
        text_color=sv.ColorPalette(letters),
        text_scale=scale,
        text_thickness=max(1, round(1.5 * scale)),
        text_padding=2,
    )
    return annotator.annotate(scene, found[chosen], texts[chosen].tolist())


def _is_light(colour: tuple[int, int, int]) -> bool:
    """Is black easier to read on it than white? Luma of ITU-R BT.601."""
    return float(np.dot(colour, (0.299, 0.587, 0.114))) > LIGHT


def _readable(found: Any, texts: NDArray[Any], scale: float) -> NDArray[np.int64]:
    """Detections whose text is shown: large enough, and not over the text of a better one."""
    large = np.flatnonzero(np.min(found.xyxy[:, 2:] - found.xyxy[:, :2], axis=1) >= SHORTEST_LABELLED_SIDE)
    left, top = torch.as_tensor(found.xyxy[large, :2], dtype=torch.float32).unbind(1)
    width = torch.tensor([len(text) for text in texts[large]]) * LETTER_SIZE[0] * scale
    areas = torch.stack([left, top - LETTER_SIZE[1] * scale, left + width, top], 1)
    scores = torch.as_tensor(found.confidence[large], dtype=torch.float32)
    return large[nms(areas, scores, TEXT_OVERLAP).numpy()]


def _tile(
    image: Picture, detections: Detections, names: Mapping[int, str], skeleton: Skeleton | None, *, with_scores: bool
) -> Picture:
    """Drawn at the size at which it is seen, so that lines and letters keep theirs."""
    drawn = _scaled(image, detections, TILE_SIDE / max(image.shape[:2]))
    return _annotated(*drawn, names, skeleton, with_scores)


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
