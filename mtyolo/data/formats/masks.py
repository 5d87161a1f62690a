"""Instance masks as COCO run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from mtyolo.data.records import Rle

LONGEST_RUN_BYTES = 8
"""One run of up to 2^39 pixels."""
FARTHEST = 10.0
"""How far from the origin a polygon may reach, in units of the image's longer side. Memory for its outline grows with
its length, and what lies so far off is no rounding."""
POLYGON_NUMBERS = 6
"""Three points: fewer enclose nothing."""


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    """Flat x, y lists in pixels -> the union of their areas, one instance."""
    parts = coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width)
    return parts[0] if len(parts) == 1 else coco_mask.merge(parts)


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> Rle | str:
    """A COCO `segmentation` (polygons, run lengths plain or compressed) as run lengths, or why it is none."""
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width)
    if not isinstance(segmentation, list):
        return f"segmentation is {type(segmentation).__name__}, not polygons or run lengths"
    polygons = [item for item in segmentation if isinstance(item, list) and len(item) >= POLYGON_NUMBERS]
    if len(polygons) < len(segmentation) and not polygons:
        return "a polygon needs at least three points"
    if not all(len(polygon) % 2 == 0 and finite(polygon) for polygon in polygons):
        return "a polygon needs pairs of finite numbers"
    farthest = max(np.abs(np.asarray(polygon, np.float64)).max() for polygon in polygons) if polygons else 0.0
    if farthest > FARTHEST * max(height, width):
        return f"a polygon reaches {farthest:g}, far outside the image of {width}x{height}"
    rle = polygons_to_rle(polygons, height, width)
    return rle if shows_something(rle) else "the polygon encloses no pixel"


def _checked_rle(segmentation: dict[str, Any], height: int, width: int) -> Rle | str:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        return f"run lengths for size {size}, the image is [{height}, {width}]"
    if isinstance(counts, list):
        if not _are_counts(counts) or sum(counts) != height * width:
            return f"run lengths must be counts that sum to {height * width}"
        whole = {"size": [height, width], "counts": [int(count) for count in counts]}  # some tools write 1000.0
        rle = coco_mask.frPyObjects(whole, height, width)
    elif isinstance(counts, (str, bytes)) and counts:
        compressed = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
        if sum(run_lengths(compressed)) != height * width:
            return f"compressed run lengths do not cover {height * width} pixels"
        rle = {"size": [height, width], "counts": compressed}
    else:
        return "run lengths without counts"
    return rle if shows_something(rle) else "the mask is empty"


def finite(numbers: Sequence[Any]) -> bool:
    """Are these all numbers, and none of them infinite or NaN?"""
    try:
        array = np.asarray(numbers, np.float64)
    except (TypeError, ValueError, OverflowError):  # the last: an integer of 400 digits
        return False
    return array.ndim == 1 and bool(np.isfinite(array).all())


def _are_counts(counts: list[Any]) -> bool:
    return finite(counts) and all(isinstance(count, (int, float)) and 0 <= count == int(count) for count in counts)


def run_lengths(compressed: bytes) -> list[int]:
    """Lengths of the runs of 0, 1, 0, … down the columns; empty if the text is no run lengths.

    Groups of five bits, the sixth says that more follow; from the third run on, the difference to the run two back
    (https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, rleFrString).
    """
    runs: list[int] = []
    value = shift = 0
    for byte in compressed:
        bits = byte - 48
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if shift == 0 and min(runs, default=-1) >= 0 else []


def shows_something(rle: Rle) -> bool:
    """Is any pixel in the mask? An empty one is a single run of zeros, so only short counts need a look."""
    counts = rle["counts"]
    return len(counts) > LONGEST_RUN_BYTES or sum(run_lengths(counts)[1::2]) > 0


def rle_area(rle: Rle) -> int:
    return int(coco_mask.area(rle))


def rle_box(rle: Rle) -> tuple[float, float, float, float]:
    """xyxy in pixels."""
    x, y, width, height = (float(value) for value in np.asarray(coco_mask.toBbox(rle)).reshape(4))
    return x, y, x + width, y + height


def rle_mask(rle: Rle) -> NDArray[np.uint8]:
    """[height, width] of 0 and 1.

    By run lengths and not by the library's decode, which takes four times as long (0.8 ms for 640x480).
    """
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    colours = np.zeros(len(runs), np.uint8)
    colours[1::2] = 1
    return np.repeat(colours, runs).reshape(width, height).T
