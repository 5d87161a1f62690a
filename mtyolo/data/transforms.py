"""The one geometry: where an image lies in the network input, for its pixels, boxes, masks and keypoints alike.

Scale, shift and mirror are all that is drawn, so a placement is three numbers and a window; pixels take one bilinear
warp, masks one gather. torchvision's v2 transforms on tv_tensors were measured against it: an affine and a colour
jitter of one image with its labels took 33 ms at 320 pixels on one core (113 ms at 640), this takes 2 ms (6 ms) for
four images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mtyolo.config.training import AugmentConfig
from mtyolo.structures import Letterbox

MASK_STRIDE = 4
"""Masks are trained at a quarter of the input size, where the prototypes are."""
SMALLEST_BOX = 2.0
"""Pixels; smaller boxes teach nothing at stride 8. As in the official recipe, like the next two."""
SMALLEST_SHARE = 0.1
"""Of a box's area that must be left in view."""
LARGEST_ASPECT = 100.0
HUES = 180
"""OpenCV keeps hue in half degrees."""


class Placement(NamedTuple):
    """Pixels of the working image times `scale`, plus (left, top), are pixels of the input; seen only in `window`."""

    scale: float
    left: float
    top: float
    window: tuple[float, float, float, float]  # xyxy, pixels of the input

    def boxes(self, boxes_xyxy: NDArray[np.float32], ratio: float) -> NDArray[np.float32]:
        """[n, 4] pixels of the original image, which is the working image divided by `ratio` -> input, not clipped."""
        return (boxes_xyxy * (ratio * self.scale) + np.array([self.left, self.top] * 2)).astype(np.float32)

    def points(self, keypoints: NDArray[np.float32], ratio: float) -> NDArray[np.float32]:
        """[n, K, 3] pixels of the original image -> input; v is 0 where a point leaves the window."""
        moved = keypoints.copy()
        moved[..., :2] = moved[..., :2] * (ratio * self.scale) + np.array([self.left, self.top])
        x1, y1, x2, y2 = self.window
        x, y = moved[..., 0], moved[..., 1]
        moved[(x < x1) | (x > x2) | (y < y1) | (y > y2) | (moved[..., 2] == 0)] = 0
        return moved


@dataclass(slots=True)
class Sample:
    """One image as the network sees it. Pixels of the input; image and masks not yet tensors."""

    image: NDArray[np.uint8]  # [size, size, 3] RGB
    classes: NDArray[np.int64]  # [n]
    boxes_xyxy: NDArray[np.float32]  # [n, 4]
    masks: NDArray[np.uint8] | None  # [n, size / 4, size / 4]
    keypoints: NDArray[np.float32] | None  # [n, K, 3]
    labelled: frozenset[str]
    letterbox: Letterbox
    index: int
    key: str | None = None  # names the pixels, where somebody asked for it


def paste(image: NDArray[np.uint8], placement: Placement, canvas: NDArray[np.uint8]) -> None:
    """Draw a working image [h, w, 3] into the input [H, W, 3] where its placement says."""
    left, top, right, bottom = (round(edge) for edge in placement.window)
    if right <= left or bottom <= top:
        return
    view = canvas[top:bottom, left:right]
    x, y = left - placement.left, top - placement.top
    if placement.scale == 1 and x == int(x) and y == int(y):
        view[:] = image[int(y) : int(y) + bottom - top, int(x) : int(x) + right - left]
        return
    # OpenCV counts from pixel centres, a placement from pixel edges.
    shift = [(placement.scale - 1) / 2 - x, (placement.scale - 1) / 2 - y]
    matrix = np.array([[placement.scale, 0, shift[0]], [0, placement.scale, shift[1]]])
    # warpAffine writes in place only into memory without gaps between rows.
    view[:] = cv2.warpAffine(
        image, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def paste_masks(
    masks: NDArray[np.uint8], shape: tuple[int, int], placement: Placement, canvas: NDArray[np.uint8]
) -> None:
    """Put masks [n, h / 2, w / 2] of a working image of `shape` into [n, H / 4, W / 4]: the pixel under each centre."""
    x1, y1, x2, y2 = placement.window
    rows, row_range = _cells_under(canvas.shape[1], placement.top, placement.scale, (y1, y2), shape[0])
    columns, column_range = _cells_under(canvas.shape[2], placement.left, placement.scale, (x1, x2), shape[1])
    if len(rows) and len(columns) and len(masks):
        # Masks of an odd length are a little finer than a half.
        rows, columns = (rows * masks.shape[1]).astype(np.int64), (columns * masks.shape[2]).astype(np.int64)
        canvas[:, row_range, column_range] = masks[:, rows[:, None], columns[None, :]]


def _cells_under(
    count: int, shift: float, scale: float, window: tuple[float, float], length: int
) -> tuple[NDArray[Any], slice]:
    """Along one axis: where in the working image (0 to 1) the output's cell centres lie, for those in the window."""
    centres = (np.arange(count) + 0.5) * MASK_STRIDE
    position = (centres - shift) / (scale * length)
    inside = (centres > window[0]) & (centres < window[1]) & (position >= 0) & (position < 1)
    first = int(inside.argmax())
    return position[inside], slice(first, first + int(inside.sum()))


def clip_boxes(boxes_xyxy: NDArray[np.float32], window: tuple[float, float, float, float]) -> NDArray[np.float32]:
    return np.stack(
        [boxes_xyxy[:, edge].clip(window[edge % 2], window[edge % 2 + 2]) for edge in range(4)], 1, dtype=np.float32
    )


def still_seen(whole: NDArray[np.float32], clipped: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[n]: is enough of each box left to learn from?"""
    size = clipped[:, 2:] - clipped[:, :2]
    before = whole[:, 2:] - whole[:, :2]
    share = size.prod(1) / before.prod(1).clip(1e-9)
    aspect = size.max(1, initial=0) / size.min(1, initial=np.inf).clip(1e-9)
    return (size.min(1, initial=np.inf) > SMALLEST_BOX) & (share > SMALLEST_SHARE) & (aspect < LARGEST_ASPECT)


def mirror(sample: Sample, flip_idx: list[int] | None) -> Sample:
    """Left to right: pixels, boxes, masks and keypoints, which also change names."""
    width = sample.image.shape[1]
    boxes = sample.boxes_xyxy.copy()
    boxes[:, [0, 2]] = width - sample.boxes_xyxy[:, [2, 0]]
    keypoints = None
    if sample.keypoints is not None:
        keypoints = sample.keypoints[:, flip_idx].copy()
        keypoints[..., 0] = np.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
    masks = None if sample.masks is None else np.ascontiguousarray(sample.masks[..., ::-1])
    image = np.asarray(cv2.flip(sample.image, 1), np.uint8)
    return Sample(image, sample.classes, boxes, masks, keypoints, sample.labelled, sample.letterbox, sample.index)


def jitter_colour(image: NDArray[np.uint8], augment: AugmentConfig, random: np.random.Generator) -> NDArray[np.uint8]:
    """Turn the hue by up to `hue` of the circle, and scale saturation and value by 1 plus or minus theirs."""
    turn, saturation, value = random.uniform(-1, 1, 3) * (augment.hue, augment.saturation, augment.value)
    if not (augment.hue or augment.saturation or augment.value):
        return image
    levels = np.arange(256)
    tables = [
        (levels + turn * HUES) % HUES,
        (levels * (1 + saturation)).clip(0, 255),
        (levels * (1 + value)).clip(0, 255),
    ]
    table = np.stack(tables, 1).astype(np.uint8)[None]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB), np.uint8)
